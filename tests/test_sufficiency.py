import numpy as np
import pandas as pd
import pytest
from builders import make_counts, make_shape
from synthetic import Routing, make_trace

from moeprof.analyze import AnalysisSettings, analyze
from moeprof.analyze.intervals import student_quantile
from moeprof.analyze.sufficiency import (
    LearningCurve,
    documents_needed,
    learning_curve,
    loss_from_shortness,
)

WIDE = make_shape(moe_layers=(0, 1), num_experts=32, top_k=2)
ONLY = AnalysisSettings(sections=("sufficiency",), resamples=60)


def curve_of(counts, size, domains=None):
    counts = np.asarray(counts)
    group_domain = np.zeros(len(counts), int) if domains is None else np.asarray(domains)
    rng = np.random.default_rng(0)
    return learning_curve(counts, group_domain, np.ones(counts.shape[1], int), size, rng)


def test_documents_that_do_not_differ_teach_everything_at_once():
    curve = curve_of([[6, 3, 1]] * 10, 1)
    assert curve.documents.tolist() == sorted({*curve.documents.tolist(), 1, 5, 8})
    assert curve.coverage == pytest.approx(np.full(len(curve.documents), 0.6))
    known = curve.documents <= 5
    assert (curve.jaccard[known] == 1).all()
    assert np.isnan(curve.jaccard[~known]).all()
    assert loss_from_shortness(curve, 10) == pytest.approx(0, abs=1e-12)


def test_every_beginning_of_an_order_has_the_domains_in_proportion():
    # the set of two cells is right only if both domains were seen
    counts = [[9, 0, 1, 0]] * 6 + [[0, 9, 0, 1]] * 6
    curve = curve_of(counts, 2, [0] * 6 + [1] * 6)
    assert curve.documents[0] == 2
    assert curve.coverage == pytest.approx(np.full(len(curve.documents), 0.9))


def test_the_fitted_loss_is_that_of_the_law():
    documents = np.array([2, 4, 8, 16])
    curve = LearningCurve(documents, 0.7 - 0.12 / documents, np.full(4, np.nan))
    assert loss_from_shortness(curve, 20) == pytest.approx(0.12 / 20)
    rising = LearningCurve(documents, 0.7 + 0.12 / documents, np.full(4, np.nan))
    assert loss_from_shortness(rising, 20) == 0
    assert np.isnan(loss_from_shortness(LearningCurve(*np.ones((3, 1))), 2))


@pytest.mark.parametrize(
    ("half", "loss", "tolerance"),
    [(0.01, 0.0, 0.02), (0.05, 0.001, 0.02), (0.001, 0.3, 0.02), (0.08, 0.03, 0.01)],
)
def test_the_documents_needed_are_the_fewest(half, loss, tolerance):
    documents, degrees = 12, 10

    def suffices(number):
        t = student_quantile(degrees + number - documents) / student_quantile(degrees)
        narrower = half * t * np.sqrt(documents / number)
        return narrower <= tolerance and loss * documents / number <= tolerance

    fewest = next(number for number in range(documents, 10**5) if suffices(number))
    assert documents_needed(half, loss, documents, degrees, tolerance) == fewest


def test_a_long_trace_is_enough_and_a_short_one_says_what_is_missing(tmp_path):
    routing = Routing(exponent=1.0, spread=0.6)
    settings = {"shape": WIDE, "tokens": (0, 200)}
    short = analyze(make_trace(tmp_path / "short", routing, 4, **settings), ONLY)
    row = short.sufficiency.iloc[0]
    assert not row["enough"]
    assert [row["documents"], row["tokens"]] == [4, 800]
    assert row["more_documents"] > 0
    assert row["more_tokens"] == row["more_documents"] * 200
    long = analyze(
        make_trace(tmp_path / "long", routing, 4 + int(row["more_documents"]), **settings), ONLY
    )
    after = long.sufficiency.iloc[0]
    # what was foretold from four documents holds roughly
    assert after["half_width"] < 2 * ONLY.tolerance
    assert after["jaccard"] > row["jaccard"]
    assert after["loss"] < row["loss"]


def test_documents_behind_groups_are_counted(tmp_path):
    narrow = make_shape(moe_layers=(0,), num_experts=8, top_k=1)
    made = analyze(make_trace(tmp_path / "made", None, 128, (0, 4), shape=narrow), ONLY)
    assert made.sufficiency.iloc[0]["documents"] == 128
    assert made.learning["documents"].max() <= 128


def test_one_document_cannot_say_how_many_are_missing():
    row = analyze(make_counts({"text": [[[3, 1]]]}), ONLY).sufficiency.iloc[0]
    assert not row["enough"]
    assert pd.isna(row["more_documents"])
