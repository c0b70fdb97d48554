"""Packed experts on a CUDA device: the same bits wherever each of them lives."""

import numpy as np
import pytest
import torch
from placing import make_placement
from test_run_formats import PROMPT, logits_of, random_tiers

from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.demo import model_path
from moeprof.placement.tier import Tier
from moeprof.runtime import Sampling, Session, load
from moeprof.runtime.measurement import measure_hardware
from moeprof.runtime.q8_linear import DeviceQ8Linear

pytestmark = pytest.mark.gpu

BUFFERS = 2**20  # bytes that no checkpoint counts: of rotations, slot tables, flags


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    return read_checkpoint(model_path())


def tiers_of(checkpoint: Checkpoint, seed: int) -> np.ndarray:
    """Everything in RAM, everything in VRAM, then drawn."""
    tiers = random_tiers(checkpoint, seed)
    if seed < 2:
        tiers[:] = (Tier.RAM, Tier.VRAM)[seed]
    return tiers


@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0", "bf16"])
def test_ten_placements_give_the_same_tokens_and_the_same_bits(
    weight_format: str, bundled: Checkpoint
) -> None:
    found = []
    for seed in range(10):
        placement = make_placement(bundled, tiers_of(bundled, seed), spare_bytes=BUFFERS)
        loaded = load(placement, bundled, device="cuda", weight_format=weight_format)
        session = Session(loaded, compiled=False)
        ids = session.tokenizer(PROMPT)["input_ids"]
        logits = logits_of(loaded, ids * 3)
        loaded.synchronize()
        tokens = session.generate(PROMPT, Sampling(max_new_tokens=24)).token_ids
        found.append((tokens, logits.cpu()))
    tokens, logits = found[0]
    assert logits.isfinite().all()
    assert logits.std(dim=1).min() > 0
    assert [other for other, _ in found] == [tokens] * 10
    assert all(torch.equal(other, logits) for _, other in found)


@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
def test_a_layer_on_the_device_gives_the_bits_of_the_host(
    weight_format: str, bundled: Checkpoint
) -> None:
    layers = []
    for device in ("cpu", "cuda"):
        tiers = tiers_of(bundled, 5)
        loaded = load(
            make_placement(bundled, tiers), bundled, device=device, weight_format=weight_format
        )
        loaded.meter.begin("decode", 1)
        layers.append((loaded, [m for m in loaded.model.modules() if hasattr(m, "moeprof_layer")]))
    shape = bundled.shape
    generator = torch.Generator().manual_seed(3)
    for row in range(shape.num_moe_layers):
        for num_tokens in (1, 3, 21):
            hidden = torch.randn(num_tokens, shape.hidden_size, generator=generator).bfloat16()
            order = torch.rand(num_tokens, shape.num_experts, generator=generator).argsort(dim=1)
            ids = order[:, : shape.top_k]
            weights = torch.rand(num_tokens, shape.top_k, generator=generator).bfloat16()
            outputs = []
            for loaded, modules in layers:
                given = (tensor.to(loaded.device) for tensor in (hidden, ids, weights))
                with torch.inference_mode():
                    outputs.append(modules[row](*given).cpu())
                loaded.synchronize()
            assert torch.equal(*outputs)


def test_counts_of_a_captured_run_are_those_of_its_tokens(bundled: Checkpoint) -> None:
    loaded = load(make_placement(bundled), bundled, device="cuda", weight_format="q8_0")
    session = Session(loaded, compiled=False)
    assert session.sequence.notes == ()
    generation = session.generate(PROMPT, Sampling(max_new_tokens=9))
    session.report()
    fed = len(session.tokenizer(PROMPT)["input_ids"]), len(generation.token_ids) - 1
    shape = bundled.shape
    assert loaded.meter.tokens.tolist() == list(fed)
    expected = np.array(fed)[:, None] * shape.top_k
    np.testing.assert_array_equal(
        loaded.meter.assignments.sum(axis=2), np.broadcast_to(expected, (2, shape.num_moe_layers))
    )


@pytest.mark.parametrize("tier", [Tier.VRAM, Tier.RAM])
def test_layer_times_of_captured_steps_are_those_of_the_tiers_in_use(
    tier: Tier, bundled: Checkpoint
) -> None:
    tiers = np.full_like(random_tiers(bundled, 0), tier)
    placement = make_placement(bundled, tiers, spare_bytes=BUFFERS)
    found = []
    for asked in (True, False):
        loaded = load(placement, bundled, device="cuda", weight_format="q8_0", layer_times=asked)
        session = Session(loaded, compiled=False)
        assert session.sequence.notes == ()
        tokens = session.generate(PROMPT, Sampling(max_new_tokens=24)).token_ids
        found.append((tokens, session.report().layer_times))
    (timed, times), (plain, nothing) = found
    assert timed == plain and nothing is None
    assert times is not None and times.tiers_overlap and times.rest_s > 0
    assert min(layer.dense_s for layer in times.layers) > 0
    on_host = [(layer.ram_s, layer.waiting_s) for layer in times.layers]
    on_device = [layer.vram_s for layer in times.layers]
    if tier is Tier.VRAM:
        assert np.max(on_host) == 0 and min(on_device) > 0
    else:
        assert np.min(on_host) > 0 and max(on_device) == 0


def test_a_measured_device_prices_tokens_and_batches(bundled: Checkpoint) -> None:
    profile = measure_hardware(bundled, device="cuda", formats=["q8_0"])
    assert profile.links["ram-vram"].bytes_per_s > 0
    assert profile.device_context_bytes > 0
    assert profile.dense_time(0) > 0
    assert profile.dense_batch_time is not None
    for tier in ("vram", "ram"):
        for weight_format in ("bfloat16", "q8_0"):
            batch = profile.batch_time(tier, weight_format)
            assert batch is not None
            assert batch(10**5, 64) >= batch(10**5) > 0
            assert profile.expert_time(tier, weight_format)(10**5) > 0


def test_linear_layers_in_q8_0_are_captured_and_compiled_and_no_placement_changes_a_bit(
    bundled: Checkpoint,
) -> None:
    found = []
    for seed in range(3):
        placement = make_placement(bundled, tiers_of(bundled, seed), spare_bytes=BUFFERS)
        options = {"device": "cuda", "weight_format": "q8_0", "dense_format": "q8_0"}
        session = Session(load(placement, bundled, **options))
        assert session.sequence.notes == ()
        found.append(session.generate(PROMPT, Sampling(max_new_tokens=24)).token_ids)
    assert found == [found[0]] * 3
    layers = [m for m in session.loaded.model.modules() if isinstance(m, DeviceQ8Linear)]
    assert len(layers) == 6 * 4
    assert all(parameter.is_cuda for layer in layers for parameter in layer.parameters())
    kept = sum(p.nbytes for p in session.loaded.model.parameters())
    assert kept < session.loaded.placement.budget.dense_bytes
