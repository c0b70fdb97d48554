"""From times of layers to times of experts: exact where times lie on the line that is sought."""

from pathlib import Path

import numpy as np
import pytest

from moeprof.checkpoint import read_checkpoint
from moeprof.checkpoint.modules import find_moe_layers
from moeprof.placement.tier import Tier
from moeprof.runtime.dictation import Dictation, Routing
from moeprof.runtime.layer_timing import BATCHES, Decoding, Line, Prefilling
from moeprof.runtime.loader import load_split
from moeprof.runtime.measurement import step_outside

FREE = {Tier.VRAM: 0.0, Tier.RAM: 0.0}


def test_a_line_goes_through_its_points_and_is_never_below_its_floors() -> None:
    assert Line.through({1: 5.0, 4: 11.0}) == Line(3.0, 2.0)
    assert Line.through({1: 5.0, 4: 11.0}, least_slope_s=2.5) == Line(2.5, 2.5)
    assert Line.through({1: 5.0, 4: 4.0}, 0.5, 4.75) == Line(4.75, 0.5)


def test_a_single_number_of_pieces_is_all_slope() -> None:
    assert Line.through({4: 8.0}) == Line(0.0, 2.0)


@pytest.mark.parametrize(
    ("routing", "expected"),
    [
        (Routing.of_token(1, 2), [[10, 11, 12]]),
        (Routing(2, 0, 3, 2), [[10, 11], [10, 11], [10, 11]]),
        (Routing(0, 4, 2, 2), [[10, 11], [12, 13], [10, 11], [12, 13]]),
        (Routing(1, 0, 3, 1), [[10], [10], [10]]),
    ],
)
def test_every_expert_is_given_its_tokens(routing: Routing, expected: list[list[int]]) -> None:
    experts = np.arange(10, 10 + routing.num_experts)
    slots = routing.slots(experts)
    assert slots.tolist() == expected
    assert (np.bincount(slots.ravel())[10:] == routing.num_tokens).all()


@pytest.mark.parametrize("tokens", [1, 4])
def test_what_is_dictated_is_what_layers_compute(tiny_model: Path, tokens: int) -> None:
    checkpoint = read_checkpoint(tiny_model)
    shape = checkpoint.shape
    tiers = np.full((shape.num_moe_layers, shape.num_experts), Tier.RAM, np.uint8)
    tiers[:, :4] = Tier.VRAM
    loaded = load_split(checkpoint, tiers, device="cpu")
    num_forwards = 3
    routing = Routing(2, 0, tokens, 2)
    with Dictation(loaded, [routing], tokens) as dictation:
        for _ in range(num_forwards):
            dictation.start_forward(measured=True)
            loaded.forward(list(range(tokens)), "prefill", keep_cache=False)
            assert dictation.inside_s > 0
    assert list(dictation.medians()) == [routing]
    counts = loaded.meter.assignments[0]
    assert (counts.sum(axis=1) == num_forwards * tokens * 2).all()
    assert (counts[:, 4:] == 0).all()
    assert (counts % tokens == 0).all()
    loaded.forward(list(range(tokens)), "prefill", keep_cache=False)  # routed by the model again
    assert len(find_moe_layers(loaded.model)) == shape.num_moe_layers
    assert (loaded.meter.assignments[0].sum(axis=1) == (num_forwards + 1) * tokens * 2).all()
    assert (loaded.meter.assignments[0, :, 4:] > 0).any()


def test_decoding_gives_back_the_lines_that_its_times_lie_on() -> None:
    most, vram, ram = 8, Line(10.0, 2.0), Line(16.0, 5.0)
    layer_s = {Routing.of_token(k, 0): 10.0 + 2.0 * k for k in (1, most)}
    layer_s |= {Routing.of_token(0, k): 16.0 + 5.0 * k for k in (1, most)}
    both = Routing.of_token(4, 4)
    side_by_side = Decoding(most, 1.0, layer_s | {both: 10.0 + max(4 * 2.0, 6.0 + 4 * 5.0)})
    assert side_by_side.lines(FREE) == {Tier.VRAM: vram, Tier.RAM: ram}
    assert side_by_side.overlaps(side_by_side.lines(FREE))
    in_turn = Decoding(most, 1.0, layer_s | {both: 10.0 + 4 * 2.0 + 6.0 + 4 * 5.0})
    assert not in_turn.overlaps(in_turn.lines(FREE))
    floored = side_by_side.lines({Tier.VRAM: 3.0, Tier.RAM: 0.0})
    assert floored == {Tier.VRAM: Line(9.0, 3.0), Tier.RAM: ram}


@pytest.mark.parametrize("most", [1, 4])
def test_prefilling_gives_back_what_its_times_are_made_of(most: int) -> None:
    num_layers, fixed, outside, per_token = 3, 7.0, 100.0, 0.5
    expert_s = {Tier.VRAM: Line(2.0, 0.25), Tier.RAM: Line(6.0, 1.5)}
    layer_s = {}
    for n in BATCHES:
        for tier, line in expert_s.items():
            for count in (most, 2 * most):
                vram, ram = (count, 0) if tier is Tier.VRAM else (0, count)
                one = line.fixed_s + line.slope_s * n
                layer_s[Routing(vram, ram, n, most)] = fixed + count * one
    dense_s = {n: outside + per_token * 2 * n for n in BATCHES}
    found = Prefilling(num_layers, dense_s, layer_s)
    assert found.lines(FREE) == expert_s
    assert found.outside(FREE) == Line(outside + num_layers * fixed, per_token)
    floored = found.lines({Tier.VRAM: 2.5, Tier.RAM: 0.0})[Tier.VRAM]
    assert floored == Line(2.5, 0.25)


def test_a_step_is_left_without_what_grows_with_its_experts() -> None:
    # two layers: dense, VRAM, RAM (beside the others), waiting
    spent_s = np.array([[3.0, 5.0, 9.0, 4.0], [2.0, 7.0, 9.0, 0.0]])
    # 20 - (5 + 4 + 7 + 0) = 4 outside, and of 12 in VRAM all but 3 experts of 3 are fixed
    assert step_outside(20.0, spent_s, np.array([1.0, 2.0]), 3.0) == 4.0 + 3.0
    assert step_outside(20.0, spent_s, np.array([3.0, 2.0]), 3.0) == 4.0
