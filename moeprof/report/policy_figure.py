"""The figure of a simulation: hit rate of every policy over the room for experts."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from moeprof.plan.simulation import Simulation
from moeprof.report.figures import set_title
from moeprof.report.tables import percent
from moeprof.units import format_size

# Okabe & Ito (2008); the bound is black, the floor grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7A5195")
_MARKERS = "osD^vP*X"
_GREY = "#8C8C8C"


def policy_figure(simulation: Simulation) -> Figure:
    """Hit rate over the share of experts that fit, by phase, between chance and the optimum."""
    rows = simulation.rows
    phases = list(dict.fromkeys(rows["phase"]))
    figure = Figure(figsize=(2.4 + 4.8 * len(phases), 4.9), layout="constrained")
    panels = figure.subplots(1, len(phases), sharey=True, squeeze=False)[0]
    total = simulation.total_bytes
    for axes, phase in zip(panels, phases, strict=True):
        _draw(axes, rows[rows["phase"] == phase])
        step = "token" if phase == "decode" else "prompt"
        needed = simulation.working_set_bytes[phase]
        _mark_working_set(axes, needed / total, f"one {step}: {format_size(needed)}")
        axes.set_title(phase, loc="left", fontsize=11)
        axes.set_xlabel(f"share of all experts ({format_size(total)}) in VRAM")
    panels[0].set_ylabel("share of lookups that hit")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    set_title(figure, _finding(rows, phases[-1]))
    return figure


def _draw(axes: Axes, rows: pd.DataFrame) -> None:
    policies = list(dict.fromkeys(rows["policy"]))
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1.4, linestyle="--", label="chance")
    own = 0
    for policy in policies:
        curve = rows[rows["policy"] == policy].sort_values("budget_share")
        x, y = curve["budget_share"].to_numpy(), curve["hit_rate"].to_numpy()
        if policy.split(":")[0] == "optimum":
            axes.plot(x, y, color="black", linewidth=1.6, label=policy, marker=".", zorder=1)
            continue
        colour = _COLOURS[own % len(_COLOURS)]
        marker = _MARKERS[own % len(_MARKERS)]
        own += 1
        low, high = (curve[f"hit_rate_{end}"].to_numpy(np.float64) for end in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=4, label=policy)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


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
