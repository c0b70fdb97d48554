"""Traces whose truth is known: nothing is found where nothing is, and intervals hold the truth."""

import numpy as np
import pytest
from builders import make_shape
from synthetic import Routing, make_trace

from moeprof.analyze import OVERALL, AnalysisSettings, analyze

WIDE = make_shape(moe_layers=(0, 1, 2), num_experts=24, top_k=3)


def outside(frame, name, truth):
    """[rows] bool, whether the interval of `name` misses the truth."""
    low, high = frame[f"{name}_low"], frame[f"{name}_high"]
    return ((low > truth) | (high < truth)).to_numpy()


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "even"
    return analyze(make_trace(path, None, 16, (120, 60), ("a", "b"), WIDE, seed=11))


def gains_over_chance(made):
    """Every gain that an analysis states, with what it is where routing is even."""
    kept = made.coverage["cells"] / made.shape.num_cells
    lags = made.lag_overlap
    pooled = made.coactivation[made.coactivation["layer"].isna()]
    yield "coverage", made.coverage, outside(made.coverage, "held_out", kept)
    yield "transfer", made.transfer, outside(made.transfer, "coverage", 14 / 72)
    yield "lags", lags, outside(lags, "overlap", 3 / 24)
    yield "prediction", made.prediction, outside(made.prediction, "gain", 0.0)
    yield "pairs", pooled, outside(pooled, "held_out", 1.0)
    yield "place", made.place_drift, outside(made.place_drift, "difference", 0.0)
    yield "merging", made.merging, outside(made.merging, "loss", 0.0)


def test_no_gain_of_even_routing_is_outside_its_interval_around_zero(even):
    for name, frame, missed in gains_over_chance(even):
        overall = np.ones(len(frame), bool)
        if "domain" in frame:
            overall = (frame["domain"] == OVERALL).to_numpy()
        # of 95 % intervals one in twenty misses; lags of one sample miss together
        assert missed[overall].sum() <= max(1, 0.10 * overall.sum()), name
        assert missed.mean() <= 0.12, name


def test_even_routing_shows_neither_drift_nor_skew_beyond_chance(even):
    p_values = even.trace_drift.groupby(["domain", "phase"])["p_value"].first()
    assert (p_values > 0.01).all()
    skew = even.skew
    assert (skew["gini"] / skew["gini_floor"]).between(0.5, 1.6).all()
    assert even.concentration["cells_50"].between(0.35, 0.5).all()


def zipf_coverage(routing, shape, share):
    """Coverage of the best cells of a model whose layers all follow the same law."""
    chance = np.tile(routing.inclusion(shape), shape.num_moe_layers)
    best = np.sort(chance)[::-1][: round(share * len(chance))]
    return best.sum() / chance.sum()


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_zipf_routing_is_covered_as_its_law_says(tmp_path, exponent):
    shape = make_shape(moe_layers=(0, 1), num_experts=40, top_k=1)
    routing = Routing(exponent=exponent)
    settings = AnalysisSettings(sections=("coverage",), resamples=100)
    held = []
    for seed in range(20):
        trace = make_trace(tmp_path / str(seed), routing, 20, (0, 300), shape=shape, seed=seed)
        made = analyze(trace, settings).coverage
        made = made[made["cells"] > 1]
        truth = np.array([zipf_coverage(routing, shape, n / 80) for n in made["cells"]])
        assert made["held_out"].to_numpy() == pytest.approx(truth, abs=0.025)
        held.append(~outside(made, "held_out", truth))
    assert 0.90 <= np.mean(held) <= 0.99


@pytest.mark.all
def test_intervals_hold_the_truth_about_as_often_as_they_say(tmp_path):
    shape = make_shape(moe_layers=(0, 1), num_experts=12, top_k=2)
    settings = AnalysisSettings(
        sections=("locality", "prediction", "coactivation", "drift"), resamples=100
    )
    chance = shape.top_k / shape.num_experts
    held, caches = {}, []
    for trial in range(200):
        trace = make_trace(
            tmp_path / str(trial), Routing(keep=0.4), 12, (0, 40), shape=shape, seed=trial
        )
        made = analyze(trace, settings)
        pooled = made.coactivation[made.coactivation["layer"].isna()]
        caches.append(made.lru[made.lru["experts"] == 4])
        for name, frame, column, truth in (
            ("lag 1", made.lag_overlap[:1], "overlap", 0.4 + 0.6 * chance),
            ("lag 4", made.lag_overlap[3:4], "overlap", 0.4**4 + (1 - 0.4**4) * chance),
            ("recall", made.prediction[:1], "recall", chance),
            ("popularity", made.prediction[:1], "popularity", chance),
            ("gain", made.prediction[:1], "gain", 0.0),
            ("pairs", pooled, "held_out", 1.0),
            ("place", made.place_drift[:1], "difference", 0.0),
        ):
            held.setdefault(name, []).append(not outside(frame, column, truth)[0])
    mean = np.mean([cache["hit_rate"].iloc[0] for cache in caches])
    held["cache"] = [not outside(cache, "hit_rate", mean)[0] for cache in caches]
    shares = {name: float(np.mean(values)) for name, values in held.items()}
    assert min(shares.values()) >= 0.90 and max(shares.values()) <= 0.99, shares
