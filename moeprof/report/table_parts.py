"""What tables on the terminal are made of: numbers as text, headings, columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeprof.placement import Budget

UNKNOWN = "-"


def percent(value: float, decimals: int | None = None) -> str:
    """A share as text; by default whole percent, one decimal below 10 %; `-` for NaN."""
    if np.isnan(value):
        return UNKNOWN
    if decimals is None:
        decimals = 1 if value < 0.0995 else 0
        return f"{100 * value:.{decimals}f} %".replace(".0 %", " %")
    return f"{100 * value:.{decimals}f} %"


def spelled(row: "pd.Series[Any]", line: str, decimals: int | None = None) -> str:
    """A share with its interval, such as `53 % [52 % to 54 %]`."""
    value, low, high = (percent(row[f"{line}{end}"], decimals) for end in ("", "_low", "_high"))
    return value if low == UNKNOWN else f"{value} [{low} to {high}]"


def brief(row: "pd.Series[Any]", line: str) -> str:
    """Whole percent without the sign and the interval's half width, rounded up: `61±3`."""
    value, low, high = row[line], row[f"{line}_low"], row[f"{line}_high"]
    if np.isnan(value):
        return UNKNOWN
    if np.isnan(low) or line == "floor":
        return f"{100 * value:.0f}"
    return f"{100 * value:.0f}±{np.ceil(100 * max(value - low, high - value)):.0f}"


def points(share: float, signed: bool = False) -> str:
    """A difference of shares in percentage points: whole from ten on, else one decimal."""
    if np.isnan(share):
        return UNKNOWN
    decimals = 0 if abs(share) >= 0.0995 else 1
    return f"{100 * share:{'+' if signed else ''}.{decimals}f}"


def number(value: float, decimals: int = 0) -> str:
    """A number as text; `-` for NaN."""
    return UNKNOWN if np.isnan(value) else f"{value:.{decimals}f}"


def is_too_wide(
    low: float | None, high: float | None, least: float = 0.0, is_share: bool = False
) -> bool:
    """Whether an interval says nothing of its figure, as too few tokens make it do.

    Args:
        low: its lower end; None or NaN where it is not known.
        high: its upper end.
        least: the smallest that the figure can be: no speed is below 0, no gain below -1.
        is_share: whether the figure cannot be above 1 either.
    """
    if low is None or high is None or not low < high or low > least:
        return False
    return not is_share or high >= 1


def phase_words(phase: str) -> str:
    """A phase as it stands in headings."""
    return "prefill and decode added" if phase == "all" else phase


def titled(title: str, table: Table) -> RenderableType:
    """A heading of its own: a table's title would be folded to the table's width."""
    return Group(Text(title, style="bold"), table)


def headed_table(title: str) -> Table:
    """A table without columns yet, its title in bold above it."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def spent_on(budget: Budget, cache: str) -> tuple[tuple[str, int], ...]:
    """What VRAM is spent on, and its bytes; `cache` names the line of the KV cache."""
    return (
        ("weights outside the experts", budget.dense_bytes),
        (cache, budget.kv_cache_bytes),
        ("workspace", budget.workspace_bytes),
        ("device context", budget.device_context_bytes),
        ("experts", budget.experts_used_bytes),
        ("unused", budget.experts_available_bytes - budget.experts_used_bytes),
    )


def plain_table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    """A table with columns of words, then columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
