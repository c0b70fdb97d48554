import numpy as np
import pytest
from builders import make_shape
from builders import make_trace as write_trace
from synthetic import Routing, block_of, make_trace

from moeprof.analyze import AnalysisSettings, analyze
from moeprof.analyze.coactivation import expected_weights, standing_out

WIDE = make_shape(moe_layers=(0, 1), num_experts=16, top_k=4)
ONLY = AnalysisSettings(sections=("coactivation",), resamples=60)


def test_expected_pairs_add_up_to_those_that_each_expert_is_in():
    counts = np.array([[40, 30, 20, 10, 0], [7, 7, 7, 7, 7]])
    weights = expected_weights(counts, 3)
    table = weights[:, :, None] * weights[:, None, :]
    table[:, np.arange(5), np.arange(5)] = 0
    assert table.sum(axis=2) == pytest.approx(2 * counts, rel=1e-6, abs=1e-9)


def test_experts_used_alike_are_expected_together_alike():
    weights = expected_weights(np.full(6, 10), 2)  # 30 tokens, 15 pairs
    assert weights**2 == pytest.approx(np.full(6, 2.0))


def test_pairs_that_stand_out_most_come_first():
    together = np.array([[0, 9, 1], [9, 0, 4], [1, 4, 0]])
    expected = np.array([[0, 3.0, 3], [3, 0, 1], [3, 1, 0]])
    assert standing_out(together, expected).tolist() == [[0, 1]]
    many = np.zeros((21, 21))
    many[3, 4] = many[4, 3] = 5
    many[0, 20] = many[20, 0] = 9
    found = standing_out(many.astype(int), np.full((21, 21), 1.0))
    assert found.tolist() == [[0, 20], [3, 4]]  # 1 % of 210 pairs


def test_random_company_has_a_lift_of_one_on_other_documents(tmp_path):
    trace = make_trace(tmp_path / "made", Routing(spread=0.6), 16, (0, 150), shape=WIDE)
    made = analyze(trace, ONLY)
    row = made.coactivation[made.coactivation["layer"].isna()].iloc[0]
    assert row["in_sample"] > 1.1  # the pair was chosen because it stood out by chance
    assert row["held_out_low"] < 1 < row["held_out_high"]


def test_experts_that_always_come_together_are_found(tmp_path):
    rng = np.random.default_rng(0)
    documents, tokens, shape = 6, 100, make_shape(moe_layers=(5,), num_experts=12, top_k=2)
    experts = rng.random((documents * tokens, 12)).argsort(axis=1)[:, :2]
    twins = rng.random(len(experts)) < 0.25
    others = np.isin(experts, (3, 8)).any(axis=1)
    experts[others | twins] = (3, 8)
    block = block_of(experts[None], np.repeat(np.arange(documents), tokens))
    made = analyze(write_trace(tmp_path / "made", {"text": block}, shape), ONLY)
    best = made.pairs.iloc[0]
    assert [best["layer"], best["expert"], best["other"]] == [5, 3, 8]
    assert best["together"] == np.count_nonzero((experts == (3, 8)).all(axis=1))
    row = made.coactivation.iloc[0]
    assert row["held_out"] == pytest.approx(best["together"] / best["expected"])
    assert row["held_out"] == row["in_sample"] > 2


def test_a_router_that_chooses_one_expert_has_no_pairs(tmp_path):
    shape = make_shape(num_experts=4, top_k=1)
    made = analyze(make_trace(tmp_path / "made", shape=shape), ONLY)
    assert made.coactivation.empty and made.pairs.empty


def test_a_single_document_has_pairs_but_none_held_out(tmp_path):
    made = analyze(make_trace(tmp_path / "made", documents=1, shape=WIDE), ONLY)
    assert made.coactivation["held_out"].isna().all()
    assert made.coactivation["in_sample"].notna().all()
