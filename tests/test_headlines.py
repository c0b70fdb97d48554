import io

import numpy as np
import pandas as pd
import pytest
from builders import make_counts, make_shape
from matplotlib.image import imread
from rich.console import Console
from synthetic import Routing, make_trace

from moeprof.analyze import AnalysisSettings, analyze
from moeprof.report.figures import png
from moeprof.report.headlines import enough, headlines, places
from moeprof.report.section_figures import FIGURE_NAMES, section_figures
from moeprof.report.table_parts import is_too_wide, percent, points
from moeprof.report.tables import analysis_tables

SHAPE = make_shape(moe_layers=(0, 1, 2), num_experts=24, top_k=3)
QUICK = AnalysisSettings(resamples=40)


def made(tmp_path, routing=None, documents=12, settings=QUICK, **more):
    more = {"tokens": (60, 60), "domains": ("a", "b"), "shape": SHAPE} | more
    return analyze(make_trace(tmp_path / "made", routing, documents, **more), settings)


def said(analysis, phase="decode"):
    return dict(headlines(analysis, phase))


def test_even_routing_is_said_to_gain_nothing(tmp_path):
    sentences = said(made(tmp_path, seed=4))
    assert sentences["new text"].startswith("No gain: routing is as good as even.")
    assert sentences["pairs"].startswith("No two experts are chosen together more often")
    assert sentences["domains"].startswith(
        "One set of 20 % serves all domains as well as a set for each, as far as can be told: it "
    )
    assert sentences["drift"].startswith("None from early to late documents beyond noise")
    assert "12.5 % were routing even" in sentences["next token"]


def test_a_set_of_all_cells_is_said_to_fit_and_not_to_gain_nothing(tmp_path):
    settings = AnalysisSettings(resamples=40, share=1.0, sections=("coverage",))
    sentences = said(made(tmp_path, Routing(exponent=1.0), settings=settings))
    assert sentences["new text"].startswith("Everything fits: a hot set of all 72 cells serves")


def test_two_documents_of_each_domain_are_too_few_to_say_that_one_set_serves_both():
    """A domain's own set serves all of it; the common one is a's, and lacks 32 of 392 of b."""
    low, high = [[90, 90, 0, 0]], [[0, 0, 8, 8]]
    counts = make_counts({"a": [low] * 2, "b": [high] * 2})
    sentences = said(analyze(counts, AnalysisSettings(resamples=40, share=0.5)), "prefill")
    assert sentences["domains"] == (
        "One set of 50 % for all domains serves 8.2 points less than a set for each, from too few "
        "documents for an interval."
    )


def test_what_is_found_is_said_with_its_size(tmp_path):
    routing = {
        "a": Routing(exponent=1.0, keep=0.5, link=0.5),
        "b": Routing(exponent=1.0, keep=0.5, link=0.5, order=1),
    }
    analysis = made(tmp_path, routing, 16, tokens=(0, 200))
    sentences = said(analysis)
    row = analysis.coverage[np.isclose(analysis.coverage["share"], 0.2)].iloc[0]
    assert sentences["new text"].startswith(f"{row['held_out'] / (14 / 72):.1f} times the even")
    assert "less than a set for each; most is lost by" in sentences["domains"]
    lag = analysis.lag_overlap.iloc[0]
    assert sentences["next token"].startswith(f"{100 * lag['overlap']:.1f} % [")
    assert sentences["next layer"].startswith("The best 3 candidates, told from the layer before,")


def test_a_single_document_is_said_to_decide_nothing():
    sentences = said(analyze(make_counts({"text": [[[3, 1, 0, 0]]]}), QUICK), "prefill")
    assert sentences["new text"].startswith("Not known, with a single document.")
    assert sentences["enough?"] == "It cannot be said from so few documents; trace three or more."
    assert set(sentences) == {"new text", "skew", "enough?"}


def test_enough_or_how_much_is_missing():
    short = {"half_width": 0.034, "loss": 0.002, "more_documents": 1200, "more_tokens": 96_000}
    row = pd.Series({"enough": False} | short)
    assert enough(row, 0.02) == (
        "Too short to decide to ±2.0 points: coverage is known to ±3.4; it takes about "
        "1,200 more documents (96,000 tokens)."
    )
    one = pd.Series({"enough": False} | short | {"more_documents": 1})
    assert enough(one, 0.02).endswith("it takes about 1 more document (96,000 tokens).")
    done = {"half_width": 0.011, "loss": 0.002, "more_documents": 0, "more_tokens": 0}
    assert enough(pd.Series({"enough": True} | done), 0.02) == (
        "Long enough to decide: coverage is known to ±1.1 points, and more text would add 0.2."
    )


@pytest.mark.parametrize(
    ("share", "signed", "text"),
    [(0.034, False, "3.4"), (0.0996, False, "10"), (-0.12, True, "-12"), (0.004, True, "+0.4")],
)
def test_points_have_one_decimal_below_ten(share, signed, text):
    assert points(share, signed) == text


def test_percents_can_have_a_decimal_of_their_own():
    assert percent(0.435, 1) == "43.5 %"
    assert percent(float("nan"), 1) == "-"


@pytest.mark.parametrize(
    ("low", "high", "given", "found"),
    [
        (-18_720.0, 24_572.0, {}, True),  # no speed is below none
        (0.1, 24_572.0, {}, False),
        (-0.2, 0.9, {"least": -1.0}, False),  # a gain can be a loss
        (-9.5, 10.2, {"least": -1.0}, True),
        (-0.4, 0.9, {"is_share": True}, False),  # at least not all of it
        (-0.4, 1.0, {"is_share": True}, True),
        (0.0, 0.0, {}, False),
        (None, None, {}, False),
        (float("nan"), float("nan"), {"is_share": True}, False),
    ],
)
def test_an_interval_that_holds_what_cannot_be_says_nothing(low, high, given, found):
    assert is_too_wide(low, high, **given) is found


def test_places_in_words():
    assert places(pd.Series({"first": 16, "last": 63})) == "tokens 16 to 63"
    assert (
        places(pd.Series({"first": 16384, "last": None}, dtype=object)) == "token 16,384 and later"
    )


@pytest.mark.parametrize("documents", [1, 2, 9])
def test_tables_of_all_sections_fit_into_a_hundred_columns(tmp_path, documents):
    sections = ("skew", "locality", "prediction", "coactivation", "drift", "sufficiency")
    analysis = made(tmp_path, documents=documents, settings=AnalysisSettings(
        resamples=10, sections=("coverage", "domains", *sections)))  # fmt: skip
    console = Console(width=100, file=io.StringIO())
    console.print(analysis_tables(analysis), highlight=False)
    text = console.file.getvalue()
    assert "…" not in text
    assert "nan" not in text.replace("Finance", "")
    assert max(map(len, text.splitlines())) <= 100


def test_every_figure_has_a_finding_and_something_drawn(tmp_path):
    analysis = made(tmp_path, Routing(exponent=1.0, keep=0.3))
    figures = section_figures(analysis)
    assert tuple(figures) == FIGURE_NAMES
    for figure in figures.values():
        assert figure.get_suptitle()
        assert imread(io.BytesIO(png(figure))).std() > 0
        assert len(figure.get_axes()) >= 2
    title = " ".join(figures["lag_overlap.png"].get_suptitle().split())
    assert title.startswith("The next token chooses ")
    assert figures["drift.png"].get_suptitle() == (
        "Along the trace, routing drifts no more than noise"
    )


def test_what_cannot_be_computed_has_no_figure(tmp_path):
    assert set(section_figures(analyze(make_counts({"text": [[[3, 1]]] * 3}), QUICK))) == {
        "skew.png", "learning.png"}  # fmt: skip
