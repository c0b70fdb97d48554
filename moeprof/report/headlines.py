"""An analysis in sentences: for each phase what it comes down to, verdict first."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from moeprof.analyze import OVERALL, Analysis
from moeprof.report.table_parts import percent, points, spelled
from moeprof.units import format_count


def headlines(analysis: Analysis, phase: str) -> Iterator[tuple[str, str]]:
    """A topic and a sentence on it for every section that there is in a phase."""
    makers: tuple[tuple[str, Callable[[Analysis, str], str | None]], ...] = (
        ("new text", _coverage),
        ("skew", _skew),
        ("next token", _overlap),
        ("recent use", _cache),
        ("next layer", _prediction),
        ("pairs", _pairs),
        ("domains", _merging),
        ("drift", _drift),
        ("enough?", _sufficiency),
    )
    for topic, maker in makers:
        sentence = maker(analysis, phase)
        if sentence is not None:
            yield topic, sentence


def _first(frame: pd.DataFrame, phase: str, **where: float) -> "pd.Series[Any] | None":
    """The row of all domains (or the only one) in a phase; None where there is none."""
    if frame.empty:
        return None
    rows = frame[frame["phase"] == phase]
    for name, value in where.items():
        rows = rows[(rows[name] - value).abs() < 1e-9]
    return rows.iloc[0] if len(rows) else None


def _coverage(analysis: Analysis, phase: str) -> str | None:
    share = analysis.settings.share
    row = _first(analysis.coverage, phase, share=share)
    if row is None:
        return None
    if row["cells"] == analysis.shape.num_cells:
        return (
            f"Everything fits: a hot set of all {row['cells']} cells serves every assignment, so "
            "that no choice among them gains anything."
        )
    cells = f"the busiest {percent(share)} of cells ({row['cells']} of {analysis.shape.num_cells})"
    if np.isnan(row["held_out"]):
        return (
            f"Not known, with a single document. On the text they were chosen on, {cells} serve "
            f"{percent(row['in_sample'])} of the assignments; by chance {percent(row['floor'])}."
        )
    kept = row["cells"] / analysis.shape.num_cells
    if np.isnan(row["held_out_low"]):
        verdict = "Not certain: too few documents for an interval"
    elif row["held_out_low"] <= kept:
        verdict = "No gain: routing is as good as even"
    else:
        verdict = f"{row['held_out'] / kept:.1f} times the even share"
    return (
        f"{verdict}. On documents they were not chosen on, {cells} serve "
        f"{spelled(row, 'held_out')} of the assignments; in-sample {percent(row['in_sample'])}, "
        f"by chance {percent(row['floor'])}."
    )


def _skew(analysis: Analysis, phase: str) -> str | None:
    row = _first(analysis.concentration, phase)
    if row is None:
        return None
    skew = analysis.skew
    mine = skew[(skew["phase"] == phase) & (skew["domain"] == row["domain"])]
    return (
        f"Half of the assignments fall on {percent(row['cells_50'])} of the cells, 80 % on "
        f"{percent(row['cells_80'])}, 95 % on {percent(row['cells_95'])}. Gini index of the median "
        f"layer {mine['gini'].median():.2f}; {mine['gini_floor'].median():.2f} by chance."
    )


def _overlap(analysis: Analysis, phase: str) -> str | None:
    row = _first(analysis.lag_overlap, phase, lag=1)
    if row is None:
        return None
    text = (
        f"{spelled(row, 'overlap', 1)} of a token's experts are chosen by the next token, too; "
        f"{percent(row['uniform'], 1)} were routing even"
    )
    if np.isnan(row["unrelated"]):
        return f"{text}."
    return f"{text}, {percent(row['unrelated'], 1)} between tokens of different documents."


def _cache(analysis: Analysis, phase: str) -> str | None:
    if analysis.lru.empty:
        return None
    shape = analysis.shape
    size = max(shape.top_k, round(analysis.settings.share * shape.num_experts))
    row = _first(analysis.lru, phase, experts=size)
    if row is None:
        return None
    return (
        f"A cache of the {row['experts']} experts of each layer that were used last "
        f"({percent(row['share'])}) serves {spelled(row, 'hit_rate')} of the lookups, token by "
        f"token, empty at the beginning of each document; at most {percent(row['share'])} were "
        "routing even."
    )


def _prediction(analysis: Analysis, phase: str) -> str | None:
    row = _first(analysis.prediction, phase)
    if row is None:
        return None
    return (
        f"The best {row['candidates']} candidates, told from the layer before, hold "
        f"{spelled(row, 'recall')} of the experts chosen; the busiest {row['candidates']} hold "
        f"{percent(row['popularity'])}."
    )


def _pairs(analysis: Analysis, phase: str) -> str | None:
    frame = analysis.coactivation
    row = None if frame.empty else _first(frame[frame["layer"].isna()], phase)
    if row is None or np.isnan(row["held_out"]):
        return None
    low, high = row["held_out_low"], row["held_out_high"]
    if low <= 1 <= high:
        return (
            "No two experts are chosen together more often than by chance beyond noise, on new "
            "documents."
        )
    interval = "" if np.isnan(low) else f" [{low:.1f} to {high:.1f}]"
    return (
        f"The 1 % of pairs that stand out most are chosen together {row['held_out']:.1f}{interval} "
        "times as often as by chance, on new documents."
    )


def _merging(analysis: Analysis, phase: str) -> str | None:
    frame = analysis.merging
    if frame.empty:
        return None
    mine = frame[(frame["phase"] == phase) & frame["loss"].notna()]
    overall = mine[mine["domain"] == OVERALL]
    if overall.empty:
        return None
    row, domains = overall.iloc[0], mine[mine["domain"] != OVERALL]
    worst = domains.sort_values("loss").iloc[-1]
    share = percent(analysis.settings.share)
    loss = f"{points(row['loss'])} points"
    if np.isnan(row["loss_low"]):
        return (
            f"One set of {share} for all domains serves {loss} less than a set for each, from too "
            "few documents for an interval."
        )
    loss += f" [{points(row['loss_low'])} to {points(row['loss_high'])}]"
    if row["loss_low"] <= 0:
        return (
            f"One set of {share} serves all domains as well as a set for each, as far as can be "
            f"told: it serves {loss} less."
        )
    return (
        f"One set of {share} for all domains serves {loss} less than a set for each; most is lost "
        f"by {worst['domain']}, {points(worst['loss'])} points."
    )


def _drift(analysis: Analysis, phase: str) -> str | None:
    parts = [_drift_of_trace(analysis, phase), _drift_of_documents(analysis, phase)]
    said = [part for part in parts if part is not None]
    return " ".join(said) if said else None


def _drift_of_trace(analysis: Analysis, phase: str) -> str | None:
    row = _first(analysis.trace_drift, phase)
    if row is None:
        return None
    if row["p_value"] > 0.05:
        return f"None from early to late documents beyond noise (p = {row['p_value']:.2f})."
    frame = analysis.trace_drift
    mine = frame[(frame["phase"] == phase) & (frame["domain"] == row["domain"])]
    last = mine.iloc[-1]
    return (
        f"The set of the first quarter of the documents serves {percent(last['coverage'])} of the "
        f"last, {percent(last['shuffled'])} were their order shuffled (p = {row['p_value']:.3f}): "
        "plan again from time to time."
    )


def _drift_of_documents(analysis: Analysis, phase: str) -> str | None:
    row = _first(analysis.place_drift, phase)
    if row is None:
        return None
    frame = analysis.place_drift
    mine = frame[(frame["phase"] == phase) & (frame["domain"] == row["domain"])]
    if mine["difference_low"].isna().all():
        return None
    beyond = mine[(mine["difference_low"] > 0) | (mine["difference_high"] < 0)]
    if beyond.empty:
        return "None along a document beyond noise."
    most = beyond.sort_values("difference", key=abs).iloc[-1]
    return (
        f"Along a document, coverage differs most at {places(most)}: by "
        f"{points(most['difference'], signed=True)} points."
    )


def _sufficiency(analysis: Analysis, phase: str) -> str | None:
    row = _first(analysis.sufficiency, phase)
    if row is None:
        return None
    frame = analysis.sufficiency
    mine = frame[frame["phase"] == phase]
    short = [one["domain"] for _, one in mine.iterrows() if not one["enough"]]
    text = enough(row, analysis.settings.tolerance)
    others = [name for name in short if name != row["domain"]]
    if row["enough"] and others:
        text += f" Not yet for {', '.join(others)} alone."
    return text


def enough(row: "pd.Series[Any]", tolerance: float) -> str:
    """A row of `Analysis.sufficiency` as a sentence."""
    within = f"±{points(tolerance)} points"
    if pd.isna(row["more_documents"]):
        return "It cannot be said from so few documents; trace three or more."
    if row["enough"]:
        return (
            f"Long enough to decide: coverage is known to ±{points(row['half_width'])} points, and "
            f"more text would add {points(row['loss'])}."
        )
    known = f"coverage is known to ±{points(row['half_width'])}"
    more = format_count(int(row["more_documents"]), "more document")
    tokens = format_count(int(row["more_tokens"]), "token")
    return f"Too short to decide to {within}: {known}; it takes about {more} ({tokens})."


def places(row: "pd.Series[Any]") -> str:
    """The tokens of a bucket of places in words."""
    if pd.isna(row["last"]):
        return f"token {row['first']:,} and later"
    return f"tokens {row['first']:,} to {row['last']:,}"
