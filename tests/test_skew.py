import numpy as np
import pytest
from builders import make_counts, make_shape
from synthetic import Routing, make_trace

from moeprof.analyze import AnalysisSettings, analyze
from moeprof.analyze.skew import cells_carrying, gini, normalised_entropy, used_share

WIDE = make_shape(moe_layers=(0, 1), num_experts=32, top_k=1)


def test_gini_by_hand():
    # mean absolute difference of all ordered pairs over twice the mean: (3 + 3 + 0) x 2 / 9 / 2
    assert gini(np.array([0, 0, 3])) == pytest.approx(2 / 3)
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
    assert gini(np.array([5, 5, 5])) == 0


def test_gini_equals_the_mean_absolute_difference_of_all_pairs():
    counts = np.random.default_rng(0).integers(0, 50, (4, 9))
    pairs = np.abs(counts[:, :, None] - counts[:, None, :]).mean(axis=(1, 2))
    assert gini(counts) == pytest.approx(pairs / (2 * counts.mean(axis=1)))


def test_entropy_by_hand():
    found = normalised_entropy(np.array([[1, 1, 0, 0], [2, 2, 2, 2], [0, 7, 0, 0]]))
    assert found.tolist() == [0.5, 1.0, 0.0]


def test_a_silent_layer_has_no_skew():
    silent = np.zeros((1, 4), np.int64)
    assert np.isnan(gini(silent)).all()
    assert np.isnan(normalised_entropy(silent)).all()
    assert np.isnan(cells_carrying(silent)).all()
    assert used_share(silent).tolist() == [0.0]


def test_cells_that_carry_a_share_are_the_fewest():
    counts = np.array([1, 5, 0, 4])
    assert cells_carrying(counts, (0.4, 0.5, 0.51, 0.9, 0.91, 1.0)).tolist() == [1, 1, 2, 2, 3, 3]


def test_unused_experts_are_not_counted_as_used():
    assert used_share(np.array([[3, 0, 1, 0], [1, 1, 1, 1]])).tolist() == [0.5, 1.0]


def test_skew_of_even_routing_is_that_of_chance(tmp_path):
    trace = make_trace(tmp_path / "even", documents=6, tokens=(0, 200), shape=WIDE)
    made = analyze(trace, AnalysisSettings(resamples=20))
    for _, row in made.skew.iterrows():
        # of 1200 draws; the simulated floor's own spread is about a tenth of it
        assert row["gini"] == pytest.approx(row["gini_floor"], rel=0.4)
        assert row["entropy"] == pytest.approx(row["entropy_floor"], abs=0.01)
        assert row["used"] == 1


def test_zipf_routing_has_the_skew_of_its_law(tmp_path):
    routing = Routing(exponent=1.0)
    trace = make_trace(tmp_path / "zipf", routing, 10, (0, 2000), shape=WIDE)
    made = analyze(trace, AnalysisSettings(resamples=50))
    law = 1 / np.arange(1, 33) / np.sum(1 / np.arange(1, 33))
    analytic = 33 / 32 - 2 * np.sum(np.arange(1, 33) * law) / 32
    for _, row in made.skew.iterrows():
        assert row["gini"] == pytest.approx(analytic, abs=0.02)
        assert row["gini_low"] < row["gini"] < row["gini_high"]
        assert row["entropy"] == pytest.approx(-np.sum(law * np.log(law)) / np.log(32), abs=0.01)
        assert row["experts_50"] == np.searchsorted(np.cumsum(law), 0.5) + 1


def test_concentration_counts_cells_of_the_whole_model():
    made = analyze(make_counts({"text": [[[9, 1, 0, 0], [0, 0, 4, 6]]] * 3}))
    row = made.concentration.iloc[0]
    # 27 18 12 3 of 60: half needs two cells, 0.8 three, 0.95 three
    assert [row["cells_50"], row["cells_80"], row["cells_95"]] == [2 / 8, 3 / 8, 3 / 8]
    assert row["used"] == 0.5
