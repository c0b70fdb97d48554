"""The tables of single sections of an analysis."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from moeprof.analyze import OVERALL, Analysis
from moeprof.report.coverage_tables import (
    coverage_table,
    hot_set_table,
    layer_table,
    overlap_tables,
)
from moeprof.report.headlines import places
from moeprof.report.table_parts import (
    UNKNOWN,
    brief,
    number,
    percent,
    phase_words,
    plain_table,
    points,
    titled,
)

_LAGS = (1, 2, 4, 8, 16, 32, 64)
_SIZES = (0.1, 0.2, 0.3, 0.5, 0.75)
_PAIRS = 12


def section_tables(analysis: Analysis, phases: Sequence[str]) -> Iterator[RenderableType]:
    """All tables of the sections that were asked for."""
    makers: dict[str, Callable[[Analysis, Sequence[str]], Iterator[RenderableType]]] = {
        "coverage": _coverage,
        "skew": _skew,
        "locality": _locality,
        "prediction": _prediction,
        "coactivation": _coactivation,
        "domains": _domains,
        "drift": _drift,
        "sufficiency": _sufficiency,
    }
    for section in analysis.settings.sections:
        yield from makers[section](analysis, phases)


def _of(frame: pd.DataFrame, phase: str) -> pd.DataFrame:
    return frame if frame.empty else frame[frame["phase"] == phase]


def _first_domain(frame: pd.DataFrame) -> pd.DataFrame:
    return frame if frame.empty else frame[frame["domain"] == frame["domain"].iloc[0]]


def _coverage(analysis: Analysis, phases: Sequence[str]) -> Iterator[RenderableType]:
    for phase in phases:
        yield coverage_table(analysis, phase)
    yield layer_table(analysis, phases)
    yield hot_set_table(analysis)


def _skew(analysis: Analysis, phases: Sequence[str]) -> Iterator[RenderableType]:
    table = plain_table(["phase", "domain"], ["used", "50 %", "80 %", "90 %", "95 %"])
    for _, row in analysis.concentration.iterrows():
        shares = [row[name] for name in ("used", "cells_50", "cells_80", "cells_90", "cells_95")]
        table.add_row(row["phase"], row["domain"], *map(percent, shares))
    yield titled("Cells that were ever used, and that carry a share of the assignments", table)
    for phase in phases:
        frame = _first_domain(_of(analysis.skew, phase))
        columns = ["Gini", "chance", "entropy", "used", "50 %", "80 %", "90 %", "95 %"]
        table = plain_table(["layer"], columns)
        for _, row in frame.iterrows():
            half = (row["gini_high"] - row["gini_low"]) / 2
            gini = number(row["gini"], 2) + ("" if np.isnan(half) else f"±{half:.2f}")
            table.add_row(
                str(row["layer"]),
                gini,
                number(row["gini_floor"], 2),
                number(row["entropy"], 2),
                percent(row["used"]),
                *[number(row[f"experts_{share}"]) for share in (50, 80, 90, 95)],
            )
        title = f"Skew by layer, {phase_words(phase)}, {frame['domain'].iloc[0]}"
        yield titled(f"{title}; the last columns: experts that carry so much", table)


def _locality(analysis: Analysis, phases: Sequence[str]) -> Iterator[RenderableType]:
    for phase in phases:
        lags = _of(analysis.lag_overlap, phase)
        if lags.empty:
            continue
        shown = [lag for lag in _LAGS if lag in set(lags["lag"])]
        table = plain_table(["domain"], [*map(str, shown), "even", "unrelated"])
        for domain, rows in lags.groupby("domain", sort=False):
            by_lag = {row["lag"]: row for _, row in rows.iterrows()}
            cells = [brief(by_lag[lag], "overlap") if lag in by_lag else UNKNOWN for lag in shown]
            rest = [f"{100 * rows[name].iloc[0]:.0f}" for name in ("uniform", "unrelated")]
            table.add_row(str(domain), *cells, *(UNKNOWN if r == "nan" else r for r in rest))
        title = "Percent of a token's experts that the token so many places later chooses, too"
        yield titled(f"{title}, {phase_words(phase)}", table)
        yield _cache_table(analysis, phase)
        yield _reuse_table(analysis, phase)


def _cache_table(analysis: Analysis, phase: str) -> RenderableType:
    frame = _of(analysis.lru, phase)
    num_experts, top_k = analysis.shape.num_experts, analysis.shape.top_k
    sizes = sorted({max(top_k, round(share * num_experts)) for share in _SIZES})
    table = plain_table(["domain"], [f"{size} ({size / num_experts:.0%})" for size in sizes])
    for domain, rows in frame.groupby("domain", sort=False):
        by_size = {row["experts"]: row for _, row in rows.iterrows()}
        table.add_row(str(domain), *[brief(by_size[size], "hit_rate") for size in sizes])
    return titled(
        f"Hit rate in percent of a cache of so many experts of each layer, least recently used "
        f"evicted, {phase_words(phase)}",
        table,
    )


def _reuse_table(analysis: Analysis, phase: str) -> RenderableType:
    frame = _first_domain(_of(analysis.locality_layers, phase))
    table = plain_table(["layer"], ["next token", "half", "80 %", "95 %", "first uses"])
    for _, row in frame.iterrows():
        distances = [number(row[f"reuse_{share}"]) for share in (50, 80, 95)]
        first = percent(row["first_uses"])
        table.add_row(str(row["layer"]), brief(row, "overlap"), *distances, first)
    domain = frame["domain"].iloc[0]
    return titled(
        f"Locality by layer, {phase_words(phase)}, {domain}: overlap with the next token in "
        "percent, other experts used before half (80 %, 95 %) of the reuses",
        table,
    )


def _prediction(analysis: Analysis, phases: Sequence[str]) -> Iterator[RenderableType]:
    for phase in phases:
        frame = _of(analysis.prediction, phase)
        if frame.empty:
            continue
        sizes = sorted(set(frame["candidates"]))
        table = plain_table(["domain", "told from"], [str(size) for size in sizes])
        for domain, rows in frame.groupby("domain", sort=False):
            by_size = {row["candidates"]: row for _, row in rows.iterrows()}
            for index, (name, label) in enumerate(
                (("recall", "the layer before"), ("popularity", "popularity"))
            ):
                cells = [brief(by_size[size], name) for size in sizes]
                style = None if index == 0 else "dim"
                table.add_row(str(domain) if index == 0 else "", label, *cells, style=style)
            table.add_section()
        title = "Percent of the next layer's experts among so many candidates"
        yield titled(f"{title}, {phase_words(phase)}", table)
        layers = _first_domain(_of(analysis.prediction_layers, phase))
        table = plain_table(["layer"], ["told from the layer before", "popularity"])
        for _, row in layers.iterrows():
            table.add_row(str(row["layer"]), brief(row, "recall"), brief(row, "popularity"))
        head = f"{layers['candidates'].iloc[0]} candidates by layer, {phase_words(phase)}"
        yield titled(f"{head}, {layers['domain'].iloc[0]}", table)


def _coactivation(analysis: Analysis, phases: Sequence[str]) -> Iterator[RenderableType]:
    for phase in phases:
        frame = _of(analysis.coactivation, phase)
        if frame.empty:
            continue
        table = plain_table(["domain"], ["on new documents", "where they were found"])
        for _, row in frame[frame["layer"].isna()].iterrows():
            table.add_row(row["domain"], _lift(row, "held_out"), _lift(row, "in_sample"))
        title = "How many times as often as by chance the 1 % of pairs that stand out come together"
        yield titled(f"{title}, {phase_words(phase)}", table)
        pairs = _first_domain(_of(analysis.pairs, phase))
        pairs = pairs.assign(lift=pairs["together"] / pairs["expected"])
        layers = {row["layer"]: row for _, row in _first_domain(frame).iterrows()}
        table = plain_table(["layer", "experts"], ["together", "by chance", "times", "layer, new"])
        for _, row in pairs.nlargest(_PAIRS, "together").iterrows():
            table.add_row(
                str(row["layer"]),
                f"{row['expert']}, {row['other']}",
                f"{row['together']:,}",
                f"{row['expected']:,.0f}",
                f"{row['lift']:.1f}",
                _lift(layers[row["layer"]], "held_out"),
            )
        title = f"Pairs most often together, {phase_words(phase)}, {frame['domain'].iloc[0]}"
        yield titled(f"{title}; the last column: the layer's pairs on new documents", table)


def _lift(row: "pd.Series[float]", line: str) -> str:
    value, low, high = row[line], row[f"{line}_low"], row[f"{line}_high"]
    if np.isnan(value):
        return UNKNOWN
    return f"{value:.2f}" + ("" if np.isnan(low) else f"±{max(value - low, high - value):.2f}")


def _domains(analysis: Analysis, phases: Sequence[str]) -> Iterator[RenderableType]:
    if analysis.transfer.empty:
        yield Text("There is a single domain: nothing to compare.")
    share = percent(analysis.settings.share)
    for phase in phases:
        yield from overlap_tables(analysis, phase)
        frame = _of(analysis.merging, phase)
        if frame.empty:
            continue
        table = plain_table(["domain"], ["own set", "one set for all", "loss in points"])
        for _, row in frame.iterrows():
            loss = points(row["loss"])
            if not np.isnan(row["loss_low"]):
                loss += f" [{points(row['loss_low'])} to {points(row['loss_high'])}]"
            style = "bold" if row["domain"] == OVERALL else None
            cells = [brief(row, "specialist"), brief(row, "merged"), loss]
            table.add_row(row["domain"], *cells, style=style)
        title = f"Coverage in percent of {share} of the cells on new documents"
        yield titled(f"{title}, {phase_words(phase)}", table)


def _drift(analysis: Analysis, phases: Sequence[str]) -> Iterator[RenderableType]:
    for phase in phases:
        frame = _of(analysis.place_drift, phase)
        if not frame.empty:
            buckets = frame.drop_duplicates("first").sort_values("first")
            table = plain_table(["domain"], [places(row) for _, row in buckets.iterrows()])
            for domain, rows in frame.groupby("domain", sort=False):
                by_place = {row["first"]: row for _, row in rows.iterrows()}
                cells = [
                    _difference(by_place[first]) if first in by_place else UNKNOWN
                    for first in buckets["first"]
                ]
                table.add_row(str(domain), *cells)
            title = (
                "Coverage along a document less that of the same documents everywhere, in points"
            )
            yield titled(f"{title}, {phase_words(phase)}", table)
        yield from _trace_drift_table(_of(analysis.trace_drift, phase), phase)


def _difference(row: "pd.Series[float]") -> str:
    half = max(
        row["difference_high"] - row["difference"], row["difference"] - row["difference_low"]
    )
    text = points(row["difference"], signed=True)
    return text if np.isnan(half) else f"{text}±{points(half)}"


def _trace_drift_table(frame: pd.DataFrame, phase: str) -> Iterator[RenderableType]:
    if frame.empty:
        return
    parts = sorted(set(frame["part"]))
    names = ["second", "third", "last"]
    table = plain_table(["domain"], [*names[-len(parts) :], "shuffled", "p of a fall"])
    for domain, rows in frame.groupby("domain", sort=False):
        low, high = rows["shuffled_low"].min(), rows["shuffled_high"].max()
        table.add_row(
            str(domain),
            *[f"{100 * value:.0f}" for value in rows["coverage"]],
            f"{100 * low:.0f} to {100 * high:.0f}",
            f"{rows['p_value'].iloc[0]:.3f}",
        )
    title = "Coverage in percent of the first quarter's hot set on later quarters of the documents"
    yield titled(f"{title}, {phase_words(phase)}", table)


def _sufficiency(analysis: Analysis, phases: Sequence[str]) -> Iterator[RenderableType]:
    table = plain_table(["phase", "domain"], ["documents", "tokens", "±", "lacks", "Jaccard"])
    table.add_column("enough?")
    for _, row in analysis.sufficiency.iterrows():
        table.add_row(
            row["phase"],
            row["domain"],
            f"{row['documents']:,}",
            f"{row['tokens']:,}",
            points(row["half_width"]),
            points(row["loss"]),
            number(row["jaccard"], 2),
            _missing(row),
        )
    within = points(analysis.settings.tolerance)
    title = (
        f"Is it enough to decide to ±{within} points? ± and lacks (for want of text) in points of "
        "coverage; Jaccard index of the hot sets of two halves"
    )
    yield titled(title, table)


def _missing(row: "pd.Series[Any]") -> str:
    if row["enough"]:
        return "yes"
    if pd.isna(row["more_documents"]):
        return "cannot be said"
    return f"no, about {row['more_documents']:,} more documents"
