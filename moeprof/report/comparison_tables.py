"""A comparison on the terminal: what holds, what changed, and whether it could be chance."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeprof.analyze.comparison import Comparison, Interval, PhaseComparison
from moeprof.report.tables import percent

_SIGNIFICANT = 0.05
_UNKNOWN = "-"
_MOST_LAYERS = 12
_NAMED_CELLS = 6
_KEY = (
    "own, held out: a set of as many cells, chosen on other documents of the same trace. distance: "
    "square root of the Jensen-Shannon divergence in bits, 0 for the same shares, 1 for disjoint "
    "experts; by chance: when documents are dealt to the two sides at random; p: adjusted for all "
    "layers."
)


def comparison_tables(comparison: Comparison) -> RenderableType:
    """Findings, layers that differ most, cells that changed, and notes."""
    parts: list[RenderableType] = [Text(line) for line in findings(comparison)]
    parts.append(Text())
    for one in comparison.phases:
        parts.append(Text(f"{one.phase}: layers that differ most"))
        parts.append(_layer_table(one, comparison.is_placement))
        parts += [Text(line) for line in _changed_cells(one, comparison)]
        parts.append(Text())
    parts.append(Text(_KEY, style="dim"))
    parts += [Text(f"note: {note}") for note in comparison.notes]
    return Group(*parts)


def findings(comparison: Comparison) -> Iterator[str]:
    """For each phase what is kept, how far the hot sets agree, and what chance can do."""
    second = comparison.second
    for one in comparison.phases:
        first_on, own = one.coverage["first_on_second"], one.coverage["second_on_second"]
        of = "what lies in VRAM by" if comparison.is_placement else "the hot set of"
        sentence = (
            f"{one.phase}: {of} {comparison.first} ({one.cells} cells) serves {_spelled(first_on)} "
            f"of the assignments of {second}"
        )
        if np.isfinite(one.retained.value):
            sentence += (
                f"; its own, held out, {_spelled(own)}: {_spelled(one.retained)} of that is kept"
            )
        yield f"{sentence}."
        yield (
            f"{one.phase}: {len(one.kept)} cells are hot in both, {len(one.left)} in "
            f"{comparison.first} only, {len(one.entered)} in {second} only "
            f"(Jaccard {one.jaccard:.2f})."
        )
        if np.isfinite(one.p_value):
            yield f"{one.phase}: {_significance(one, comparison.permutations)}."


def _significance(one: PhaseComparison, permutations: int) -> str:
    basis = (
        f"p = {one.p_value:.3g}, {permutations} splits of {one.documents[0]} and "
        f"{one.documents[1]} documents"
    )
    if one.p_value <= _SIGNIFICANT:
        layers = int((one.layers["p_value"] <= _SIGNIFICANT).sum())
        return f"the routing differs ({basis}), in {layers} of {len(one.layers)} layers by itself"
    if one.smallest_p > _SIGNIFICANT:
        return f"too few documents to tell whether the routing differs ({basis})"
    return f"no difference beyond that between documents of one trace ({basis})"


def _layer_table(one: PhaseComparison, is_placement: bool) -> Table:
    """The layers that differ most, at most a dozen."""
    by = "jaccard" if is_placement else "distance"
    rows = one.layers.sort_values(by, ascending=is_placement).head(_MOST_LAYERS)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = ["layer", "hot cells shared"]
    names += [] if is_placement else ["distance", "by chance", "p"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for _, row in rows.iterrows():
        line = [f"{int(row['layer'])}", percent(row["jaccard"])]
        if not is_placement:
            line += [_figure(row, name) for name in ("distance", "distance_by_chance", "p_value")]
        table.add_row(*line)
    return table


def _figure(row: "pd.Series[float]", name: str) -> str:
    return _UNKNOWN if np.isnan(row[name]) else f"{row[name]:.3f}"


def _changed_cells(one: PhaseComparison, comparison: Comparison) -> Iterator[str]:
    for cells, name in ((one.left, comparison.first), (one.entered, comparison.second)):
        if len(cells):
            some = ", ".join(f"{layer}/{expert}" for layer, expert in cells[:_NAMED_CELLS].tolist())
            more = "" if len(cells) <= _NAMED_CELLS else f" and {len(cells) - _NAMED_CELLS} more"
            yield f"{one.phase}: hot in {name} only (layer/expert): {some}{more}"


def _spelled(figure: Interval) -> str:
    if np.isnan(figure.low):
        return percent(figure.value)
    return f"{percent(figure.value)} [{percent(figure.low)} to {percent(figure.high)}]"
