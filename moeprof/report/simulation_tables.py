"""A simulation on the terminal: for each phase, policies side by side under each budget."""

from collections.abc import Callable, Iterator

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeprof.plan.simulation import Simulation
from moeprof.report.table_parts import is_too_wide

_UNKNOWN = "-"
_KEY = (
    "hit rate: percent of lookups whose expert is in VRAM, ± the 95 % interval over documents; "
    "chance: that of arbitrary experts; optimum: no policy hits more. A prompt looks an expert "
    "up once for all of its tokens. copied: brought into VRAM. ?: too wide to say anything."
)


def simulation_tables(simulation: Simulation) -> RenderableType:
    """Hit rates, bytes copied and tokens/s of every policy under every budget, then the notes."""
    parts: list[RenderableType] = []
    for phase in dict.fromkeys(simulation.rows["phase"]):
        rows = simulation.rows[simulation.rows["phase"] == phase]
        parts += _phase_tables(simulation, str(phase), rows)
    parts.append(Text(_KEY, style="dim"))
    parts += [Text(f"note: {note}") for note in simulation.notes]
    return Group(*parts)


def _phase_tables(simulation: Simulation, phase: str, rows: pd.DataFrame) -> Iterator[Table]:
    def copied(row: pd.Series) -> str:
        return simulation.size_text(row["bytes_read"] / row["tokens"])

    yield _table(simulation, f"{phase}: hit rate in percent", rows, _hit_rate, chance=True)
    if rows["bytes_read"].any():
        yield _table(simulation, f"{phase}: copied per token", rows, copied)
    if rows["tokens_per_s"].notna().any():
        yield _table(simulation, f"{phase}: tokens/s", rows, _speed)


def _table(
    simulation: Simulation,
    title: str,
    rows: pd.DataFrame,
    cell: Callable[[pd.Series], str],
    chance: bool = False,
) -> Table:
    """A row for each budget, a column for each policy."""
    policies = list(dict.fromkeys(rows["policy"]))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("room", "of all", *(("chance",) if chance else ()), *policies):
        # Options of a policy stand under its name.
        table.add_column(name.replace(":", "\n").replace("+", "\n+"), justify="right", no_wrap=True)
    for budget, group in rows.groupby("budget_bytes", sort=True):
        by_policy = group.set_index("policy")
        first = group.iloc[0]
        lead = [simulation.size_text(float(str(budget))), f"{100 * first['budget_share']:.3g} %"]
        if chance:
            lead.append(f"{100 * first['floor']:.1f}")
        table.add_row(*lead, *(cell(by_policy.loc[policy]) for policy in policies))
    return table


def _hit_rate(row: pd.Series) -> str:
    return f"{100 * row['hit_rate']:.1f}{_half(row, 'hit_rate', 100)}"


def _speed(row: pd.Series) -> str:
    if pd.isna(row["tokens_per_s"]):
        return _UNKNOWN
    return f"{row['tokens_per_s']:.1f}{_half(row, 'tokens_per_s', 1)}"


def _half(row: pd.Series, name: str, factor: float) -> str:
    """Half of the interval of a figure; nothing where there is none or it would read 0."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if is_too_wide(low, high, is_share=name == "hit_rate"):
        return "±?"
    half = factor * (high - low) / 2
    return f"±{half:.1f}" if half >= 0.05 else ""
