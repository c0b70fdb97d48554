"""Figures of an analysis and of a placement, as matplotlib `Figure` objects without pyplot.

Colours are those of Okabe & Ito (2008, Color Universal Design) for lines and tiers, and
matplotlib's `RdBu_r` and `Blues` for maps, which readers with colour blindness tell apart.
"""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from moeprof.analyze import Analysis
from moeprof.placement import Tier
from moeprof.report.tables import percent

_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#8C8C8C"
_TIER_COLOURS = {Tier.VRAM: _BLUE, Tier.RAM: "#F0C87A", Tier.NVME: "#D9D9D9"}
_DOTS_PER_INCH = 150
_TITLE_LETTERS_PER_INCH = 8.4  # of figure width, at the size that `set_title` uses
_LARGEST_RATIO = 4.0  # times the uniform share at which the colours of the heat map end
# line: label, colour, width, share of cells at which the label stands, whether above the line
_LINES = {
    "floor": ("uniform floor", _GREY, 1.5, 0.62, False),
    "held_out": ("held-out", _BLUE, 3.0, 0.40, False),
    "in_sample": ("in-sample", _ORANGE, 1.4, 0.48, True),
}


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH)
    return stream.getvalue()


def coverage_figure(analysis: Analysis) -> Figure:
    """Coverage against the share of cells kept: the three lines with their bands, by phase.

    Drawn for all domains together, or the only domain that was analysed.
    """
    domain = analysis.samples["domain"].iloc[0]
    curve = analysis.curve[analysis.curve["domain"] == domain]
    phases = list(dict.fromkeys(curve["phase"]))
    figure = Figure(figsize=(1.2 + 4.8 * len(phases), 4.6), layout="constrained")
    panels = figure.subplots(1, len(phases), sharey=True, squeeze=False)[0]
    for axes, phase in zip(panels, phases, strict=True):
        _draw_curve(axes, curve[curve["phase"] == phase], analysis)
        axes.set_title(f"{_phase_words(phase)}, {domain}", loc="left", fontsize=11)
        axes.set_xlabel("share of cells (layer, expert) kept")
    panels[0].set_ylabel("share of assignments they serve")
    set_title(figure, _coverage_title(curve, analysis.settings.share))
    return figure


def heat_map_figure(
    counts: NDArray[np.int64], moe_layers: Sequence[int], words: str = ""
) -> Figure:
    """How busy every expert is, relative to even routing: by expert id, and sorted by layer.

    Args:
        counts: [L, E] int64, assignments.
        moe_layers: checkpoint index of each row.
        words: what was counted, such as `prefill, all domains`; stands above the left panel.
    """
    with np.errstate(invalid="ignore"):  # 0 / 0: a silent layer stays blank
        ratio = counts / counts.mean(axis=1, keepdims=True)
    num_layers, num_experts = counts.shape
    height = min(7.5, 2.7 + 0.13 * num_layers)
    figure = Figure(figsize=(11.5, height), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    norm = TwoSlopeNorm(0.0, -np.log2(_LARGEST_RATIO), np.log2(_LARGEST_RATIO))
    shown = ((ratio, "expert id"), (-np.sort(-ratio, axis=1), "experts, busiest first"))
    for axes, (values, label) in zip(panels, shown, strict=True):
        colours = np.log2(np.maximum(values, 1 / (2 * _LARGEST_RATIO)))
        image = axes.imshow(
            colours, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest"
        )
        axes.set_xlabel(label)
        _mark_layers(axes, moe_layers)
    panels[0].set_ylabel("layer")
    panels[0].set_title(words, loc="left", fontsize=11)
    ticks = np.arange(-np.log2(_LARGEST_RATIO), np.log2(_LARGEST_RATIO) + 1)
    bar = figure.colorbar(image, ax=panels, extend="both", extendfrac=0.03, ticks=ticks)
    bar.ax.set_yticklabels([f"{2.0**tick:g} x" for tick in ticks])
    bar.set_label("times the even share")
    busiest = np.nanmedian(np.max(ratio, axis=1))
    title = (
        f"In the median layer, the busiest of {num_experts} experts takes {busiest:.1f} times its "
        "even share"
    )
    set_title(figure, title)
    return figure


def transfer_figure(analysis: Analysis) -> Figure:
    """Coverage of each domain's hot set on each domain's documents, by phase.

    Raises:
        ValueError: the analysis has no two domains in one phase.
    """
    phases = list(dict.fromkeys(analysis.transfer["phase"]))
    if not phases:
        raise ValueError("transfer needs two domains in one phase")
    num_domains = analysis.transfer["trained_on"].nunique()
    side = 1.8 + 0.62 * num_domains
    figure = Figure(figsize=(1.6 + side * len(phases), side + 0.3), layout="constrained")
    panels = figure.subplots(1, len(phases), squeeze=False)[0]
    highest = float(np.nanmax(analysis.transfer["coverage"]))
    for axes, phase in zip(panels, phases, strict=True):
        rows = analysis.transfer[analysis.transfer["phase"] == phase]
        domains = list(dict.fromkeys(rows["trained_on"]))
        matrix = rows["coverage"].to_numpy().reshape(len(domains), len(domains))
        image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=highest)
        _number_cells(axes, matrix, highest)
        axes.set_xticks(range(len(domains)), domains, rotation=40, ha="right")
        axes.set_yticks(range(len(domains)), domains)
        axes.set_xlabel("scored on")
        axes.set_title(_phase_words(phase), loc="left", fontsize=11)
    panels[0].set_ylabel("hot set chosen on")
    bar = figure.colorbar(image, ax=panels, format=PercentFormatter(1, decimals=0), shrink=0.85)
    bar.set_label("assignments served, held out")
    set_title(figure, _transfer_title(analysis, phases[-1]))
    return figure


def placement_figure(
    tier_of: NDArray[np.uint8], moe_layers: Sequence[int], title: str | None = None
) -> Figure:
    """Which tier holds each expert of each layer.

    Args:
        tier_of: [L, E] uint8, values of `Tier`.
        moe_layers: checkpoint index of each row.
        title: the finding to state; None counts the experts of the fastest tier in use.
    """
    num_layers, num_experts = tier_of.shape
    height = min(7.5, 2.2 + 0.14 * num_layers)
    figure = Figure(figsize=(min(12.0, 6.0 + 0.05 * num_experts), height), layout="constrained")
    axes = figure.subplots()
    colours = ListedColormap([_TIER_COLOURS[tier] for tier in Tier])
    norm = BoundaryNorm(np.arange(len(Tier) + 1) - 0.5, len(Tier))
    axes.imshow(tier_of, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
    if num_experts <= 64:
        _draw_cell_borders(axes, tier_of.shape)
    axes.set_xlabel("expert id")
    axes.set_ylabel("layer")
    _mark_layers(axes, moe_layers)
    used = [tier for tier in Tier if np.any(tier_of == tier)]
    counted = {tier: int(np.sum(tier_of == tier)) for tier in used}
    handles = [
        Patch(facecolor=_TIER_COLOURS[tier], label=f"{tier.label} ({counted[tier]})")
        for tier in used
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title="tier")
    if title is None:
        title = f"{used[0].label} holds {counted[used[0]]} of {tier_of.size} experts"
    set_title(figure, title)
    return figure


def set_title(figure: Figure, text: str) -> None:
    """Write the finding above the panels, broken into lines that fit."""
    width = int(_TITLE_LETTERS_PER_INCH * figure.get_figwidth())
    wrapped = textwrap.fill(text, width)
    figure.suptitle(wrapped, fontsize=12.5, fontweight="bold", x=0.01, ha="left")


def _draw_curve(axes: Axes, curve: pd.DataFrame, analysis: Analysis) -> None:
    # The share that a whole number of cells really is: nominal shares would draw steps.
    x = curve["cells"].to_numpy() / analysis.shape.num_cells
    for line, (label, colour, width, at, above) in _LINES.items():
        y, low, high = (curve[f"{line}{end}"].to_numpy() for end in ("", "_low", "_high"))
        if np.isnan(y).all():
            continue
        axes.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(x, y, color=colour, linewidth=width)
        axes.annotate(
            label,
            (at, float(np.interp(at, x, y))),
            xytext=(-6, 6) if above else (8, -6),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "top",
            color=colour,
            fontweight="bold",
        )
    axes.axvline(analysis.settings.share, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _coverage_title(curve: pd.DataFrame, share: float) -> str:
    """What the hot set serves on new documents, in every phase; in-sample if nothing else is."""
    rows = curve[np.isclose(curve["share"], share)]
    line = "in_sample" if rows["held_out"].isna().all() else "held_out"
    text = "the documents they were chosen on" if line == "in_sample" else "new documents"
    parts = [percent(value) for value in rows[line]]
    if len(parts) > 1:
        parts = [f"{one} in {phase}" for one, phase in zip(parts, rows["phase"], strict=True)]
    serve = f"On {text}, the busiest {percent(share)} of cells serve"
    if line == "in_sample":
        # The fewer choices, the more uneven by chance: every phase has a floor of its own.
        floors = map(percent, rows["floor"])
        own = [f"{part} ({floor} by chance)" for part, floor in zip(parts, floors, strict=True)]
        return f"{serve} {' and '.join(own)}"
    chance = percent(rows["cells"].max() / curve["cells"].max())
    return f"{serve} {' and '.join(parts)}; {chance} were routing even"


def _transfer_title(analysis: Analysis, phase: str) -> str:
    rows = analysis.transfer[analysis.transfer["phase"] == phase]
    own = rows["trained_on"] == rows["scored_on"]
    share = percent(analysis.settings.share)
    return (
        f"A hot set of {share} of the cells serves {percent(rows['coverage'][own].mean())} of its "
        f"own domain, {percent(rows['coverage'][~own].mean())} of another ({_phase_words(phase)})"
    )


def _number_cells(axes: Axes, matrix: NDArray[np.float64], highest: float) -> None:
    """Write whole percents into a matrix and frame its diagonal."""
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        text = "-" if np.isnan(value) else f"{100 * value:.0f}"
        dark = value > 0.6 * highest
        colour = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=11)
    for index in range(len(matrix)):
        frame = Rectangle((index - 0.5, index - 0.5), 1, 1, fill=False, ec="black", lw=1.6)
        axes.add_patch(frame)


def _mark_layers(axes: Axes, moe_layers: Sequence[int]) -> None:
    """Label rows with checkpoint layers, at most some sixteen of them."""
    step = max(1, -(-len(moe_layers) // 16))
    rows = range(0, len(moe_layers), step)
    axes.set_yticks(rows, [str(moe_layers[row]) for row in rows])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_cell_borders(axes: Axes, shape: tuple[int, ...]) -> None:
    axes.set_xticks(np.arange(shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)


def _phase_words(phase: str) -> str:
    return "prefill and decode added" if phase == "all" else phase
