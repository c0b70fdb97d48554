"""Running with packed experts: the same bits under every placement, close to the model itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ALL_TYPES, installed
from architectures import tiny_model as tiny_model_of
from placing import make_placement, make_tiers
from test_runtime import NOT_RUN_TYPES
from torch import nn

from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.checkpoint.expert_layout import read_layout
from moeprof.checkpoint.modules import find_moe_layers
from moeprof.checkpoint.packed_shape import expert_parameters
from moeprof.checkpoint.skeleton import auto_class, load_config
from moeprof.demo import model_path, text_path
from moeprof.errors import PlacementError, UnsupportedModelError
from moeprof.native.reference import dequantize, quantize
from moeprof.runtime import LoadedModel, Sampling, Session, load

# Each has a step that the kernels do not have; they run with --format stored.
NOT_PACKED_TYPES = {
    "inkling2": "activation|SwiGLU",
    "inkling2_text": "activation|SwiGLU",
    "muse_spark": "normalises",
    "nemotron_h": "no gate",
    "nemotron_h_omni": "no gate",
}
SELECTION = ["aria_text", "deepseek_v3", "deepseek_v4", "gemma4_text", "gpt_oss", "minimax_m3_vl"]
PROMPT = "def main(arguments):\n    "


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    return read_checkpoint(model_path())


def dequantize_experts(module: nn.Module, weight_format: str) -> None:
    """Replace every matrix of an experts module by what its quantised rows stand for."""
    is_transposed = read_layout(module).is_transposed
    for name, parameter in expert_parameters(module).items():
        if parameter.dim() != 3:
            continue
        rows = parameter.data.transpose(1, 2) if is_transposed else parameter.data
        size = rows.shape[2]
        padded = np.zeros((*rows.shape[:2], -(-size // 32) * 32), np.float32)
        padded[..., :size] = rows.numpy()
        values = dequantize(quantize(padded, weight_format), weight_format)[..., :size]
        found = torch.from_numpy(np.ascontiguousarray(values))
        setattr(module, name, nn.Parameter(found.transpose(1, 2) if is_transposed else found))


def quantised_reference(path: Path, weight_format: str) -> nn.Module:
    """The unmodified model in float32, with weights as the format has them."""
    whole = auto_class(load_config(path)).from_pretrained(path, dtype=torch.float32).eval()
    whole.set_experts_implementation("eager")
    for experts in find_moe_layers(whole):
        dequantize_experts(experts.module, weight_format)
    return whole


def random_tiers(checkpoint: Checkpoint, seed: int) -> np.ndarray:
    share = float(np.random.default_rng(seed).random())
    return make_tiers(checkpoint.shape, seed, vram_share=share)


def logits_of(loaded: LoadedModel, token_ids: list[int]) -> torch.Tensor:
    """Logits of a prefill and of each of eight decoded tokens."""
    step = loaded.forward(token_ids[:-8], "prefill")
    found = [step.logits]
    for number, token in enumerate(token_ids[-8:]):
        step = loaded.forward([token], "decode", step.cache, len(token_ids) - 8 + number)
        found.append(step.logits)
    return torch.stack(found)


@pytest.mark.parametrize("weight_format", ["q8_0", pytest.param("q4_0", marks=pytest.mark.all)])
def test_ten_random_placements_give_the_same_tokens_and_the_same_bits(
    weight_format: str, bundled: Checkpoint
) -> None:
    found = []
    for seed in range(10):
        placement = make_placement(bundled, random_tiers(bundled, seed))
        loaded = load(placement, bundled, device="cpu", weight_format=weight_format)
        session = Session(loaded)
        tokens = session.generate(PROMPT, Sampling(max_new_tokens=16)).token_ids
        ids = session.tokenizer(PROMPT * 3)["input_ids"]
        found.append((tokens, logits_of(loaded, ids)))
    tokens, logits = found[0]
    assert logits.isfinite().all()
    assert logits.std(dim=1).min() > 0
    assert [other for other, _ in found] == [tokens] * 10
    assert all(torch.equal(other, logits) for _, other in found)


@pytest.mark.parametrize(
    ("weight_format", "most_divergence", "least_agreement"),
    [("q8_0", 1e-3, 0.98), ("q4_0", 1e-3, 0.98), ("bf16", 1e-3, 0.98)],
)
def test_the_bundled_model_is_close_to_transformers_with_the_same_weights(
    weight_format: str, most_divergence: float, least_agreement: float, bundled: Checkpoint
) -> None:
    loaded = load(
        make_placement(bundled),
        bundled,
        device="cpu",
        dtype="float32",
        weight_format=weight_format,
    )
    whole = quantised_reference(bundled.path, weight_format)
    text = next((text_path() / "python").glob("*.txt")).read_text()
    ids = torch.tensor([Session(loaded).tokenizer(text)["input_ids"][:256]])
    with torch.inference_mode():
        ours = loaded.model(ids).logits[0].double().log_softmax(-1)
        theirs = whole(ids).logits[0].double().log_softmax(-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    agreement = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    assert 0 < divergence < most_divergence
    assert agreement >= least_agreement


@pytest.mark.parametrize("model_type", SELECTION)
def test_an_architecture_runs_packed(model_type: str, tmp_path: Path) -> None:
    check_packed(model_type, tmp_path)


@pytest.mark.all
@pytest.mark.parametrize(
    "model_type", [t for t in installed(ALL_TYPES) if t not in {*NOT_RUN_TYPES, *SELECTION}]
)
def test_every_architecture_runs_packed_or_is_refused_by_name(
    model_type: str, tmp_path: Path
) -> None:
    if model_type not in NOT_PACKED_TYPES:
        check_packed(model_type, tmp_path)
        return
    tiny_model_of(model_type).save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    with pytest.raises(UnsupportedModelError, match=NOT_PACKED_TYPES[model_type]) as caught:
        load(make_placement(checkpoint), checkpoint, device="cpu", weight_format="q8_0")
    assert "--format stored" in caught.value.hint


def check_packed(model_type: str, path: Path) -> None:
    """A random placement in q8_0 gives what the model gives with the same weights."""
    tiny_model_of(model_type).save_pretrained(path)
    checkpoint = read_checkpoint(path)
    loaded = load(
        make_placement(checkpoint, random_tiers(checkpoint, 1)),
        checkpoint,
        device="cpu",
        dtype="float32",
        weight_format="q8_0",
    )
    whole = quantised_reference(path, "q8_0")
    seen: dict[str, tuple[torch.Tensor, ...]] = {}
    for experts in find_moe_layers(whole):
        experts.module.register_forward_hook(
            lambda _, given, output, name=experts.name: seen.update({name: (*given, output)})
        )
    ids = list(range(3, 19))
    with torch.inference_mode():
        whole(input_ids=torch.tensor([ids]))
    loaded.meter.begin("prefill", len(ids))
    for experts in find_moe_layers(loaded.model):
        *given, expected = seen[experts.name]
        with torch.inference_mode():
            ours = experts.module(*given)
            one = experts.module(*(tensor[:1] for tensor in given))
        # The activations are rounded to 8 bits, twice.
        error = (ours - expected).norm() / expected.norm()
        assert 0 < error < 0.03
        assert torch.equal(one, ours[:1]), "a token's experts do not depend on its batch"


# Refusals


def test_a_plan_with_a_format_is_run_in_it_and_in_no_other(bundled: Checkpoint) -> None:
    planned = make_placement(bundled, weight_format="q4_0")
    assert load(planned, bundled, device="cpu").experts.weight_format == "q4_0"
    with pytest.raises(PlacementError, match="experts in q4_0, not in q8_0"):
        load(planned, bundled, device="cpu", weight_format="q8_0")


def test_experts_that_a_plan_leaves_open_run_like_the_others_and_that_is_said(
    bundled: Checkpoint,
) -> None:
    planned = make_placement(bundled, weight_format="q4_0")
    left_open = make_placement(bundled).layers[1:]
    mixed = replace(planned, layers=(planned.layers[0], *left_open))
    lines: list[str] = []
    loaded = load(mixed, bundled, device="cpu", tell=lines.append)
    assert loaded.experts.weight_format == "q4_0"
    assert len(lines) == 1  # five of six layers of 32 experts
    assert "leaves the format of 160 experts open (as_stored): they run in q4_0" in lines[0]
    lines.clear()
    load(planned, bundled, device="cpu", tell=lines.append)
    load(make_placement(bundled), bundled, device="cpu", weight_format="q4_0", tell=lines.append)
    assert lines == []


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bfloat16", "bf16"), ("float32", "stored"), ("auto", "bf16")]
)
def test_a_format_that_is_left_open_loses_no_precision(
    dtype: str, expected: str, bundled: Checkpoint
) -> None:
    loaded = load(make_placement(bundled), bundled, device="cpu", dtype=dtype)
    assert loaded.experts.weight_format == expected


def test_an_unknown_format_is_refused(bundled: Checkpoint) -> None:
    with pytest.raises(UnsupportedModelError, match="format 'q5_1'") as caught:
        load(make_placement(bundled), bundled, device="cpu", weight_format="q5_1")
    assert "q8_0" in caught.value.hint


def test_overflowing_activations_are_an_error(bundled: Checkpoint) -> None:
    loaded = load(make_placement(bundled), bundled, device="cpu", weight_format="q8_0")
    loaded.model.model.layers[0].post_attention_layernorm.weight.data.fill_(float("inf"))
    with pytest.raises(UnsupportedModelError, match="not finite"):
        loaded.forward([1, 2, 3], "prefill")


def test_counts_are_those_of_the_stored_format_in_float32(bundled: Checkpoint) -> None:
    """The first layer's routing does not depend on the experts, so its counts must agree."""
    counts = []
    for weight_format in ("stored", "q8_0"):
        loaded = load(
            make_placement(bundled),
            bundled,
            device="cpu",
            dtype="float32",
            weight_format=weight_format,
        )
        step = loaded.forward(list(range(40)), "prefill")
        loaded.forward([7], "decode", step.cache, 40)
        counts.append((loaded.meter.assignments[:, 0], loaded.meter.reads[:, 0]))
    for stored, packed in zip(*counts, strict=True):
        np.testing.assert_array_equal(stored, packed)
        assert stored.sum() > 0
