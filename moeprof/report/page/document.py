"""From sections to one self-contained HTML file."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from moeprof.report.page.about import about_section
from moeprof.report.page.coverage import coverage_section
from moeprof.report.page.domains import domains_section
from moeprof.report.page.heat_map import heat_map_section
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.layers import layers_section
from moeprof.report.page.locality import locality_section
from moeprof.report.page.parts import Section
from moeprof.report.page.placement import placement_section
from moeprof.report.page.policies import policies_section
from moeprof.report.page.strategies import strategies_section
from moeprof.report.page.sufficiency import sufficiency_section
from moeprof.report.page.verdict import verdict
from moeprof.units import format_size

_SCRIPTS = (
    "vendor/echarts.min.js",
    "assets/widgets.js",
    "assets/curves.js",
    "assets/cells.js",
    "assets/page.js",
)
# The glossary of the README, as far as the page uses it.
_WORDS = (
    ("expert", "one feed-forward network of a MoE layer; each token is routed to a few of them"),
    ("cell", "one expert of one layer"),
    ("choice", "one (token, layer, expert) that the router picked, also called an assignment"),
    ("prefill, decode", "tokens the model was given; tokens it generated"),
    ("hot set", "the cells kept in the fastest memory"),
    ("coverage", "the share of a trace's choices that a hot set serves: a prediction"),
    ("hit rate", "the share of choices whose expert was in VRAM when it was needed"),
    ("held-out", "chosen on some documents, scored on others: what new text will see"),
    ("in-sample", "chosen and scored on the same documents: always flattering"),
    ("floor", "in-sample coverage had as many choices been drawn evenly: chance"),
    ("tier", "where weights live: vram, ram or nvme"),
)
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=%|×|[KMGT]?i?B\b|tokens/s)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_SIGNIFICANT = 5  # digits of a number in a chart: finer than a screen can show


def report_page(inputs: PageInputs) -> str:
    """The page as HTML: self-contained, of tables that need no script and charts that do.

    It asks for nothing outside itself, and a content security policy forbids it to: scripts run
    only if their hash stands in it, so that no name of a domain or document can become code.
    """
    sections = page_sections(inputs)
    charts = [chart for section in sections for chart in section.charts]
    data = _embedded({chart.key: {"kind": chart.kind, **chart.data} for chart in charts})
    scripts = tuple(_asset(name) for name in _SCRIPTS)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=inputs.analysis.name,
            model=inputs.metadata.model.name,
            summary=_summary(inputs),
            verdict=verdict(inputs),
            sections=sections,
            words=_WORDS,
            version=version("moeprof"),
            data=Markup(data),
            style=Markup(_asset("assets/page.css")),
            scripts=[Markup(script) for script in scripts],
            script_hashes=" ".join(_hash(script) for script in scripts),
            licences=_asset("vendor/LICENSES.txt"),
        )
    )


def _summary(inputs: PageInputs) -> str:
    shape = inputs.analysis.shape
    size = "experts of unknown size"
    if inputs.has_bytes:
        size = f"{format_size(shape.total_expert_bytes)} of experts"
    return (
        f"{shape.num_moe_layers} MoE layers × {shape.num_experts} experts, {shape.top_k} "
        f"chosen per token, {size}"
    )


def page_sections(inputs: PageInputs) -> tuple[Section, ...]:
    """Every section in the order of the page, those with nothing to show included."""
    strategies = strategies_section(inputs)
    compared = () if strategies.is_absent else (strategies,)
    return (
        *compared,
        coverage_section(inputs),
        heat_map_section(inputs),
        domains_section(inputs),
        policies_section(inputs),
        locality_section(inputs),
        placement_section(inputs),
        *(() if compared else (strategies,)),
        layers_section(inputs),
        sufficiency_section(inputs),
        about_section(inputs),
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(lambda name: _asset(f"assets/{name}")),
        undefined=StrictUndefined,
        finalize=_unbroken,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    return environment


def _prose(text: str) -> Markup:
    """Text as HTML, options of the command line set as code."""
    return Markup(_OPTION.sub(r"<code>\g<0></code>", str(escape(_unbroken(text)))))


def _unbroken(value: object) -> object:
    """Text in which no line ends between a number and its unit."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _BEFORE_UNIT.sub("\u00a0", value)
    return value


@cache
def _asset(path: str) -> str:
    return resources.files("moeprof.report.page").joinpath(path).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script's entry in a content security policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _embedded(value: object) -> str:
    """JSON that can stand inside a script element: no `<`, `>` or `&`, whatever the names are."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Arrays as lists, numbers to `_SIGNIFICANT` digits, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | pd.Series):
        return _plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{_SIGNIFICANT}g}") if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
