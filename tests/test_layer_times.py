"""Where the time of decoded tokens goes: what must hold of it, whatever the machine."""

import time
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import make_expert, make_rows, on_a_line
from placing import make_placement

from moeprof.checkpoint import read_checkpoint
from moeprof.native import ExpertLayer, Workers, reference
from moeprof.placement.tier import Tier
from moeprof.runtime import LoadOptions, RunReport, Sampling, Session, load

PROMPT = "hello"


def run(model: Path, tier: Tier | None, max_new_tokens: int = 6, **options: object) -> RunReport:
    """A run with every expert in one tier, or, with None, some in both."""
    checkpoint = read_checkpoint(model)
    shape = checkpoint.shape
    tiers = np.full((shape.num_moe_layers, shape.num_experts), tier or Tier.VRAM, np.uint8)
    if tier is None:
        tiers[:, ::2] = Tier.RAM
    given: LoadOptions = {"device": "cpu", **options}
    session = Session(load(make_placement(checkpoint, tiers), checkpoint, **given))
    session.generate(PROMPT, Sampling(max_new_tokens))
    return session.report()


@pytest.mark.parametrize("weight_format", ["q8_0", "stored"])
def test_all_parts_of_a_token_together_are_its_time(tiny_model: Path, weight_format: str) -> None:
    report = run(tiny_model, None, weight_format=weight_format, layer_times=True)
    times = report.layer_times
    assert times is not None and times.note is None
    assert [layer.layer for layer in times.layers] == list(report.moe_layers)
    parts = [(t.dense_s, t.vram_s, t.ram_s, t.waiting_s) for t in times.layers]
    assert np.min(parts) >= 0 and times.rest_s > 0
    assert min(layer.dense_s for layer in times.layers) > 0
    phase = report.phases["decode"]
    assert np.sum(parts) + times.rest_s == pytest.approx(phase.seconds / phase.tokens)


@pytest.mark.parametrize("weight_format", ["q8_0", "stored"])
@pytest.mark.parametrize("tier", [Tier.VRAM, Tier.RAM])
def test_a_tier_without_experts_takes_no_time(
    tiny_model: Path, tier: Tier, weight_format: str
) -> None:
    times = run(tiny_model, tier, weight_format=weight_format, layer_times=True).layer_times
    assert times is not None
    used = [t.vram_s if tier is Tier.VRAM else t.ram_s for t in times.layers]
    unused = [t.ram_s if tier is Tier.VRAM else t.vram_s for t in times.layers]
    assert min(used) > 0
    assert max(unused) == 0


@pytest.mark.parametrize("weight_format", ["q8_0", "stored"])
def test_being_timed_changes_no_token_and_unasked_there_are_no_times(
    tiny_model: Path, weight_format: str
) -> None:
    asked = run(tiny_model, None, weight_format=weight_format, layer_times=True)
    unasked = run(tiny_model, None, weight_format=weight_format)
    assert asked.token_ids == unasked.token_ids
    assert unasked.layer_times is None


def test_a_run_without_decoding_says_that_there_are_no_times(tiny_model: Path) -> None:
    times = run(tiny_model, None, 1, weight_format="q8_0", layer_times=True).layer_times
    assert times is not None
    assert times.layers == ()
    assert times.note == "no token was decoded, so there are no layer times"


def test_the_kernel_times_each_group_of_experts_and_gives_the_same_bits() -> None:
    hidden, width, top_k = 64, 32, 3
    layer = ExpertLayer(hidden, width, 4, top_k, "q8_0")
    for expert_id in range(4):
        expert = make_expert(expert_id, hidden, width, "q8_0")
        layer.set_expert(expert_id, on_a_line(reference.pack_expert(expert)))
    rows, ids = make_rows(1, 1, hidden), np.array([[0, 3, 1]])
    weights = np.ones((1, top_k), np.float32)
    group_of = np.array([0, 2, 1, 0], np.uint8)  # the group of the unused expert stays at 0
    nanoseconds = np.zeros(3, np.uint64)
    outputs = np.zeros((2, 1, hidden), np.float32)
    workers = Workers(2)
    addresses = rows.ctypes.data, "float32", ids.ctypes.data, weights.ctypes.data, "float32", 1
    layer.forward(workers, *addresses, outputs[0].ctypes.data)
    begun = time.perf_counter_ns()
    layer.forward(
        workers,
        *addresses,
        outputs[1].ctypes.data,
        group_of=group_of.ctypes.data,
        nanoseconds=nanoseconds.ctypes.data,
    )
    passed = time.perf_counter_ns() - begun
    assert outputs[0].tobytes() == outputs[1].tobytes()
    assert nanoseconds[0] > 0 and nanoseconds[2] > 0
    assert nanoseconds[1] == 0
    assert int(nanoseconds.sum()) <= passed * workers.num_threads
