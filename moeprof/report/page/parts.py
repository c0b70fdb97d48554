"""What a page is built of: sections of one finding each, with their charts and tables."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moeprof.placement import Estimate
from moeprof.report.table_parts import is_too_wide
from moeprof.report.tables import percent

UNKNOWN = "–"
TOO_WIDE = "interval too wide to say"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says.
        value: what its column is sorted by; None sorts last.
        note: in smaller type after the text, such as an interval.
        shade: depth of its background, in [0, 1]; None leaves it plain.
    """

    text: str
    value: float | str | None = None
    note: str = ""
    shade: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading, what the heading means, and whether it holds numbers."""

    name: str
    hint: str = ""
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row names it.

    Attributes:
        caption: what the numbers are, with their unit.
        columns: from left to right.
        rows: one tuple of cells per row, as many as there are columns.
        sortable: whether a reader may order it by column.
        is_matrix: whether rows and columns are the same things, drawn as a grid.
        folded: whether it is opened by the reader.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = False
    is_matrix: bool = False
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart that the page's script draws.

    Attributes:
        key: names the chart in the page.
        kind: which drawing, a key of `drawings` in `assets/page.js`.
        label: what is seen, for those who cannot.
        data: JSON values; NaN is allowed and becomes null.
    """

    key: str
    kind: str
    label: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """One finding, and what it rests on.

    Attributes:
        key: names the section in links.
        title: one or two words.
        finding: what it says, in one sentence; where nothing can be said, why.
        prose: paragraphs between the finding and the chart.
        charts: in order.
        tables: below the charts.
        rests_on: sentences for those who want to know how it was computed.
        is_absent: whether `finding` says why there is nothing to show.
    """

    key: str
    title: str
    finding: str
    prose: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    rests_on: tuple[str, ...] = ()
    is_absent: bool = False


def absent(key: str, title: str, reason: str) -> Section:
    """A section with nothing in it but the reason."""
    return Section(key, title, reason, is_absent=True)


def sentence(text: str) -> str:
    """A clause as a sentence: with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def share_cell(value: float, low: float = np.nan, high: float = np.nan) -> Cell:
    """A share as percent, with its interval, cut to [0, 1], where there is one."""
    if np.isnan(value):
        return Cell(UNKNOWN)
    if is_too_wide(low, high, is_share=True):
        return Cell(percent(value), float(value), TOO_WIDE)
    low, high = np.clip([low, high], 0.0, 1.0)
    return Cell(percent(value), float(value), between(low, high))


def between(low: float, high: float) -> str:
    """An interval of shares in percent, such as `51 to 54`; empty where it is not known."""
    if np.isnan(low) or np.isnan(high):
        return ""
    digits = 0 if min(low, high) >= 0.0995 and high - low >= 0.01 else 1
    return _from_to(100 * low, 100 * high, digits)


def _from_to(low: float, high: float, digits: int) -> str:
    """Both ends of an interval; empty where they look the same."""
    ends = [f"{end:,.{digits}f}" for end in (low, high)]
    return "" if ends[0] == ends[1] else " to ".join(ends)


def estimate_text(
    estimate: Estimate, digits: int | None = None, least: float = 0.0
) -> tuple[str, str]:
    """A figure and its interval as texts.

    The interval is empty where it is not known, or narrower than can be seen.

    Args:
        estimate: the figure.
        digits: after the point; of None, three in all or more.
        least: the smallest that the figure can be; an interval that goes below says nothing.
    """
    if digits is None:
        digits = 0 if abs(estimate.value) >= 100 else 1 if abs(estimate.value) >= 10 else 2
    text = f"{estimate.value:,.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text, ""
    if is_too_wide(estimate.low, estimate.high, least):
        return text, TOO_WIDE
    return text, _from_to(estimate.low, estimate.high, digits)


def estimate_cell(estimate: Estimate | None, most: float | None = None) -> Cell:
    """A figure with its interval; a dash without one.

    Args:
        estimate: the figure.
        most: the figure whose bar would fill the cell; None for no bar.
    """
    if estimate is None:
        return Cell(UNKNOWN)
    text, note = estimate_text(estimate)
    return Cell(text, estimate.value, note, estimate.value / most if most else None)


def estimated_share(estimate: Estimate | None) -> Cell:
    """A share as percent with its interval; a dash without one."""
    if estimate is None:
        return Cell(UNKNOWN)
    low, high = (np.nan if end is None else end for end in (estimate.low, estimate.high))
    return share_cell(estimate.value, low, high)


def phase_words(phase: str) -> str:
    """A phase as readers are told of it."""
    return {
        "prefill": "prefill, the text a model is given",
        "decode": "decode, the text it writes",
        "all": "prefill and decode added",
    }[phase]
