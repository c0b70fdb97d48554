"""An analysis on the terminal: the three coverages side by side, layers, hot sets, overlap."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeprof.analyze import Analysis

_LINES = {"held_out": "held-out", "in_sample": "in-sample", "floor": "floor"}
_UNKNOWN = "-"
_HOTTEST = 4
_KEY = (
    "Percent of assignments that the busiest cells (layer, expert) serve, ± the 95 % interval over "
    "documents. held-out: cells are scored on other documents than they were chosen on; "
    "in-sample: on the same; floor: in-sample, had as many assignments been drawn evenly."
)


def analysis_tables(analysis: Analysis) -> RenderableType:
    """Findings, coverage by domain, layers, hot sets, overlap and notes of an analysis."""
    phases = list(dict.fromkeys(analysis.samples["phase"]))
    parts: list[RenderableType] = [Text(line) for line in findings(analysis)]
    parts.append(Text())
    parts += [_coverage_table(analysis, phase) for phase in phases]
    parts.append(Text(_KEY, style="dim"))
    parts.append(Text())
    parts.append(_layer_table(analysis, phases))
    parts.append(_hot_set_table(analysis))
    for phase in phases:
        parts += _overlap_tables(analysis, phase)
    parts += [Text(f"note: {note}") for note in analysis.notes]
    return Group(*parts)


def findings(analysis: Analysis) -> Iterator[str]:
    """One sentence per phase: what the hot set serves, held out, in-sample and by chance."""
    share = analysis.settings.share
    coverage = analysis.coverage[np.isclose(analysis.coverage["share"], share)]
    for _, rows in coverage.groupby("phase", sort=False):
        row = rows.iloc[0]
        yield (
            f"{row['phase']}, {row['domain']}: the busiest {percent(share)} of cells "
            f"({row['cells']} of {analysis.shape.num_cells}) serve {_spelled(row, 'held_out')} of "
            f"the assignments of documents they were not chosen on; in-sample "
            f"{_spelled(row, 'in_sample')}; by chance {percent(row['floor'])}."
        )


def percent(value: float) -> str:
    """A share as text: whole percent, one decimal below 10 %; `-` for NaN."""
    if np.isnan(value):
        return _UNKNOWN
    return (
        f"{100 * value:.1f} %".replace(".0 %", " %") if value < 0.0995 else f"{value * 100:.0f} %"
    )


def _spelled(row: "pd.Series[float]", line: str) -> str:
    value, low, high = row[line], row[f"{line}_low"], row[f"{line}_high"]
    if np.isnan(low):
        return percent(value)
    return f"{percent(value)} [{percent(low)} to {percent(high)}]"


def _brief(row: "pd.Series[float]", line: str) -> str:
    """Whole percent without the sign and the interval's half width, rounded up: `61±3`."""
    value, low, high = row[line], row[f"{line}_low"], row[f"{line}_high"]
    if np.isnan(value):
        return _UNKNOWN
    if np.isnan(low) or line == "floor":
        return f"{100 * value:.0f}"
    return f"{100 * value:.0f}±{np.ceil(100 * max(value - low, high - value)):.0f}"


def _coverage_table(analysis: Analysis, phase: str) -> RenderableType:
    frame = analysis.coverage[analysis.coverage["phase"] == phase]
    shares = list(dict.fromkeys(frame["share"]))
    title = f"Coverage in percent, {_phase_words(phase)}, by share of cells kept"
    table = _table(["domain", "coverage"], [percent(share) for share in shares])
    for domain, rows in frame.groupby("domain", sort=False):
        for index, (line, label) in enumerate(_LINES.items()):
            cells = [_brief(row, line) for _, row in rows.iterrows()]
            name = str(domain) if index == 0 else ""
            table.add_row(name, label, *cells, style=None if index == 0 else "dim")
        table.add_section()
    return _titled(title, table)


def _layer_table(analysis: Analysis, phases: Sequence[str]) -> RenderableType:
    share = analysis.settings.share
    first = analysis.samples["domain"].iloc[0]
    frame = analysis.layers[analysis.layers["domain"] == first]
    columns = [f"{phase}\n{label}" for phase in phases for label in _LINES.values()]
    title = f"Coverage in percent, {first}, by layer, of a set of {percent(share)} in each layer"
    table = _table(["layer"], columns)
    for layer, rows in frame.groupby("layer"):
        by_phase = {row["phase"]: row for _, row in rows.iterrows()}
        cells = [
            _brief(by_phase[phase], line) if phase in by_phase else _UNKNOWN
            for phase in phases
            for line in _LINES
        ]
        table.add_row(str(layer), *cells)
    return _titled(title, table)


def _hot_set_table(analysis: Analysis) -> RenderableType:
    share = analysis.settings.share
    title = f"Hot sets of {percent(share)} of the cells; all of them with --json"
    columns = ["cells", "per layer"]
    table = _table(["phase", "domain"], columns)
    table.add_column("busiest, as layer:expert")
    for (phase, domain), cells in analysis.hot_sets.groupby(["phase", "domain"], sort=False):
        per_layer = cells["layer"].value_counts().reindex(analysis.shape.moe_layers, fill_value=0)
        busiest = cells.nlargest(_HOTTEST, "assignments")
        names = [f"{layer}:{expert}" for layer, expert in busiest[["layer", "expert"]].to_numpy()]
        spread = f"{per_layer.min()} to {per_layer.max()}"
        table.add_row(str(phase), str(domain), str(len(cells)), spread, ", ".join(names))
    return _titled(title, table)


def _overlap_tables(analysis: Analysis, phase: str) -> Iterator[RenderableType]:
    """Transfer and Jaccard of one phase; none with a single domain."""
    moved = analysis.transfer[analysis.transfer["phase"] == phase]
    if moved.empty:
        return
    words, share = _phase_words(phase), percent(analysis.settings.share)
    domains = list(dict.fromkeys(moved["trained_on"]))
    title = (
        f"Coverage transfer in percent, {words}: {share} of cells chosen on row, scored on column"
    )
    table = _table(["chosen on"], domains)
    for domain, rows in moved.groupby("trained_on", sort=False):
        table.add_row(str(domain), *[_brief(row, "coverage") for _, row in rows.iterrows()])
    yield _titled(title, table)
    index = analysis.jaccard[analysis.jaccard["phase"] == phase]
    title = f"Jaccard index of the hot sets, {words}; two sets at random have {_chance(analysis)}"
    table = _table([""], domains)
    for domain, rows in index.groupby("domain", sort=False):
        table.add_row(str(domain), *[f"{value:.2f}" for value in rows["jaccard"]])
    yield _titled(title, table)


def _chance(analysis: Analysis) -> str:
    """Jaccard index of two independent sets of share s: s^2 / (2 s - s^2)."""
    share = analysis.settings.share
    return f"{share / (2 - share):.2f}"


def _phase_words(phase: str) -> str:
    return "prefill and decode added" if phase == "all" else phase


def _titled(title: str, table: Table) -> RenderableType:
    """A heading of its own: a table's title would be folded to the table's width."""
    return Group(Text(title, style="bold"), table)


def _table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
