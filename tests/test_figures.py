import io

import numpy as np
import pytest
from builders import make_counts
from matplotlib.image import imread
from rich.console import Console

from moeprof.analyze import AnalysisSettings, analyze
from moeprof.placement import Tier
from moeprof.report.figures import (
    coverage_figure,
    heat_map_figure,
    placement_figure,
    png,
    transfer_figure,
)
from moeprof.report.tables import analysis_tables, findings, percent

QUICK = AnalysisSettings(share=0.25, resamples=10)
CODE, PROSE = [[[6, 3, 1, 0]]] * 3, [[[0, 1, 3, 6]]] * 3


@pytest.fixture(scope="module")
def analysis():
    return analyze(make_counts({"code": CODE, "prose": PROSE}), QUICK)


def text_of(analysis, width=100):
    console = Console(width=width, file=io.StringIO())
    console.print(analysis_tables(analysis), highlight=False)
    return console.file.getvalue()


def title_of(figure):
    return " ".join(figure.get_suptitle().split())


def pixels_of(figure):
    return imread(io.BytesIO(png(figure)))


def test_the_coverage_figure_states_what_new_documents_get():
    figure = coverage_figure(analyze(make_counts({"code": CODE}), QUICK))
    assert title_of(figure).startswith("On new documents, the busiest 25 % of cells serve 60 %;")
    assert pixels_of(figure).std() > 0


def test_the_coverage_figure_has_a_panel_per_phase_and_three_lines_in_each(analysis):
    made = analyze(make_counts({"code": CODE}, {"code": PROSE}), QUICK)
    panels = coverage_figure(made).get_axes()
    assert [panel.get_title(loc="left") for panel in panels] == ["prefill, code", "decode, code"]
    for panel in panels:
        labels = [text.get_text() for text in panel.texts]
        assert sorted(labels) == ["held-out", "in-sample", "uniform floor"]


def test_the_coverage_figure_of_a_single_document_has_no_held_out_line():
    figure = coverage_figure(analyze(make_counts({"code": CODE[:1]}), QUICK))
    labels = [text.get_text() for text in figure.get_axes()[0].texts]
    assert sorted(labels) == ["in-sample", "uniform floor"]
    assert title_of(figure).startswith("On the documents they were chosen on")


def test_the_heat_map_shows_experts_by_id_and_by_load():
    counts = np.array([[1, 6, 1], [4, 4, 4]])
    figure = heat_map_figure(counts, (3, 7), "prefill")
    by_id, by_load = (np.asarray(panel.images[0].get_array()) for panel in figure.get_axes()[:2])
    assert 2.0 ** by_id[0] == pytest.approx([0.375, 2.25, 0.375])
    assert 2.0 ** by_load[0] == pytest.approx([2.25, 0.375, 0.375])
    assert [label.get_text() for label in figure.get_axes()[0].get_yticklabels()] == ["3", "7"]
    assert "takes 1.6 times its even share" in title_of(figure)


def test_the_heat_map_leaves_a_silent_layer_blank():
    figure = heat_map_figure(np.array([[0, 0], [3, 1]]), (0, 1))
    shown = figure.get_axes()[0].images[0].get_array()
    assert np.isnan(np.ma.getdata(shown)[0]).all()
    assert pixels_of(figure).std() > 0


def test_the_transfer_figure_numbers_every_pair(analysis):
    figure = transfer_figure(analysis)
    numbers = [text.get_text() for text in figure.get_axes()[0].texts]
    assert numbers == ["60", "0", "0", "60"]
    expected = "A hot set of 25 % of the cells serves 60 % of its own domain, 0 % of another"
    assert title_of(figure).startswith(expected)
    assert pixels_of(figure).std() > 0


def test_a_single_domain_has_no_transfer_figure():
    with pytest.raises(ValueError, match="two domains"):
        transfer_figure(analyze(make_counts({"code": CODE}), QUICK))


@pytest.mark.parametrize("shape", [(1, 2), (6, 32), (48, 128)])
def test_the_placement_figure_counts_experts_by_tier(shape):
    tier_of = np.full(shape, Tier.RAM, np.uint8)
    tier_of[0, 0] = Tier.VRAM
    figure = placement_figure(tier_of, range(shape[0]))
    assert title_of(figure) == f"vram holds 1 of {tier_of.size} experts"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["vram (1)", f"ram ({tier_of.size - 1})"]
    assert pixels_of(figure).std() > 0


def test_a_placement_can_have_a_title_of_its_own():
    assert title_of(placement_figure(np.zeros((1, 2), np.uint8), (0,), "All in vram")) == (
        "All in vram"
    )


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.2, "20 %"), (0.015, "1.5 %"), (0.02, "2 %"), (0.0996, "10 %"), (1.0, "100 %")],
)
def test_percents_are_whole_from_ten_on(share, text):
    assert percent(share) == text


def test_what_cannot_be_said_is_a_dash_in_a_table():
    assert percent(float("nan")) == "-"
    text = text_of(analyze(make_counts({"code": CODE[:1]}), QUICK))
    line = next(line for line in text.splitlines() if "held-out" in line and "code" in line)
    assert line.split()[2:] == ["-"] * 9
    assert "note: prefill: a single document in code" in text.replace("\n", " ")


def test_tables_show_the_three_coverages_of_every_domain(analysis):
    text = text_of(analysis)
    for domain in ("all domains", "code", "prose"):
        start = text.index(f" {domain} ")
        assert text.index("held-out", start) < text.index("in-sample", start)
        assert text.index("in-sample", start) < text.index("floor", start)
    assert "60±0" in text


def test_tables_of_six_domains_fit_into_eighty_columns():
    rng = np.random.default_rng(0)
    names = ("python", "c", "english", "german", "french", "math")
    made = analyze(
        make_counts(
            {name: rng.integers(1, 90, (4, 2, 16)) for name in names},
            {name: rng.integers(1, 90, (4, 2, 16)) for name in names},
        ),
        AnalysisSettings(resamples=10),
    )
    text = text_of(made, width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_finding_of_a_phase_is_one_sentence():
    (sentence,) = findings(analyze(make_counts({"code": CODE}), QUICK))
    assert sentence.startswith(
        "prefill, code: the busiest 25 % of cells (1 of 4) serve 60 % [60 % to 60 %] of the "
        "assignments of documents they were not chosen on; in-sample 60 % [60 % to 60 %]; by chance"
    )
