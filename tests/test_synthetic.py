import numpy as np
import pytest
from builders import make_shape
from synthetic import Routing, draw, inclusion, make_trace, route

WIDE = make_shape(moe_layers=(0, 1, 2), num_experts=16, top_k=4)


def routed(routing, tokens=(4000, 4000), age=0.0, shape=WIDE):
    return route(routing, shape, tokens, age, np.random.default_rng(0)).astype(int)


def frequency(experts):
    chosen = (experts[..., None] == np.arange(WIDE.num_experts)).sum(axis=2)
    return chosen.mean(axis=1)


def overlap(before, after):
    return (before[..., :, None] == after[..., None, :]).sum(axis=(-1, -2)).mean() / WIDE.top_k


def test_inclusion_chances_follow_the_weights_and_never_pass_one():
    assert inclusion(np.array([8.0, 1.0, 1.0, 0.0]), 2).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert inclusion(np.array([2.0, 1.0, 1.0]), 1).tolist() == [0.5, 0.25, 0.25]


def test_drawn_experts_differ_and_have_the_inclusion_chances():
    chance = inclusion(np.arange(1.0, 9.0), 3)
    drawn = draw(np.tile(chance, (40_000, 1)), 3, np.random.default_rng(0))
    assert all(len(set(row)) == 3 for row in drawn[:500].tolist())
    found = np.bincount(drawn.ravel(), minlength=8) / len(drawn)
    assert found == pytest.approx(chance, abs=5 * 0.5 / np.sqrt(40_000))


@pytest.mark.parametrize("exponent", [0.0, 1.2])
def test_experts_are_chosen_as_often_as_expected(exponent):
    routing = Routing(exponent=exponent)
    assert frequency(routed(routing)) == pytest.approx(routing.expected(WIDE), abs=0.03)


def test_sticky_tokens_keep_the_experts_of_the_token_before():
    experts = routed(Routing(keep=0.6))
    assert overlap(experts[:, :-1], experts[:, 1:]) == pytest.approx(0.6 + 0.4 * 0.25, abs=0.02)
    across = routed(Routing(keep=1.0), (3, 3))
    assert (across[:, 0] == across[:, 2]).all()
    assert not (across[:, 2] == across[:, 3]).all()


def test_linked_layers_choose_the_image_of_the_layer_before():
    routing = Routing(exponent=0.5, link=1.0)
    experts, order = routed(routing, (50, 50)), routing.busiest(WIDE)
    ranks = np.stack([np.argsort(order[row])[experts[row]] for row in range(3)])
    assert (ranks[1:] == ranks[0]).all()
    assert len({tuple(row) for row in order.tolist()}) == 3


def test_drift_and_fade_end_with_the_busiest_idlest():
    routing = Routing(exponent=1.0, drift=1.0)
    order = routing.busiest(WIDE)
    late = np.take_along_axis(frequency(routed(routing, age=1.0)), order, axis=1)
    assert late == pytest.approx(np.tile(routing.inclusion(WIDE)[::-1], (3, 1)), abs=0.03)
    fading = routed(Routing(exponent=1.0, fade=1.0))
    first = np.take_along_axis(frequency(fading[:, :800]), order, axis=1)
    last = np.take_along_axis(frequency(fading[:, -800:]), order, axis=1)
    assert (first[:, 0] > 0.8).all() and (last[:, 0] < 0.2).all()


def test_a_made_trace_is_intact_and_its_domains_are_disjoint(tmp_path):
    routing = {"a": Routing(experts=range(8)), "b": Routing(experts=range(8, 16))}
    trace = make_trace(tmp_path / "made", routing, 3, (5, 4), ("a", "b"), WIDE)
    trace.verify()
    cells = trace.cell_counts()
    assert cells.counts.sum(axis=(2, 3))[:, 0].tolist() == [5 * 4 * 3] * 6
    assert cells.counts.sum(axis=(2, 3))[:, 1].tolist() == [4 * 4 * 3] * 6
    assert not cells.select("a")[..., 8:].any()
    assert not cells.select("b")[..., :8].any()
    assert trace.documents()["document_group"].tolist() == [0, 1, 2] * 2


def test_the_same_seed_makes_the_same_trace(tmp_path):
    made = [
        make_trace(tmp_path / str(i), Routing(spread=0.5), 2, seed=seed)
        for i, seed in enumerate((3, 3, 4))
    ]
    assert made[0].digest == made[1].digest != made[2].digest
