import numpy as np
import pytest
from builders import make_counts, make_shape
from synthetic import Routing, make_trace

from moeprof.analyze import OVERALL, AnalysisSettings, analyze
from moeprof.analyze.merging import merging
from moeprof.analyze.sample import Sample

WIDE = make_shape(moe_layers=(0, 1), num_experts=32, top_k=2)
ONLY = AnalysisSettings(sections=("domains",), resamples=60, share=0.25)


def test_merging_by_hand():
    # sets of one cell; the domains weigh 10 and 5 assignments a document
    cells = make_counts({"a": [[[7, 3, 0, 0]]] * 40, "b": [[[0, 1, 4, 0]]] * 40})
    sample = Sample(cells, OVERALL, "prefill", AnalysisSettings(share=0.25, resamples=10))
    found = merging(sample, 2)
    assert found[:, 0] == pytest.approx(
        np.array([[0.7, 0.8, 44 / 60], [0.7, 0.0, 28 / 60], [0.0, 0.8, 16 / 60]])
    )
    assert found[:, 1] == pytest.approx(found[:, 0])  # documents that do not differ: no doubt
    assert found[:, 2] == pytest.approx(found[:, 0])


def test_disjoint_domains_lose_what_the_other_takes(tmp_path):
    routing = {"a": Routing(1.0, experts=range(16)), "b": Routing(1.0, experts=range(16, 32))}
    trace = make_trace(tmp_path / "made", routing, 10, (0, 400), ("a", "b"), WIDE)
    made = analyze(trace, ONLY)
    chance = np.sort(routing["a"].inclusion(WIDE))[::-1] / 2
    # a quarter of 2 x 32 cells: 8 of each layer alone, 4 of each layer and domain merged
    specialist, merged = chance[:8].sum(), chance[:4].sum()
    rows = made.merging.set_index("domain")
    for domain in ("a", "b", OVERALL):
        row = rows.loc[domain]
        assert row["specialist"] == pytest.approx(specialist, abs=0.02)
        assert row["merged"] == pytest.approx(merged, abs=0.02)
        assert row["loss_low"] <= specialist - merged <= row["loss_high"] + 0.01


def test_domains_that_route_alike_lose_nothing(tmp_path):
    trace = make_trace(
        tmp_path / "made", Routing(1.0, spread=0.3), 20, (0, 200), ("a", "b"), WIDE, seed=2
    )
    rows = analyze(trace, ONLY).merging
    # with twice the text to choose on, the merged set is no worse
    assert (rows["loss_low"] <= 0).all()
    assert rows["loss"].max() < 0.01


def test_a_domain_with_one_document_has_no_specialist():
    cells = make_counts({"a": [[[7, 3]]] * 4, "b": [[[1, 4]]]})
    found = merging(Sample(cells, OVERALL, "prefill", AnalysisSettings(share=0.5)), 2)
    assert np.isnan(found[0, 0]).tolist() == [False, True, True]
    assert found[1, 0].tolist() == pytest.approx([0.7, 0.2, 29 / 45])


def test_a_single_domain_has_nothing_to_merge():
    assert analyze(make_counts({"a": [[[7, 3]]] * 4}), ONLY).merging.empty
