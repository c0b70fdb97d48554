"""The section on coverage: held out, in-sample and floor, against the share of cells kept."""

import numpy as np
import pandas as pd

from moeprof.analyze import Analysis
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import (
    Cell,
    Chart,
    Column,
    Section,
    Table,
    phase_words,
    share_cell,
)
from moeprof.report.tables import percent

LINES = {"held_out": "held-out", "in_sample": "in-sample", "floor": "floor"}


def coverage_section(inputs: PageInputs) -> Section:
    """How much of new text the busiest cells serve."""
    analysis = inputs.analysis
    return Section(
        "coverage",
        "Coverage",
        _finding(inputs),
        (
            "Keep the busiest cells, one cell being one expert of one layer: what share of all "
            "routing choices do they serve? Held-out is what new text will see: the cells are "
            "chosen on some documents and scored on others. In-sample flatters, being scored on "
            "the documents it was chosen on. The floor is what even routing would show by chance "
            "at this sample size. Bands are 95 % intervals over documents.",
        ),
        (_chart(inputs),),
        tuple(_table(analysis, phase) for phase in inputs.phases),
    )


def row_at_share(analysis: Analysis, phase: str, domain: str) -> "pd.Series[float]":
    """The row of `Analysis.coverage` at the share that was asked for."""
    frame = analysis.coverage
    at_share = np.isclose(frame["share"], analysis.settings.share)
    rows = frame[at_share & (frame["phase"] == phase) & (frame["domain"] == domain)]
    return rows.iloc[0]


def even_share(analysis: Analysis, row: "pd.Series[float]") -> float:
    """What the cells of a row of `Analysis.coverage` would serve of new text were routing even."""
    return float(row["cells"]) / analysis.shape.num_cells


def _finding(inputs: PageInputs) -> str:
    """What the hot set serves of new text, in every phase that has some; else of its own."""
    share = inputs.analysis.settings.share
    rows = {phase: row_at_share(inputs.analysis, phase, inputs.overall) for phase in inputs.phases}
    known = {phase: row for phase, row in rows.items() if not np.isnan(row["held_out"])}
    line = "held_out" if known else "in_sample"
    text = "new documents" if known else "the very documents they were chosen on"
    parts = {phase: f"{percent(row[line])} of {phase}" for phase, row in (known or rows).items()}
    serve = f"On {text}, the busiest {percent(share)} of cells serve"
    if known:
        even = even_share(inputs.analysis, rows[inputs.main_phase])
        return f"{serve} {' and '.join(parts.values())}; even routing would show {percent(even)}."
    # The fewer choices, the more uneven by chance: every phase has a floor of its own.
    own = [f"{part} ({percent(rows[phase]['floor'])} by chance)" for phase, part in parts.items()]
    return f"{serve} {' and '.join(own)}."


def _chart(inputs: PageInputs) -> Chart:
    curve = inputs.analysis.curve
    num_cells = inputs.analysis.shape.num_cells
    panels = []
    for (phase, domain), rows in curve.groupby(["phase", "domain"], sort=False):
        # The share that a whole number of cells really is: nominal shares would draw steps.
        rows = rows.drop_duplicates("cells")
        lines = []
        for line, name in LINES.items():
            values, low, high = (rows[f"{line}{end}"] for end in ("", "_low", "_high"))
            if values.isna().all():
                continue
            lines.append({"name": name, "role": line, "y": values, "low": low, "high": high})
        x = rows["cells"] / num_cells
        panels.append({"title": phase_words(str(phase)), "choice": domain, "x": x, "lines": lines})
    data = {
        "choice": "text",
        "choices": inputs.domains(inputs.phases[0]),
        "x": {"name": "share of cells kept", "unit": "percent"},
        "y": {"name": "choices served", "unit": "percent"},
        "mark": {"x": inputs.analysis.settings.share, "name": _mark(inputs)},
        "panels": panels,
    }
    return Chart("coverage", "curves", "Coverage against the share of cells kept", data)


def _mark(inputs: PageInputs) -> str:
    return f"{percent(inputs.analysis.settings.share)} of cells"


def _table(analysis: Analysis, phase: str) -> Table:
    frame = analysis.coverage[analysis.coverage["phase"] == phase]
    shares = list(dict.fromkeys(frame["share"]))
    columns = [Column("text", numeric=False), Column("coverage", numeric=False)]
    columns += [Column(percent(share)) for share in shares]
    rows = []
    for domain, found in frame.groupby("domain", sort=False):
        for line, name in LINES.items():
            cells = [
                share_cell(row[line], row[f"{line}_low"], row[f"{line}_high"])
                for _, row in found.iterrows()
            ]
            rows.append((Cell(str(domain)), Cell(name), *cells))
    return Table(
        f"Coverage by share of cells kept, {phase_words(phase)}: percent of choices, with 95 % "
        "intervals",
        tuple(columns),
        tuple(rows),
        folded=True,
    )
