"""The section on length: whether the trace is long enough to decide, and whether text drifts."""

from typing import Any

import pandas as pd

from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import (
    Cell,
    Chart,
    Column,
    Section,
    Table,
    absent,
    between,
    phase_words,
    share_cell,
)
from moeprof.report.tables import percent

_KEY, _TITLE = "sufficiency", "Enough text?"
_CLEAR = 0.05  # below it a fall is not taken for chance


def sufficiency_section(inputs: PageInputs) -> Section:
    """How far more text would move the figures, and whether old text still tells of new."""
    analysis = inputs.analysis
    frame = analysis.sufficiency
    if frame.empty:
        return absent(_KEY, _TITLE, inputs.reason(_KEY))
    prose = [
        "The curve shows the held-out coverage of a hot set chosen on fewer documents: where it "
        "is flat, more text of the same kinds would not choose better."
    ]
    prose += [text for phase in inputs.phases for text in _drift(inputs, phase)]
    charts = () if analysis.learning.empty else (_chart(analysis.learning),)
    tables = [_table(frame, phase) for phase in dict.fromkeys(frame["phase"])]
    if not analysis.place_drift.empty:
        tables.append(_places(analysis.place_drift, inputs.overall))
    return Section(_KEY, _TITLE, _finding(inputs), tuple(prose), charts, tuple(tables))


def _finding(inputs: PageInputs) -> str:
    frame = inputs.analysis.sufficiency
    rows = frame[(frame["domain"] == inputs.overall) & (frame["phase"] == inputs.main_phase)]
    row = (rows if len(rows) else frame).iloc[0]
    several = row["documents"] != 1
    documents = f"{row['documents']:,} document{'s are' if several else ' is'}"
    points = f"{100 * inputs.analysis.settings.tolerance:g} points"
    if row["enough"]:
        return f"{documents} enough to know the coverage of {row['phase']} to within {points}."
    if pd.isna(row["more_documents"]):
        return f"{documents} too few to say how many more are needed."
    return (
        f"{documents} not enough: it takes about {row['more_documents']:,.0f} more to know the "
        f"coverage of {row['phase']} to within {points}."
    )


def _drift(inputs: PageInputs, phase: str) -> list[str]:
    """Whether the earliest documents tell less of late ones than of documents at large."""
    drift = inputs.analysis.trace_drift
    if drift.empty:
        return []
    rows = drift[(drift["domain"] == inputs.overall) & (drift["phase"] == phase)]
    if rows.empty:
        return []
    first, last = rows.iloc[0], rows.iloc[-1]
    text = (
        f"Drift in {phase}: the hot set of the first {percent(1 / first['parts'])} of the "
        f"documents serves {percent(last['coverage'])} of the last, "
        f"{percent(last['shuffled'])} in shuffled order"
    )
    if last["p_value"] < _CLEAR:
        return [
            f"{text}: a fall with time that chance does not explain (p = {last['p_value']:.2g})."
        ]
    return [f"{text}; no fall with time can be told from chance (p = {last['p_value']:.2f})."]


def _chart(learning: pd.DataFrame) -> Chart:
    panels = []
    for (phase, domain), rows in learning.groupby(["phase", "domain"], sort=False):
        line = {"name": "held-out coverage", "role": "held_out", "y": rows["coverage"]}
        panels.append(
            {
                "title": phase_words(str(phase)),
                "choice": domain,
                "x": rows["documents"],
                "lines": [line],
            }
        )
    data: dict[str, Any] = {
        "choice": "text",
        "choices": list(dict.fromkeys(str(name) for name in learning["domain"])),
        "x": {"name": "documents chosen on", "unit": "count", "log": True, "tight": True},
        "y": {"name": "choices served", "unit": "percent"},
        "panels": panels,
    }
    return Chart("learning", "curves", "Held-out coverage against documents", data)


def _table(frame: pd.DataFrame, phase: str) -> Table:
    columns = (
        Column("text", numeric=False),
        Column("documents"),
        Column("tokens"),
        Column("enough", numeric=False),
        Column("half interval", "half of the 95 % interval of held-out coverage, in points"),
        Column("lost", "what the hot set lacks for want of text, in points"),
        Column("alike", "Jaccard index of hot sets chosen on two halves"),
        Column("more documents", "needed to be within the tolerance"),
    )
    rows = []
    for _, row in frame[frame["phase"] == phase].iterrows():
        cells = [Cell(str(row["domain"]))]
        cells += [Cell(f"{row[name]:,}", float(row[name])) for name in ("documents", "tokens")]
        cells.append(Cell("yes" if row["enough"] else "no", str(row["enough"])))
        cells += [_number(100 * row[name], ".1f") for name in ("half_width", "loss")]
        cells += [_number(row["jaccard"], ".2f"), _number(row["more_documents"], ",.0f")]
        rows.append(tuple(cells))
    caption = f"{phase}: whether the text decides, for each kind of it"
    return Table(caption, columns, tuple(rows), folded=True)


def _number(value: float, digits: str) -> Cell:
    return Cell("–") if pd.isna(value) else Cell(f"{value:{digits}}", float(value))


def _places(drift: pd.DataFrame, domain: str) -> Table:
    columns = (
        Column("phase", numeric=False),
        Column("tokens"),
        Column("coverage"),
        Column("beside everywhere", "distance from the same documents everywhere, in points"),
    )
    rows = []
    for _, row in drift[drift["domain"] == domain].iterrows():
        ends = between(row["difference_low"], row["difference_high"])
        rows.append(
            (
                Cell(str(row["phase"])),
                Cell(f"{row['first']:,} to {row['last']:,}", float(row["first"])),
                share_cell(row["coverage"], row["coverage_low"], row["coverage_high"]),
                Cell(f"{100 * row['difference']:+.1f}", float(row["difference"]), ends),
            )
        )
    return Table("Held-out coverage along a document", columns, tuple(rows), folded=True)
