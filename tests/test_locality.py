import numpy as np
import pytest
from builders import make_counts, make_shape
from builders import make_trace as write_trace
from synthetic import Routing, block_of, make_trace

from moeprof.analyze import AnalysisSettings, analyze
from moeprof.analyze.locality import lru_hits, reuse_quantiles, unrelated_overlap
from moeprof.native import NO_EXPERT
from moeprof.trace import open_trace

WIDE = make_shape(moe_layers=(0, 1), num_experts=16, top_k=4)
ONLY = AnalysisSettings(sections=("locality",), resamples=100)


def made_of(tmp_path, experts, shape, sequence, decode=0, **capture):
    """The analysis of a trace with just these experts, [L, T, K]."""
    block = block_of(experts, sequence, decode)
    return analyze(write_trace(tmp_path / "made", {"text": block}, shape, **capture), ONLY)


def lag(made, number, **where):
    frame = made.lag_overlap[made.lag_overlap["lag"] == number]
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame.iloc[0]


def test_overlap_by_hand_stays_inside_documents(tmp_path):
    shape = make_shape(moe_layers=(0,), num_experts=6, top_k=2)
    experts = [[[0, 1], [1, 2], [2, 1], [2, 1], [5, 4]]]
    made = made_of(tmp_path, experts, shape, [0, 0, 0, 1, 1])
    assert made.lag_overlap["lag"].tolist() == [1, 2]
    assert lag(made, 1)["overlap"] == (1 + 2 + 0) / 6
    assert lag(made, 2)["overlap"] == 1 / 2
    assert lag(made, 1)["uniform"] == 2 / 6
    layer = made.locality_layers.iloc[0]
    assert layer["overlap"] == 0.5
    # first uses: 0 1 2 in the first document, 2 1 5 4 in the second
    assert layer["first_uses"] == 7 / 10
    # reuses: 1 after its own token (distance 0), 2 the same, 1 (after 2: distance 1)
    assert [layer["reuse_50"], layer["reuse_95"]] == [0, 1]
    assert [layer["reuse_50_bytes"], layer["reuse_95_bytes"]] == [0, 1000]


def test_prefill_and_decode_are_apart_unless_added(tmp_path):
    shape = make_shape(moe_layers=(0,), num_experts=4, top_k=1)
    experts = [[[0], [0], [0], [1]]]
    made = made_of(tmp_path, experts, shape, [0] * 4, decode=2)
    assert lag(made, 1, phase="prefill")["overlap"] == 1
    assert lag(made, 1, phase="decode")["overlap"] == 0
    both = analyze(
        open_trace(tmp_path / "made"), AnalysisSettings(sections=("locality",), phase="all")
    )
    assert lag(both, 1, phase="all")["overlap"] == 2 / 3


def test_a_token_without_experts_in_a_layer_is_in_no_pair(tmp_path):
    shape = make_shape(moe_layers=(0,), num_experts=4, top_k=2)
    experts = [[[0, 1], [NO_EXPERT] * 2, [0, NO_EXPERT], [0, 3]]]
    made = made_of(tmp_path, experts, shape, [0] * 4)
    assert lag(made, 1)["overlap"] == 1
    assert lag(made, 2)["overlap"] == 1 / 2


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_overlap_of_sticky_tokens_decays_as_the_chance_to_keep_them(tmp_path, keep):
    trace = make_trace(tmp_path / "made", Routing(keep=keep), 12, (300, 100), shape=WIDE, seed=3)
    made = analyze(trace, ONLY)
    outside = 0
    for phase in ("prefill", "decode"):
        for number in (1, 2, 4, 8):
            row = lag(made, number, phase=phase)
            truth = keep**number + (1 - keep**number) * 4 / 16
            assert row["overlap"] == pytest.approx(truth, abs=0.03)
            outside += not row["overlap_low"] <= truth <= row["overlap_high"]
            assert row["unrelated"] == pytest.approx(4 / 16, abs=0.01)
    assert outside <= 2


def test_even_routing_hits_an_lru_cache_in_proportion_to_its_size(tmp_path):
    trace = make_trace(tmp_path / "made", None, 4, (0, 2000), shape=WIDE)
    made = analyze(trace, ONLY)
    for _, row in made.lru.iterrows():
        assert row["hit_rate"] == pytest.approx(row["share"], abs=0.02)
        assert row["bytes"] == row["experts"] * 2 * 1000


def test_lru_equals_a_plain_replay_of_every_size(tmp_path):
    trace = make_trace(tmp_path / "made", Routing(0.8, keep=0.3), 3, (0, 60), shape=WIDE, seed=1)
    made = analyze(trace, ONLY)
    routing = [trace.routing(layer) for layer in WIDE.moe_layers]
    for size in range(4, 17):
        hits = 0
        for layer in routing:
            recent, before = [], None
            for sequence, experts in zip(layer.sequence, layer.experts.tolist(), strict=True):
                if sequence != before:
                    recent, before = [], sequence
                hits += len(set(experts) & set(recent))
                recent = ([e for e in recent if e not in experts] + experts)[-size:]
        row = made.lru[made.lru["experts"] == size].iloc[0]
        assert row["hit_rate"] == pytest.approx(hits / (3 * 60 * 4 * 2))


def test_lru_hits_are_running_sums_of_reuse_distances():
    assert lru_hits(np.array([3, 2, 0, 5])).tolist() == [3, 5, 5]


def test_reuse_quantiles_leave_first_uses_out():
    found = reuse_quantiles(np.array([[5, 4, 1, 90], [0, 0, 0, 7]]), (0.5, 0.9, 1.0))
    assert found[0].tolist() == [0, 1, 2]
    assert np.isnan(found[1]).all()


def test_unrelated_overlap_is_the_mean_over_pairs_of_documents():
    counts = np.array([[[2, 2, 0]], [[1, 0, 1]]])
    # two tokens {0, 1} and one token {0, 2}: each of the two pairs shares one of two experts
    assert unrelated_overlap(counts, 2) == 0.5
    assert np.isnan(unrelated_overlap(counts[:1], 2))


def test_unrelated_overlap_equals_that_of_all_pairs_of_tokens(tmp_path):
    trace = make_trace(tmp_path / "made", Routing(1.0, spread=0.5), 3, (0, 20), shape=WIDE)
    made = analyze(trace, ONLY)
    shared = held = 0
    for layer in WIDE.moe_layers:
        routing = trace.routing(layer)
        sets = [set(row) for row in routing.experts.tolist()]
        for i, one in enumerate(sets):
            for j, other in enumerate(sets):
                if routing.sequence[i] != routing.sequence[j]:
                    shared, held = shared + len(one & other), held + len(one)
    assert lag(made, 1)["unrelated"] == pytest.approx(shared / held)


def test_counts_alone_have_no_locality():
    assert analyze(make_counts({"text": [[[3, 1]]] * 3}), ONLY).lag_overlap.empty
