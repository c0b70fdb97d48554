"""An analysis on the terminal: what it comes down to in sentences, then tables."""

from collections.abc import Iterator

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeprof.analyze import SECTIONS, Analysis
from moeprof.report.coverage_tables import coverage_table
from moeprof.report.headlines import headlines
from moeprof.report.section_tables import section_tables
from moeprof.report.table_parts import percent, phase_words, spelled
from moeprof.units import format_count

__all__ = ["analysis_tables", "findings", "percent"]

_KEY = (
    "Percent of assignments that the busiest cells (layer, expert) serve, ± the 95 % interval over "
    "documents. held-out: cells are scored on other documents than they were chosen on; "
    "in-sample: on the same; floor: in-sample, had as many assignments been drawn evenly."
)
_MORE = (
    f"All tables of a section: --section {', '.join(SECTIONS[:-1])} or {SECTIONS[-1]}. "
    "Figures: --plots DIR. Every number: --json."
)


def analysis_tables(analysis: Analysis) -> RenderableType:
    """What it comes down to in sentences, then tables, then notes.

    With every section asked for, the only tables are those of coverage by domain; with some
    sections asked for, all tables of those.
    """
    phases = list(dict.fromkeys(analysis.samples["phase"]))
    parts: list[RenderableType] = []
    for phase in phases:
        parts += [_heading(analysis, phase), _sentences(analysis, phase), Text()]
    if analysis.settings.sections == SECTIONS:
        parts += [coverage_table(analysis, phase) for phase in phases]
        parts += [Text(_KEY, style="dim"), Text(_MORE, style="dim")]
    else:
        parts += section_tables(analysis, phases)
    parts += [Text(f"note: {note}") for note in analysis.notes]
    return Group(*parts)


def _heading(analysis: Analysis, phase: str) -> Text:
    row = analysis.samples[analysis.samples["phase"] == phase].iloc[0]
    words = f"{phase_words(phase)}, {row['domain']}: {format_count(row['tokens'], 'token')}"
    return Text(words, style="bold")


def _sentences(analysis: Analysis, phase: str) -> Table:
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    for topic, sentence in headlines(analysis, phase):
        grid.add_row(f" {topic}", sentence)
    return grid


def findings(analysis: Analysis) -> Iterator[str]:
    """One sentence per phase: what the hot set serves, held out, in-sample and by chance."""
    share = analysis.settings.share
    coverage = analysis.coverage[np.isclose(analysis.coverage["share"], share)]
    for _, rows in coverage.groupby("phase", sort=False):
        row = rows.iloc[0]
        yield (
            f"{row['phase']}, {row['domain']}: the busiest {percent(share)} of cells "
            f"({row['cells']} of {analysis.shape.num_cells}) serve {spelled(row, 'held_out')} of "
            f"the assignments of documents they were not chosen on; in-sample "
            f"{spelled(row, 'in_sample')}; by chance {percent(row['floor'])}."
        )
