"""The figure of a simulation: hit rate of every policy over the room for experts."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from moeprof.plan.simulation import Simulation
from moeprof.report.figures import set_title
from moeprof.report.table_parts import is_too_wide
from moeprof.report.tables import percent
from moeprof.units import format_size

# Okabe & Ito (2008); the bound is black, the floor grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7A5195")
_MARKERS = "osD^vP*X"
# Dashes of one line after the other, each narrower than those below it, so that lines which lie on
# each other are told apart.
_DASHES = ("-", (0, (6, 3)), (0, (2, 2)), (0, (8, 2, 2, 2)))
_GREY = "#8C8C8C"


def policy_figure(simulation: Simulation) -> Figure:
    """Hit rate over the share of experts that fit, by phase, between chance and the optimum.

    Where decoding is priced, a last panel shows its tokens/s.
    """
    rows = simulation.rows
    phases = list(dict.fromkeys(rows["phase"]))
    priced = rows[(rows["phase"] == "decode") & rows["tokens_per_s"].notna()]
    columns = len(phases) + bool(len(priced))
    total = f" ({format_size(simulation.total_bytes)})" if simulation.has_bytes else ""
    figure = Figure(figsize=(2.4 + 4.6 * columns, 4.9), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    for axes, phase in zip(panels, phases, strict=False):
        _draw_hits(axes, rows[rows["phase"] == phase])
        step = "token" if phase == "decode" else "prompt"
        needed = simulation.working_set_bytes[phase]
        words = f"one {step}: {simulation.size_text(needed)}"
        _mark_working_set(axes, needed / simulation.total_bytes, words)
        axes.set_title(f"{phase}: share of lookups that hit", loc="left", fontsize=11)
    if len(priced):
        _draw_curves(panels[-1], priced, "tokens_per_s")
        panels[-1].set_ylim(bottom=0)
        panels[-1].set_title("decode: tokens/s, predicted", loc="left", fontsize=11)
    for axes in panels:
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(f"share of all experts{total} in VRAM")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    set_title(figure, _finding(rows, phases[-1]))
    return figure


def _draw_hits(axes: Axes, rows: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1.4, linestyle="--", label="chance")
    _draw_curves(axes, rows, "hit_rate")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_curves(axes: Axes, rows: pd.DataFrame, name: str) -> None:
    """A line for each policy, with its interval."""
    policies = list(dict.fromkeys(rows["policy"]))
    own = [policy for policy in policies if policy.split(":")[0] != "optimum"]
    for policy in policies:
        curve = rows[rows["policy"] == policy].sort_values("budget_share")
        x, y = curve["budget_share"].to_numpy(), curve[name].to_numpy()
        if policy not in own:
            (line,) = axes.plot(x, y, color="black", linewidth=1.6, label=policy, marker=".")
            line.set(linestyle=(0, (1.5, 2.5)), zorder=4)
            continue
        place = own.index(policy)
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        low, high = (curve[f"{name}_{end}"].to_numpy(np.float64) for end in ("low", "high"))
        is_share = name == "hit_rate"
        wide = [is_too_wide(*ends, is_share=is_share) for ends in zip(low, high, strict=True)]
        low, high = (np.where(wide, np.nan, end) for end in (low, high))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        (line,) = axes.plot(x, y, color=colour, marker=marker, markersize=4, label=policy)
        width = max(1.4, 3.0 - 0.4 * place)
        line.set(linestyle=_DASHES[place % len(_DASHES)], linewidth=width)


def _mark_working_set(axes: Axes, share: float, text: str) -> None:
    """Where what one step looks up begins to fit."""
    if share >= 1:
        return
    axes.axvline(share, color="black", linewidth=0.8, linestyle=":")
    left = share > 0.6
    axes.annotate(
        text,
        (share, 0.02),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=9,
    )


def _finding(rows: pd.DataFrame, phase: str) -> str:
    """The best policy that a machine can follow, at the budget closest to a quarter."""
    rows = rows[(rows["phase"] == phase) & rows["hit_rate"].notna()]
    shares = rows["budget_share"].to_numpy()
    at = rows[shares == shares[np.abs(shares - 0.25).argmin()]]
    share = percent(at["budget_share"].iloc[0])
    knows_future = at["policy"].str.split(":").str[0].isin(["belady", "optimum"])
    parts = []
    if not knows_future.all():
        best = at[~knows_future].nlargest(1, "hit_rate")
        rate = percent(best["hit_rate"].iloc[0])
        parts.append(f"{best['policy'].iloc[0]} hits {rate} of {phase}")
    bound = at[at["policy"] == "optimum"]
    if len(bound):
        parts.append(f"no policy can hit more than {percent(bound['hit_rate'].iloc[0])}")
    parts.append(f"arbitrary experts hit {percent(at['floor'].iloc[0])}")
    return f"With {share} of the experts in VRAM, " + ", ".join(parts)
