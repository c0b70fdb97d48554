import dataclasses
import hashlib
import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_block, make_counts, make_metadata, make_shape, make_trace
from paging import (
    ATTACK,
    ROOT,
    charts_of,
    inputs_of,
    make_advice,
    make_inputs,
    make_strategy,
    run,
    skewed_counts,
)
from planning import N, R, V, make_hardware, make_placement
from rich.console import Console

import moeprof
from moeprof.errors import PlacementError
from moeprof.placement import Estimate
from moeprof.plan import PlanRequest
from moeprof.plan.advice import Finding, StrategyOutcome, SweepPoint
from moeprof.plan.simulation import Simulation, simulate
from moeprof.report.advice_figures import sweep_figure
from moeprof.report.advice_tables import advice_tables
from moeprof.report.figures import coverage_figure
from moeprof.report.page import report_page, simulation_request
from moeprof.report.page.coverage import coverage_section, row_at_share
from moeprof.report.page.document import page_sections
from moeprof.report.page.domains import domains_section
from moeprof.report.page.locality import locality_section
from moeprof.report.page.parts import TOO_WIDE, estimate_text, estimated_share
from moeprof.report.page.policies import policies_section
from moeprof.report.page.strategies import signed_percent, strategies_section
from moeprof.report.page.verdict import verdict
from moeprof.report.policy_figure import policy_figure
from moeprof.report.tables import percent
from moeprof.trace import Trace
from moeprof.trace.origin import Origin

COUNTS = skewed_counts(3, 2, 4)


class Outline(HTMLParser):
    """Elements, addresses that a browser would follow by itself, and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "srcset", "data", "action", "poster")
        self.addresses += [value or "" for name, value in attrs if name in names]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.texts.append(data)


@pytest.fixture(scope="module")
def demo_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    plan = ROOT / "placements" / "demo.json"
    assert run("traces/demo", "--plan", plan, "-o", path, "--resamples", 20) == 0
    return path.read_text(encoding="utf-8")


def test_the_page_of_the_bundled_trace_is_valid_html(demo_page: str) -> None:
    html5lib = pytest.importorskip("html5lib")
    html5lib.HTMLParser(strict=True).parse(demo_page)


def test_the_page_names_no_address_but_its_own_sections(demo_page: str) -> None:
    outline = Outline(demo_page)
    assert outline.addresses
    assert all(address.startswith("#") for address in outline.addresses)
    assert not {"link", "iframe", "object", "img"} & set(outline.tags)
    style = demo_page[demo_page.index("<style>") : demo_page.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_the_verdict_stands_before_everything_else(demo_page: str) -> None:
    body = demo_page[demo_page.index("<main>") :]
    keys = re.findall(r'<section id="(\w+)"', body)
    assert keys[0] == "verdict"
    assert "bother" in body[: body.index("<nav")]


def test_every_section_is_linked_to(demo_page: str) -> None:
    links = set(re.findall(r'<a href="#(\w+)"', demo_page))
    assert links == set(re.findall(r'<section id="(\w+)"', demo_page)) - {"verdict"}


def test_a_page_of_48_layers_of_128_experts_stays_below_two_megabytes() -> None:
    domains = [f"domain-{index}" for index in range(12)]
    prefill = {name: skewed_counts(3, 48, 128, seed) for seed, name in enumerate(domains)}
    tiers = tuple(tuple([V] * 40 + [R] * 80 + [N] * 8) for _ in range(48))
    placement = make_placement(tiers)
    inputs = inputs_of(prefill, prefill, placement=placement)
    page = report_page(inputs)
    assert len(page.encode()) < 2_000_000
    charts = charts_of(page)
    assert [one["domain"] for one in charts["experts"]["maps"][:2]] == ["all domains"] * 2
    # All that does not fit is named.
    assert re.search(r"\d+ maps of single domains are left out", page)


def test_names_cannot_become_code() -> None:
    html5lib = pytest.importorskip("html5lib")
    counts = skewed_counts(3, 2, 4)
    cells = make_counts({ATTACK: counts, "prose": counts})
    metadata = make_metadata(cells.shape, cells.domains)
    placement = make_placement(notes=(ATTACK,))
    page = report_page(make_inputs(cells, metadata, placement=placement))
    plain = report_page(inputs_of({"code": counts, "prose": counts}, placement=make_placement()))
    html5lib.HTMLParser(strict=True).parse(page)
    assert Outline(page).tags == Outline(plain).tags  # not one element more
    assert ATTACK in "".join(Outline(page).texts)
    assert charts_of(page)["coverage"]["choices"][1] == ATTACK


def test_only_the_scripts_of_the_page_are_allowed_to_run(demo_page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', demo_page)
    assert policy is not None
    allowed = html.unescape(policy[1])
    assert "default-src 'none'" in allowed
    script = next(part for part in allowed.split(";") if "script-src" in part)
    assert "unsafe" not in script
    assert script.count("sha256-") == demo_page.count("<script>")


def test_the_bundled_library_is_the_one_that_its_note_describes() -> None:
    vendor = ROOT / "moeprof" / "report" / "page" / "vendor"
    library = (vendor / "echarts.min.js").read_bytes()
    assert hashlib.sha256(library).hexdigest() in (vendor / "README.md").read_text(encoding="utf-8")
    assert b"</script" not in library


def test_numbers_in_the_charts_are_those_of_the_trace(demo_page: str) -> None:
    trace = moeprof.open_trace(ROOT / "traces" / "demo")
    maps = charts_of(demo_page)["experts"]["maps"]
    for one in maps:
        domain = None if one["domain"] == "all domains" else one["domain"]
        expected = trace.cell_counts().select(domain, one["phase"]).sum(axis=0)
        assert np.array_equal(one["counts"], expected)
    assert len(maps) == 14
    tiers = moeprof.read_placement(ROOT / "placements" / "demo.json").tier_of
    assert np.array_equal(charts_of(demo_page)["placement"]["tiers"], tiers)


def test_what_is_not_known_is_null_and_not_nan() -> None:
    page = report_page(inputs_of({"text": skewed_counts(1, 2, 4)}))
    lines = charts_of(page)["coverage"]["panels"][0]["lines"]
    assert [line["name"] for line in lines] == ["in-sample", "floor"]
    assert lines[0]["low"] == [None] * len(lines[0]["y"])
    assert "NaN" not in page[page.index('id="charts"') : page.index("</script>")]


def test_a_phase_that_cannot_be_held_out_is_not_mixed_with_one_that_can() -> None:
    decode = COUNTS
    prefill = np.stack([COUNTS[0], 0 * COUNTS[0], 0 * COUNTS[0]])
    sections = page_sections(inputs_of({"text": prefill}, {"text": decode}))
    finding = next(one.finding for one in sections if one.key == "coverage")
    assert re.fullmatch(
        r"On new documents, the busiest 20 % of cells serve \d+ % of decode; even routing would "
        r"show \d+ %\.",
        finding,
    )


def test_every_phase_stands_beside_its_own_floor() -> None:
    """Sixteen choices in a layer are uneven by chance, sixteen thousand are not."""
    few, many = np.full((1, 2, 16), 1), np.full((1, 2, 16), 1000)
    inputs = inputs_of({"text": few}, {"text": many})
    floors = {
        phase: percent(row_at_share(inputs.analysis, phase, "text")["floor"])
        for phase in ("prefill", "decode")
    }
    assert floors["prefill"] != floors["decode"]
    assert coverage_section(inputs).finding == (
        "On the very documents they were chosen on, the busiest 20 % of cells serve "
        f"19 % of prefill ({floors['prefill']} by chance) and "
        f"19 % of decode ({floors['decode']} by chance)."
    )
    assert " ".join(coverage_figure(inputs.analysis).get_suptitle().split()) == (
        "On the documents they were chosen on, the busiest 20 % of cells serve "
        f"19 % in prefill ({floors['prefill']} by chance) and "
        f"19 % in decode ({floors['decode']} by chance)"
    )


def test_an_interval_of_a_share_ends_at_all() -> None:
    cell = estimated_share(Estimate(0.98, 0.69, 1.27))
    assert (cell.text, cell.note) == ("98 %", "69 to 100")


def test_an_interval_that_says_nothing_is_not_shown_in_numbers() -> None:
    wide = Estimate(2926.0, -18_720.0, 24_572.0)
    assert estimate_text(wide) == ("2,926", TOO_WIDE)
    assert signed_percent(Estimate(0.329, -9.5, 10.2)) == ("+33 %", TOO_WIDE)
    assert signed_percent(Estimate(0.329, -0.5, 1.2)) == ("+33 %", "-50 to 120")
    assert estimated_share(Estimate(0.56, -1.2, 2.3)).note == TOO_WIDE
    points = [SweepPoint(vram, 0, "cannot tell", (hot_set_at(wide),)) for vram in (1000, 2000)]
    advice = make_advice(folds=5, sweep=tuple(points))
    chart = strategies_section(inputs_of({"text": COUNTS}, advice=advice)).charts[0]
    (line,) = chart.data["panels"][0]["lines"]
    assert line["y"] == [2926.0] * 2
    assert np.isnan([line["low"], line["high"]]).all()


def hot_set_at(speed: Estimate) -> StrategyOutcome:
    """A hot set with a speed in decode alone."""
    one = make_strategy("hot_set", 1.0, 0.0, 0.5)
    assert one.decode is not None
    return dataclasses.replace(
        one, decode=dataclasses.replace(one.decode, tokens_per_s=speed), prefill=None
    )


def test_options_are_set_as_code_and_numbers_keep_their_units() -> None:
    page = report_page(inputs_of({"text": COUNTS}))
    assert "(<code>--hardware</code> FILE, or <code>--gpu</code> and <code>--ram</code>)" in page
    assert "20\u00a0% of cells" in page


def test_a_layer_that_routed_nothing_has_a_row_of_dashes() -> None:
    counts = skewed_counts(3, 3, 4)
    counts[:, 1] = 0
    page = report_page(inputs_of({"text": counts}))
    row = re.search(
        r'<th scope="row" class="number" data-value="2">2</th>(.*?)</tr>', page, re.DOTALL
    )
    assert row is not None
    assert re.findall(r">([^<>\n]+)</td>", row[1]) == ["–"] * 6 + ["0"]


def test_sections_without_data_say_why_in_one_sentence() -> None:
    sections = {one.key: one for one in page_sections(inputs_of({"text": skewed_counts(3, 2, 4)}))}
    missing = {key: one.finding for key, one in sections.items() if one.is_absent}
    assert set(missing) == {"domains", "placement", "strategies", "policies", "locality"}
    assert "one kind of text" in missing["domains"]
    assert "moeprof plan" in missing["placement"]
    assert "--vram SIZE" in missing["strategies"]
    notes = sections["trace"].prose
    assert any("decode: the trace has no assignments" in note for note in notes)


@pytest.mark.parametrize(
    ("counts", "mood", "words"),
    [
        (skewed_counts(8, 2, 16), "good", "uneven"),
        (np.full((8, 2, 16), 100), "bad", "Don't bother"),
        (skewed_counts(1, 2, 16), "open", "Cannot tell"),
    ],
)
def test_without_a_plan_the_verdict_is_that_of_coverage_and_says_what_it_lacks(
    counts: np.ndarray, mood: str, words: str
) -> None:
    found = verdict(inputs_of({"text": counts}))
    assert found.mood == mood
    assert words in found.headline
    assert "--vram" in found.sentences[-1]
    # The busiest 20 % of 32 cells are 6, which serve 6 of 32 where routing is even.
    assert (found.figures[-1].value, found.figures[-1].name) == ("19 %", "had routing been even")


def test_a_trace_that_does_not_say_its_phase_is_said_to_count_as_decode() -> None:
    counts = skewed_counts(3, 2, 4)
    for missing in ((), ("phase",)):
        inputs = inputs_of({"text": counts}, {"text": counts})
        origin = Origin("tok-layers", ("a.jsonl",), missing)
        inputs = dataclasses.replace(
            inputs, metadata=dataclasses.replace(inputs.metadata, origin=origin)
        )
        said = " ".join(verdict(inputs).sentences)
        assert ("prefill or decode, all stand as decode." in said) == bool(missing)


@pytest.mark.parametrize(("worthwhile", "mood"), [(True, "good"), (False, "bad"), (None, "open")])
def test_with_a_plan_the_verdict_is_that_of_the_plan(worthwhile: bool | None, mood: str) -> None:
    judged = moeprof.placement.Verdict(worthwhile, "for this reason")
    counts = skewed_counts(3, 2, 4)
    placement = make_placement(verdict=judged)
    found = verdict(inputs_of({"text": counts}, {"text": counts}, placement=placement))
    assert found.mood == mood
    assert found.sentences[0] == "For this reason."
    # make_placement predicts 12.5 tokens/s and a coverage of 0.7 [0.6, 0.8].
    assert [(one.value, one.interval) for one in found.figures[:2]] == [
        ("12.5", ""),
        ("70 %", "60 to 80"),
    ]


def test_with_advice_the_verdict_is_that_of_the_advice() -> None:
    found = verdict(inputs_of({"text": skewed_counts(3, 2, 4)}, advice=make_advice()))
    assert (found.mood, found.headline) == ("good", "Pin it, at 7.8 KiB of VRAM")
    priced = "All speeds of this page are predicted for desk, measured."
    assert found.sentences == ("Pin the hot set.", priced, "Not known: how fast the drive is.")
    assert found.changes == ("A slower card.",)
    assert [(one.value, one.interval) for one in found.figures] == [
        ("+100 %", "90 to 110"),
        ("40.0", "36.0 to 44.0"),
        ("20.0", "18.0 to 22.0"),
        ("80 %", "72 to 88"),
    ]


def test_whole_layers_that_did_best_are_not_set_against_themselves() -> None:
    strategies = (make_strategy("all_ram", 10, -0.5, 0), make_strategy("whole_layers", 20, 0, 0.5))
    finding = Finding("don't bother", None, "So it is.", ())
    advice = make_advice(strategies=strategies, finding=finding)
    figures = verdict(inputs_of({"text": COUNTS}, advice=advice)).figures
    assert [(one.value, one.name) for one in figures] == [
        ("20.0", "tokens/s in decode with whole layers"),
        ("50 %", "of decode on new text found in VRAM by whole layers"),
    ]


@pytest.mark.parametrize("folds", [0, 5])
def test_only_figures_that_are_held_out_are_of_new_text(folds: int) -> None:
    inputs = inputs_of({"text": skewed_counts(3, 2, 4)}, advice=make_advice(folds=folds))
    label = verdict(inputs).figures[-1].name
    assert label.startswith("of decode on new text" if folds else "of decode found")
    prose = strategies_section(inputs).prose[0]
    assert ("on documents that nothing was chosen on" in prose) == bool(folds)
    assert ("No figure is held out" in prose) == (not folds)


@pytest.mark.parametrize(("folds", "pieces"), [(5, 8), (0, 1)])
def test_figures_of_a_single_document_are_never_of_new_text(folds: int, pieces: int) -> None:
    advice = make_advice(folds=folds, pieces=pieces)
    inputs = inputs_of({"text": skewed_counts(1, 2, 4)}, advice=advice)
    found, section = verdict(inputs), strategies_section(inputs)
    tables = [f"{table.caption} {column.hint}" for table in section.tables
              for column in table.columns]  # fmt: skip
    figures = [figure.name for figure in found.figures]
    texts = [*found.sentences, *figures, section.finding, *section.prose, *tables]
    assert not [text for text in texts if "new text" in text or "new document" in text]
    assert any("of the same text" in name for name in figures) == bool(folds)
    assert ("parts of the only document" in section.prose[0]) == bool(folds)
    assert ("No figure is held out" in section.prose[0]) == (not folds)


def test_strategies_have_the_same_names_on_the_terminal_and_on_the_page() -> None:
    advice = make_advice(folds=5)
    section = strategies_section(inputs_of({"text": COUNTS}, advice=advice))
    console = Console(width=120, file=io.StringIO())
    console.print(advice_tables(advice), highlight=False)
    shown = [line.lstrip(" >") for line in console.file.getvalue().splitlines()]
    for row in section.tables[0].rows:
        assert any(re.match(rf"{row[0].text} {{2,}}\d", line) for line in shown)
    curves = [line["name"] for line in section.charts[0].data["panels"][0]["lines"]]
    assert curves == [row[0].text for row in section.tables[0].rows]


@pytest.mark.parametrize(
    ("answer", "mood"), [("cache it", "good"), ("don't bother", "bad"), ("cannot tell", "open")]
)
def test_every_answer_has_its_mood(answer: str, mood: str) -> None:
    advice = make_advice(finding=Finding(answer, None, "So it is.", ()), hardware=None)
    found = verdict(inputs_of({"text": skewed_counts(3, 2, 4)}, advice=advice))
    assert (found.mood, found.sentences[0]) == (mood, "So it is.")
    assert found.figures[1].value == "40.0"  # without a recommendation, the fastest of this world


def test_strategies_stand_with_their_figures() -> None:
    section = strategies_section(inputs_of({"text": skewed_counts(3, 2, 4)}, advice=make_advice()))
    assert section.finding == (
        "In decode: a hot set 40.0 tokens/s, whole layers 20.0 tokens/s, an oracle 50.0 tokens/s."
    )
    decode = section.tables[0]
    shown = {row[0].value: [(cell.text, cell.note) for cell in row[1:]] for row in decode.rows}
    assert shown["cache"] == [
        ("30.0", "27.0 to 33.0"),
        ("+50 %", "45 to 55"),
        ("70 %", "63 to 77"),
        ("4", ""),
        ("2.0 KiB", ""),
    ]
    assert [row[1].shade for row in decode.rows] == [0.2, 0.4, 0.8, 0.6, 1.0]
    text = " ".join(section.prose)
    assert "from a decode hit rate of 60 %; a cache, which copies what it misses, from 65 %" in text
    assert "more than 12.5 prompt tokens per reply token" in text
    assert "makes +3.0 % [1.0 to 5.0] in decode; a change of text copies 4.0 KiB, earned" in text
    lines = section.charts[0].data["panels"][0]["lines"]
    assert [line["y"][0] for line in lines] == [10, 20, 40, 30, 50]


def test_a_plan_of_another_model_is_refused() -> None:
    placement = make_placement()
    counts = skewed_counts(3, 2, 4)
    cells = make_counts({"text": counts})
    metadata = make_metadata(cells.shape, cells.domains)
    other = placement.model.__class__("other", "0123", 4, (1, 2))
    with pytest.raises(PlacementError, match="is for other with fingerprint 0123"):
        make_inputs(cells, metadata, placement=make_placement(model=other))


def repeating_trace(tmp_path: Path, num_documents: int = 2) -> Trace:
    """Two layers of four experts; every token takes experts 0 and 1."""
    shape = make_shape(moe_layers=(0, 1), num_experts=4, top_k=2)
    odds = np.array([[1e9, 1e9, 1e-9, 1e-9]] * 2)
    sequence = np.repeat(np.arange(num_documents), 5).tolist()
    block = make_block(shape, sequence, decode=4, probabilities=odds)
    return make_trace(tmp_path / "trace", {"text": block}, shape)


def make_simulation(tmp_path: Path, **changes: Any) -> Simulation:
    trace = repeating_trace(tmp_path)
    plan = PlanRequest(0, folds=2, **changes)
    return simulate(trace, simulation_request(trace, plan))


def test_what_is_always_the_same_is_reused_and_foretold(tmp_path: Path) -> None:
    trace = repeating_trace(tmp_path, num_documents=6)
    sections = {one.key: one for one in page_sections(make_inputs(trace, trace.metadata))}
    locality = sections["locality"]
    assert locality.finding == (
        "In decode, the next token chooses 100 % of a token's experts again, where even routing "
        "would choose 50 %; 100 % of the next layer's experts can be told from this layer's, "
        "100 % from popularity."
    )
    overlap, prediction = (chart.data["panels"][-1] for chart in locality.charts)
    assert list(overlap["x"]) == [1, 2, 3]
    assert [list(line["y"]) for line in overlap["lines"]] == [[1] * 3, [1] * 3, [0.5] * 3]
    assert prediction["lines"][0]["y"].iloc[0] == 1
    decode = sections["layers"].tables[0]
    reused = [column.name for column in decode.columns].index("reused")
    assert [row[reused].text for row in decode.rows] == ["100 %", "100 %"]
    assert sections["sufficiency"].finding == (
        "6 documents are enough to know the coverage of decode to within 2 points."
    )


def test_a_legend_names_only_what_is_drawn(tmp_path: Path) -> None:
    """A single document has no unrelated tokens, and a trace of replies no prompts."""
    trace = repeating_trace(tmp_path, num_documents=1)
    inputs = make_inputs(trace, trace.metadata)
    section = locality_section(inputs)
    assert "unrelated" not in section.prose[0]
    several = repeating_trace(tmp_path / "several", num_documents=3)
    assert (
        "tokens of unrelated documents"
        in locality_section(make_inputs(several, several.metadata)).prose[0]
    )
    for chart in (one for section in page_sections(inputs) for one in section.charts):
        for panel in chart.data["panels"] if chart.kind == "curves" else ():
            for line in panel["lines"]:
                assert np.isfinite(np.array(line["y"], float)).any(), (chart.key, line["name"])


def test_lines_that_lie_on_each_other_differ_in_width_or_dashes(tmp_path: Path) -> None:
    """In pictures; in the page a browser tells."""
    figures = {
        "policies": policy_figure(make_simulation(tmp_path)),
        "sweep": sweep_figure(make_advice(folds=5)),
    }
    for name, figure in figures.items():
        lines = [line for line in figure.axes[0].get_lines() if line.get_label()[0] != "_"]
        looks = {(line.get_linewidth(), str(line._dash_pattern)) for line in lines}
        assert len(looks) == len(lines) > 4, name
        optimum = [line for line in lines if line.get_label() == "optimum"]
        assert all(line.get_zorder() == max(one.get_zorder() for one in lines) for line in optimum)


def test_one_document_is_too_few_to_decide() -> None:
    sections = {one.key: one for one in page_sections(inputs_of({"text": COUNTS[:1]}))}
    assert sections["sufficiency"].finding == (
        "1 document is too few to say how many more are needed."
    )


def test_disjoint_domains_lose_by_merging() -> None:
    # Experts 0 and 1 serve one text, 2 and 3 the other; 20 % of the eight cells are two: half of
    # what each text needs. One set for both is that of the first text, two thirds of all choices.
    code, prose = np.zeros((2, 6, 2, 4), int)
    code[..., :2], prose[..., 2:] = 200, 100
    section = domains_section(inputs_of({"code": code, "prose": prose}))
    assert "serves 50 % of the choices on its own kind of text, 0 % on another" in section.finding
    assert "serves 33 %, a set for each 50 % of the same documents: merging loses 16.7" in " ".join(
        section.prose
    )


def test_caches_hit_as_often_as_counted_by_hand(tmp_path: Path) -> None:
    inputs = inputs_of({"text": COUNTS}, simulation=make_simulation(tmp_path))
    section = policies_section(inputs)
    prefill, decode = section.charts[0].data["panels"]
    assert [line["name"] for line in decode["lines"]] == [
        *["static list", "LRU", "LFU with decay", "LFRU", "optimum", "floor"]
    ]
    rates = {
        line["name"]: dict(zip(decode["x"], line["y"], strict=True)) for line in decode["lines"]
    }
    # Of eight experts, four are ever used: 15 % hold one of these, 30 % two, 40 % three.
    assert [rates["static list"][share] for share in (0.05, 0.15, 0.3, 0.4, 0.5)] == [
        *[0, 0.25, 0.5, 0.75, 1]
    ]
    for policy in ("LRU", "LFU with decay", "LFRU", "optimum"):
        assert rates[policy][0.5] == 1  # the prompt brought all four
    assert rates["LRU"][0.15] == 0  # each layer throws out what the other brought
    assert rates["floor"][0.4] == pytest.approx(0.4)
    assert decode["mark"]["x"] == 0.5  # a token looks four of eight up
    assert prefill["title"] == "prefill"
    assert [chart.key for chart in section.charts] == ["policies"]
    table = section.tables[0]
    assert table.caption.startswith("decode")
    assert [cell.text for cell in table.rows[0]][:4] == ["static list", "0 %", "0 %", "25 %"]


def test_with_a_machine_caches_are_priced(tmp_path: Path) -> None:
    section = policies_section(
        inputs_of({"text": COUNTS}, simulation=make_simulation(tmp_path, hardware=make_hardware()))
    )
    speed = section.charts[1]
    assert speed.data["y"] == {"name": "tokens/s", "unit": "rate"}
    assert all(np.all(np.array(line["y"]) > 0) for line in speed.data["panels"][-1]["lines"])
