import numpy as np
import pytest
from builders import make_counts, make_shape
from synthetic import Routing, make_trace

from moeprof.analyze import OVERALL, AnalysisSettings, analyze
from moeprof.analyze.drift import PARTS, part_of_groups, place_differences, trace_drift

WIDE = make_shape(moe_layers=(0, 1), num_experts=32, top_k=2)
ONLY = AnalysisSettings(sections=("drift",), resamples=100, share=0.25)


def drifted(tmp_path, routing, documents=16, tokens=(0, 300), **more):
    return analyze(make_trace(tmp_path / "made", routing, documents, tokens, **more), ONLY)


def test_parts_are_cut_in_every_domain_by_age():
    assert part_of_groups(np.array([0] * 8 + [1] * 4)).tolist() == [
        0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3]  # fmt: skip


def test_a_document_that_is_served_alike_everywhere_differs_nowhere():
    served = np.array([[2, 4, 6], [3, 0, 1]])
    total = np.array([[10, 20, 30], [6, 0, 2]])
    assert place_differences(served, total).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_differences_are_taken_inside_documents():
    # 3 of 4 and 1 of 4 in one document, half in all; the other has nothing in the second place
    found = place_differences(np.array([[3, 1], [8, 0]]), np.array([[4, 4], [8, 0]]))
    assert found.tolist() == [[1, -1], [0, 0]]


def test_routing_that_stays_has_no_drift(tmp_path):
    made = drifted(tmp_path, Routing(exponent=1.0, spread=0.3), shape=WIDE)
    trace = made.trace_drift
    assert trace["part"].tolist() == [2, 3, 4]
    assert trace["p_value"].iloc[0] > 0.05
    inside = (trace["shuffled_low"] <= trace["coverage"]) & (
        trace["coverage"] <= trace["shuffled_high"]
    )
    assert inside.all()
    place = made.place_drift
    assert place["first"].tolist() == [0, 16, 64, 256]
    assert place["last"].tolist() == [15, 63, 255, 1023]
    assert place["assignments"].tolist() == [16 * 4 * n for n in (16, 48, 192, 44)]
    outside = (place["difference_low"] > 0) | (place["difference_high"] < 0)
    assert outside.sum() <= 1


def test_a_drifting_trace_is_noticed(tmp_path):
    made = drifted(tmp_path, Routing(exponent=1.0, drift=1.0), shape=WIDE)
    trace = made.trace_drift
    assert trace["p_value"].iloc[0] <= 0.02
    assert trace["coverage"].is_monotonic_decreasing
    assert trace["coverage"].iloc[-1] < trace["shuffled_low"].iloc[-1]


def test_a_fading_document_is_noticed_and_the_trace_is_not_blamed(tmp_path):
    # at the end popularity has moved half of the way to its reverse, which is even for all ranks
    made = drifted(tmp_path, Routing(exponent=1.0, fade=0.5), shape=WIDE)
    assert made.trace_drift["p_value"].iloc[0] > 0.05
    place = made.place_drift
    assert place["difference_low"].iloc[1] > 0
    assert place["difference_high"].iloc[-1] < 0
    assert place["coverage"].iloc[-1] < place["coverage"].iloc[1]


def test_the_coverage_by_place_is_that_of_sets_chosen_on_other_documents(tmp_path):
    trace = make_trace(tmp_path / "made", Routing(exponent=1.0), 6, (0, 40), shape=WIDE)
    made = analyze(trace, AnalysisSettings(share=0.25, resamples=5))
    at = made.coverage[made.coverage["share"] == 0.25].iloc[0]
    place = made.place_drift
    served = (place["coverage"] * place["assignments"]).sum() / place["assignments"].sum()
    assert served == pytest.approx(at["held_out"])


def test_trace_drift_of_hand_made_parts():
    counts = np.array([[9, 1, 0], [8, 2, 0], [2, 8, 0], [1, 9, 0]])
    found = trace_drift(counts, np.zeros(4, int), np.ones(3, int), 1, np.random.default_rng(0), 50)
    assert found.coverage.tolist() == [0.8, 0.2, 0.1]
    assert found.shuffled.shape == (50, PARTS - 1)
    # of the 24 orders, two (this one and its mirror image) fall as steeply
    assert found.p_value == pytest.approx(2 / 24, abs=0.08)


def test_more_documents_than_groups_are_put_in_the_order_of_tracing(tmp_path):
    narrow = make_shape(moe_layers=(0,), num_experts=16, top_k=1)
    made = drifted(
        tmp_path, Routing(exponent=1.5, drift=1.0), documents=150, tokens=(0, 10), shape=narrow
    )
    assert made.samples["document_groups"].tolist() == [64]
    trace = made.trace_drift
    assert trace["p_value"].iloc[0] <= 0.02
    assert trace["coverage"].iloc[-1] < trace["shuffled_low"].iloc[-1]


def test_domains_that_follow_each_other_are_no_drift(tmp_path):
    routing = {"a": Routing(1.0, experts=range(16)), "b": Routing(1.0, experts=range(16, 32))}
    made = drifted(tmp_path, routing, 8, domains=("a", "b"), shape=WIDE)
    overall = made.trace_drift[made.trace_drift["domain"] == OVERALL]
    assert overall["p_value"].iloc[0] > 0.05


def test_too_few_documents_for_parts_have_no_trace_drift():
    made = analyze(make_counts({"text": [[[3, 1]]] * 3}), ONLY)
    assert made.trace_drift.empty
