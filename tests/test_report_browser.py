"""The page in a real browser: what it draws, asks for, and does when it is used."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Browser, open_browser
from builders import make_counts, make_metadata
from matplotlib.image import imread
from paging import (
    ATTACK,
    ROOT,
    inputs_of,
    make_advice,
    make_inputs,
    make_strategy,
    skewed_counts,
)
from planning import N, R, V, make_placement

import moeprof
from moeprof.plan import PlanRequest
from moeprof.plan.advice import SweepPoint
from moeprof.plan.simulation import simulate
from moeprof.report.page import PageInputs, report_page, simulation_request

PHONE = {"width": 390, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
# Margins of the map inside its plot, as `mapOption` in cells.js sets them.
LEFT, RIGHT, TOP, BOTTOM = 36, 4, 22, 34


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trace = moeprof.open_trace(ROOT / "traces" / "demo")
    placement = moeprof.read_placement(ROOT / "placements" / "demo.json")
    simulation = simulate(trace, simulation_request(trace, PlanRequest(0)))
    return _written(
        tmp_path_factory.mktemp("demo"),
        make_inputs(trace, trace.metadata, placement=placement, simulation=simulation),
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 layers of 128 experts, with a plan of three tiers."""
    counts = {name: skewed_counts(3, 48, 128, seed) for seed, name in enumerate(("code", "prose"))}
    cells = make_counts(counts, counts)
    tiers = tuple(tuple([V] * 40 + [R] * 80 + [N] * 8) for _ in range(48))
    inputs = make_inputs(
        cells,
        make_metadata(cells.shape, cells.domains),
        placement=make_placement(tiers),
        advice=make_advice(),
    )
    return _written(tmp_path_factory.mktemp("large"), inputs)


def _written(folder: Path, inputs: PageInputs) -> Path:
    path = folder / "report.html"
    path.write_text(report_page(inputs), encoding="utf-8")
    return path


def _plot(page: Any, chart: str) -> Any:
    return page.locator(f'[data-chart="{chart}"] .plot').first


def _pixels(page: Any, chart: str) -> list[int]:
    """Distinct colours of a chart's canvas, at every eighth pixel."""
    script = """canvas => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const found = new Set();
      for (let at = 0; at < data.length; at += 32) {
        if (data[at + 3] > 0) found.add((data[at] << 16) | (data[at + 1] << 8) | data[at + 2]);
      }
      return [...found];
    }"""
    colours: list[int] = _plot(page, chart).locator("canvas").first.evaluate(script)
    return colours


def _point(page: Any, chart: str, column: float, row: float) -> str:
    """Point at a place of the map, given in shares of it, and read what is said there."""
    plot = _plot(page, chart)
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    x = box["x"] + LEFT + column * (box["width"] - LEFT - RIGHT)
    y = box["y"] + TOP + row * (box["height"] - TOP - BOTTOM)
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
    shown = plot.locator(".tip")
    shown.wait_for(state="visible")
    text: str = shown.inner_text()
    return text


def _cell(text: str) -> tuple[int, int]:
    found = re.match(r"layer (\d+), expert (\d+)", text)
    assert found is not None
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["demo", pytest.param("large", marks=pytest.mark.all)])
def test_all_charts_are_drawn_without_a_complaint_or_a_request(
    browser: Browser, name: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    with browser.page(path, color_scheme=scheme) as (page, seen):
        for chart in page.locator("[data-chart]").all():
            for plot in chart.locator(".plot").all():
                assert plot.locator("svg path, canvas").count() > 0
        lines = page.locator('[data-chart="coverage"] svg path[fill="none"]')
        assert lines.count() >= 6  # three lines in each phase, axes beside
        assert len(_pixels(page, "experts")) > 6
        assert len(_pixels(page, "placement")) >= (2 if name == "demo" else 3)
        assert seen.messages == []
        assert seen.requests == [path.as_uri()]


def test_dark_and_light_follow_the_system_and_the_button(browser: Browser, demo: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        with browser.page(demo, color_scheme=scheme) as (page, _):
            before = (page.evaluate(background), set(_pixels(page, "experts")))
            button = page.locator("#theme")
            assert button.inner_text() == ("Dark page" if scheme == "light" else "Light page")
            button.click()
            found[scheme] = before, (page.evaluate(background), set(_pixels(page, "experts")))
    assert found["light"][0] == found["dark"][1]
    assert found["dark"][0] == found["light"][1]
    assert found["light"][0][0] != found["dark"][0][0]


@pytest.mark.parametrize("name", ["demo", pytest.param("large", marks=pytest.mark.all)])
def test_a_phone_never_scrolls_sideways(
    browser: Browser, name: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    with browser.page(path, **PHONE) as (page, seen):
        for details in page.locator("details").all():
            details.evaluate("one => { one.open = true }")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        # No text is cut off: only what scrolls by itself may be wider than its place.
        wide = page.evaluate(
            """() => [...document.querySelectorAll("h1, h2, p, dd, dt, button, .controls, figure")]
              .filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0)
              .map(one => one.outerHTML.slice(0, 80))"""
        )
        assert wide == []
        assert seen.messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_goes_on_says_so_at_the_edge(
    browser: Browser, demo: Path, scheme: str
) -> None:
    """An arrow over a shade, where there is more; and the first column stays."""
    cue = "one => getComputedStyle(one, '::after').content"
    with browser.page(demo, color_scheme=scheme, **PHONE) as (page, seen):
        wide = page.locator("#layers .wide").first
        scroll, first = wide.locator(".scroll"), wide.locator("tbody th").first
        assert wide.get_attribute("data-more") == "end"
        assert "\u203a" in wide.evaluate(cue)
        assert _edge(wide) != page.evaluate("getComputedStyle(document.body).backgroundColor")
        left = first.bounding_box()["x"]
        for place, expected in ((60, "start end"), (10_000, "start")):
            scroll.evaluate(f"one => {{ one.scrollLeft = {place} }}")
            page.wait_for_function(
                "([one, said]) => one.dataset.more === said", arg=[wide.element_handle(), expected]
            )
            assert first.bounding_box()["x"] == left
            assert wide.locator("thead th").first.bounding_box()["x"] == left
        assert wide.evaluate(cue) == "none"
        # A table in a folded part is measured once it is opened.
        folded = page.locator("#coverage details").first
        folded.locator("summary").click()
        opened = folded.locator(".wide").element_handle()
        page.wait_for_function("one => one.dataset.more === 'end'", arg=opened)
        assert seen.messages == []
    with browser.page(demo, color_scheme=scheme) as (page, _):
        for one in page.locator(".wide:visible").all():
            assert one.get_attribute("data-more") == ""
            assert one.evaluate(cue) == "none"


def _edge(element: Any) -> str:
    """The colour of the last pixel of an element's middle, as CSS says it."""
    image = imread(io.BytesIO(element.screenshot()))
    red, green, blue = (round(255 * float(value)) for value in image[len(image) // 2, -1, :3])
    return f"rgb({red}, {green}, {blue})"


def test_pointing_at_a_cell_says_what_it_is(browser: Browser, demo: Path) -> None:
    trace = moeprof.open_trace(ROOT / "traces" / "demo")
    counts = trace.cell_counts().select(None, "decode").sum(axis=0)
    tiers = moeprof.read_placement(ROOT / "placements" / "demo.json").tier_of
    with browser.page(demo) as (page, _):
        for row, expert in ((0, 0), (3, 17), (5, 31)):
            text = _point(page, "experts", (expert + 0.5) / 32, (row + 0.5) / 6)
            own, total = int(counts[row, expert]), int(counts[row].sum())
            assert _cell(text) == (trace.shape.moe_layers[row], expert)
            assert f"decode choices\t{own:,}" in text
            assert f"share of the layer\t{100 * own / total:.1f} %" in text
            assert f"times the even share\t{32 * own / total:.2f}" in text
            assert f"rank in the layer\t{1 + int((counts[row] > own).sum())} of 32" in text
            assert f"tier\t{('vram', 'ram', 'nvme')[tiers[row, expert]]}" in text


def test_the_map_changes_with_phase_text_and_order(browser: Browser, demo: Path) -> None:
    cells = moeprof.open_trace(ROOT / "traces" / "demo").cell_counts()
    with browser.page(demo) as (page, _):
        chart = page.locator('[data-chart="experts"]')
        chart.get_by_role("button", name="prefill").click()
        chart.locator("select").select_option("german")
        counts = cells.select("german", "prefill").sum(axis=0)
        text = _point(page, "experts", 4.5 / 32, 1.5 / 6)
        assert f"prefill choices\t{counts[1, 4]:,}" in text
        chart.get_by_role("button", name="busiest first").click()
        text = _point(page, "experts", 0.5 / 32, 1.5 / 6)
        assert _cell(text)[1] == int(counts[1].argmax())
        assert "rank in the layer\t1 of 32" in text


@pytest.mark.all
def test_the_map_zooms_by_button_and_wheel_and_moves(browser: Browser, large: Path) -> None:
    with browser.page(large) as (page, seen):
        chart = page.locator('[data-chart="experts"]')
        wider = chart.get_by_role("button", name="zoom out")
        assert wider.is_disabled()
        chart.get_by_role("button", name="zoom in").click()
        # Half of the map, its middle: experts 32 to 95 and rows 12 to 35 (layers 13 to 36).
        layer, expert = _cell(_point(page, "experts", 0.01, 0.02))
        assert max(abs(layer - 13), abs(expert - 32)) <= 1
        layer, expert = _cell(_point(page, "experts", 0.99, 0.98))
        assert max(abs(layer - 36), abs(expert - 95)) <= 1
        before = _cell(_point(page, "experts", 0.5, 0.5))
        page.mouse.down()
        page.mouse.move(*_moved(page, 0.25), steps=5)
        page.mouse.up()
        assert _cell(_point(page, "experts", 0.75, 0.5))[1] == pytest.approx(before[1], abs=1)
        chart.get_by_role("button", name="show the whole map").click()
        assert _cell(_point(page, "experts", 0.5 / 128, 0.5 / 48)) == (1, 0)
        _point(page, "experts", 0.5, 0.5)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -400)
        page.keyboard.up("Control")
        assert wider.is_enabled()
        assert _cell(_point(page, "experts", 0.01, 0.5))[1] > 0
        assert seen.messages == []


def _moved(page: Any, share: float) -> tuple[float, float]:
    """The middle of the map, moved right by a share of its width."""
    box = _plot(page, "experts").bounding_box()
    width, height = box["width"] - LEFT - RIGHT, box["height"] - TOP - BOTTOM
    return box["x"] + LEFT + (0.5 + share) * width, box["y"] + TOP + 0.5 * height


@pytest.mark.all
def test_labels_of_layers_keep_apart_and_are_all_there_once_there_is_room(
    browser: Browser, large: Path
) -> None:
    """Labels of 12 pixels; 48 layers of 460 / 48 pixels, zoomed in twice of four times that."""
    script = f"""canvas => {{
      const {{ data, width }} = canvas.getContext("2d").getImageData(
        0, {TOP}, {LEFT - 2}, canvas.height - {TOP + BOTTOM});
      const isBlank = (row) => !data.slice(4 * width * row, 4 * width * (row + 1)).some(Boolean);
      const rows = Array.from({{ length: data.length / width / 4 }}, (_, row) => isBlank(row));
      return rows.filter((blank, row) => !blank && (row === 0 || rows[row - 1])).length;
    }}"""
    with browser.page(large) as (page, _):
        canvas = _plot(page, "experts").locator("canvas").first
        assert canvas.evaluate(script) == 24
        closer = page.locator('[data-chart="experts"]').get_by_role("button", name="zoom in")
        closer.click()
        closer.click()
        assert canvas.evaluate(script) in (12, 13)


@pytest.mark.all
def test_a_wheel_without_control_scrolls_the_page(browser: Browser, large: Path) -> None:
    with browser.page(large) as (page, _):
        _point(page, "experts", 0.5, 0.5)
        before = page.evaluate("scrollY")
        page.mouse.wheel(0, 300)
        waited = 0
        while page.evaluate("scrollY") == before and waited < 100:
            page.wait_for_timeout(50)
            waited += 1
        assert page.evaluate("scrollY") > before
        zoom = page.locator('[data-chart="experts"]').get_by_role("button", name="zoom out")
        assert zoom.is_disabled()


@pytest.mark.all
def test_one_finger_scrolls_the_page_and_moves_the_map_once_it_is_zoomed(
    browser: Browser, demo: Path
) -> None:
    with browser.page(demo, **PHONE) as (page, seen):
        chart, plot = page.locator('[data-chart="experts"]'), _plot(page, "experts")
        plot.evaluate("one => one.scrollIntoView({ block: 'center' })")
        box = plot.bounding_box()
        place = box["x"] + 150, box["y"] + 90
        before = page.evaluate("scrollY")
        _swipe(page, place, (0, -100))
        assert page.evaluate("scrollY") > before
        chart.get_by_role("button", name="zoom in").click()
        plot.evaluate("one => one.scrollIntoView({ block: 'center' })")
        before = page.evaluate("scrollY")
        page.touchscreen.tap(*place)
        layer, expert = _cell(plot.locator(".tip").inner_text())
        # Sixteen experts fill the map; it is moved by half of its width.
        _swipe(page, place, (-0.5 * (box["width"] - LEFT - RIGHT), 0))
        page.touchscreen.tap(*place)
        assert _cell(plot.locator(".tip").inner_text()) == (layer, pytest.approx(expert + 8, abs=1))
        assert page.evaluate("scrollY") == before
        assert seen.messages == []


def _swipe(page: Any, start: tuple[float, float], by: tuple[float, float]) -> None:
    """Put one finger down, move it in ten steps, lift it."""
    session = page.context.new_cdp_session(page)
    points = [(start[0] + by[0] * step / 10, start[1] + by[1] * step / 10) for step in range(11)]
    kinds = ["touchStart", *["touchMove"] * 10]
    for kind, (x, y) in zip(kinds, points, strict=True):
        touch = {"type": kind, "touchPoints": [{"x": x, "y": y}]}
        session.send("Input.dispatchTouchEvent", touch)
        page.wait_for_timeout(30)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(400)


def test_curves_change_with_the_text_and_say_their_numbers(browser: Browser, demo: Path) -> None:
    with browser.page(demo) as (page, _):
        chart = page.locator('[data-chart="coverage"]')
        before = chart.locator("svg").first.inner_html()
        chart.locator("select").select_option("python")
        assert chart.locator("svg").first.inner_html() != before
        plot = _plot(page, "coverage")
        plot.scroll_into_view_if_needed()
        plot.hover()
        text = plot.locator(".tip").inner_text()
        assert re.search(r"held-out\t\d+\.\d %\t\d+\.\d % to \d+\.\d %", text)
        assert "floor\t" in text


def test_curves_that_lie_on_each_other_are_told_apart(browser: Browser, tmp_path: Path) -> None:
    names = ("all_ram", "whole_layers", "any_experts", "hot_set", "cache", "hot_set_and_cache")
    same = tuple(make_strategy(name, 20.0, 0.0, 0.5) for name in (*names, "oracle"))
    sweep = tuple(SweepPoint(size, 0, "pin it", same) for size in (2**32, 2**33))
    advice = make_advice(strategies=same, sweep=sweep)
    counts = skewed_counts(3, 2, 4)
    inputs = inputs_of({"text": counts}, {"text": counts}, advice=advice)
    script = """svg => [...svg.querySelectorAll('path[fill="none"]')].map(path => [
      path.getAttribute("stroke"), path.getAttribute("stroke-width"),
      path.getAttribute("stroke-dasharray")])"""
    with browser.page(_written(tmp_path, inputs)) as (page, seen):
        chart = page.locator('[data-chart="sweep"]')
        inks = chart.locator(".legend i").evaluate_all(
            "all => all.map(one => getComputedStyle(one).backgroundImage.match(/rgb[^)]*\\)/)[0])"
        )
        drawn = _plot(page, "sweep").locator("svg").evaluate(script)
        curves = [curve for curve in drawn if curve[0].replace(" ", "") in
                  {ink.replace(" ", "") for ink in inks} and float(curve[1] or 1) > 1]  # fmt: skip
        assert len(curves) == len(inks) == len(same)
        assert len({(width, dashes) for _, width, dashes in curves}) == len(same)
        solid = [float(width) for _, width, dashes in curves if dashes is None]
        assert solid == sorted(solid, reverse=True)  # a wide one would hide a narrow one
        assert seen.messages == []


def test_layers_are_sorted_by_a_click(browser: Browser, demo: Path) -> None:
    with browser.page(demo) as (page, _):
        table = page.locator("#layers table").first
        column = table.locator("thead th", has_text="held-out")
        index = column.evaluate("one => one.cellIndex")

        def values() -> list[float]:
            script = f"row => Number(row.children[{index}].dataset.value)"
            return [row.evaluate(script) for row in table.locator("tbody tr").all()]

        given = values()
        column.get_by_role("button").click()
        assert column.get_attribute("aria-sort") == "descending"
        assert values() == sorted(given, reverse=True)
        column.get_by_role("button").click()
        assert column.get_attribute("aria-sort") == "ascending"
        assert values() == sorted(given)


def test_without_scripts_verdict_and_tables_remain(browser: Browser, demo: Path) -> None:
    with browser.page(demo, java_script_enabled=False, width=390) as (page, _):
        assert page.locator("#verdict h2").is_visible()
        assert page.locator("#layers table").first.locator("tbody tr").count() == 6
        assert page.locator("#layers table").first.is_visible()
        assert page.locator("#theme").is_hidden()
        assert page.get_by_text("drawn by a script").count() == page.locator("figure").count()
        page.locator("#coverage summary").first.click()
        assert page.locator("#coverage table").first.is_visible()


@pytest.mark.all
def test_paper_is_light_and_shows_every_table(browser: Browser, demo: Path) -> None:
    with browser.page(demo, color_scheme="dark") as (page, _):
        dark = page.evaluate("getComputedStyle(document.body).color")
        folded = page.locator("main details:not([open])").count()
        assert folded > 0
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("main details:not([open])").count() == 0
        assert page.evaluate("getComputedStyle(document.body).color") != dark
        assert page.locator("nav").is_hidden()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.emulate_media(media="screen", color_scheme="dark")
        assert page.locator("main details:not([open])").count() == folded
        assert page.evaluate("getComputedStyle(document.body).color") == dark
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_an_attack_by_name_does_not_run(browser: Browser, tmp_path: Path) -> None:
    counts = skewed_counts(3, 2, 4)
    cells = make_counts({ATTACK: counts, "prose": counts})
    inputs = make_inputs(
        cells,
        make_metadata(cells.shape, cells.domains),
        placement=make_placement(notes=(ATTACK,)),
    )
    with browser.page(_written(tmp_path, inputs)) as (page, seen):
        page.locator('[data-chart="coverage"] select').select_option(ATTACK)
        _plot(page, "coverage").hover()
        _point(page, "experts", 0.1, 0.1)
        assert page.evaluate("window.hacked") is None
        assert seen.messages == []
        assert len(seen.requests) == 1


def test_a_model_without_any_choice_in_a_layer_is_drawn(browser: Browser, tmp_path: Path) -> None:
    counts = skewed_counts(3, 3, 8)
    counts[:, 1] = 0
    cells = make_counts({"text": counts})
    inputs = make_inputs(cells, make_metadata(cells.shape, cells.domains))
    with browser.page(_written(tmp_path, inputs)) as (page, seen):
        assert "prefill choices\t0" in _point(page, "experts", 0.5, 0.5)
        assert seen.messages == []
        assert np.isfinite(len(_pixels(page, "experts")))
