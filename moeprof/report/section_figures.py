"""Figures of single sections of an analysis: nearness of tokens, caches, skew, drift, length."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from moeprof.analyze import Analysis
from moeprof.report.figures import set_title
from moeprof.report.headlines import places
from moeprof.report.table_parts import percent, phase_words, points

_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#8C8C8C"


def section_figures(analysis: Analysis) -> dict[str, Figure]:
    """Every figure that the analysis holds the numbers for, by the name of its file."""
    makers: dict[str, tuple[pd.DataFrame, Callable[[Analysis], Figure]]] = {
        "skew.png": (analysis.skew, skew_figure),
        "lag_overlap.png": (analysis.lag_overlap, lag_overlap_figure),
        "lru.png": (analysis.lru, lru_figure),
        "drift.png": (analysis.place_drift, drift_figure),
        "learning.png": (analysis.learning, learning_figure),
    }
    return {name: maker(analysis) for name, (frame, maker) in makers.items() if not frame.empty}


FIGURE_NAMES = ("skew.png", "lag_overlap.png", "lru.png", "drift.png", "learning.png")


def _panels(frame: pd.DataFrame, height: float = 4.2) -> tuple[Figure, dict[str, Axes], str]:
    """A figure with one panel for each phase, and the domain that it shows."""
    phases = list(dict.fromkeys(frame["phase"]))
    figure = Figure(figsize=(1.2 + 4.8 * len(phases), height), layout="constrained")
    axes = figure.subplots(1, len(phases), sharey=True, squeeze=False)[0]
    domain = frame["domain"].iloc[0]
    for one, phase in zip(axes, phases, strict=True):
        one.set_title(f"{phase_words(phase)}, {domain}", loc="left", fontsize=11)
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, dict(zip(phases, axes, strict=True)), str(domain)


def _of(frame: pd.DataFrame, phase: str, domain: str) -> pd.DataFrame:
    return frame[(frame["phase"] == phase) & (frame["domain"] == domain)]


def _band(axes: Axes, x: "pd.Series[float]", rows: pd.DataFrame, name: str, colour: str) -> None:
    low, high = rows[f"{name}_low"], rows[f"{name}_high"]
    axes.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
    axes.plot(x, rows[name], color=colour, linewidth=2.4)


def _label(axes: Axes, at: tuple[float, float], text: str, colour: str, above: bool) -> None:
    axes.annotate(
        text,
        at,
        xytext=(0, 5 if above else -5),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        color=colour,
        fontweight="bold",
    )


def skew_figure(analysis: Analysis) -> Figure:
    """Gini index of every layer beside that of even routing, by phase."""
    figure, panels, domain = _panels(analysis.skew)
    found = []
    for phase, axes in panels.items():
        rows = _of(analysis.skew, phase, domain)
        x = np.arange(len(rows))
        axes.bar(x, rows["gini"], color=_BLUE, width=0.8)
        axes.bar(x, rows["gini_floor"], color=_GREY, width=0.8)
        ends = np.stack([rows["gini"] - rows["gini_low"], rows["gini_high"] - rows["gini"]])
        axes.errorbar(x, rows["gini"], ends, fmt="none", ecolor="black", elinewidth=0.9)
        step = max(1, -(-len(x) // 16))
        axes.set_xticks(x[::step], [str(layer) for layer in rows["layer"][::step]])
        axes.set_xlabel("layer")
        axes.set_ylim(0, max(1.0, 1.05 * rows["gini_high"].max(skipna=True)))
        found.append(f"{rows['gini'].median():.2f} in {phase_words(phase)}")
    first = next(iter(panels.values()))
    first.set_ylabel("Gini index of experts' use")
    first.legend(
        handles=[first.containers[0], first.containers[1]],
        labels=["as traced", "by chance, routing even"],
        frameon=False,
        loc="upper right",
    )
    title = f"How unevenly experts are used: the median layer's Gini index is {' and '.join(found)}"
    set_title(figure, title)
    return figure


def lag_overlap_figure(analysis: Analysis) -> Figure:
    """What a token shares with the ones after it, against even routing and other documents."""
    figure, panels, domain = _panels(analysis.lag_overlap)
    found = []
    for phase, axes in panels.items():
        rows = _of(analysis.lag_overlap, phase, domain)
        _band(axes, rows["lag"], rows, "overlap", _BLUE)
        last = float(rows["lag"].max())
        lines = (("uniform", "even routing", _GREY), ("unrelated", "other documents", _ORANGE))
        for name, label, colour in lines:
            level = float(rows[name].iloc[0])
            if not np.isnan(level):
                axes.axhline(level, color=colour, linewidth=1.6, linestyle="--")
                _label(axes, (last, level), label, colour, above=name == "uniform")
        axes.set_xscale("log", base=2)
        axes.set_xticks([tick for tick in (1, 2, 4, 8, 16, 32, 64) if tick <= last])
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("tokens apart, in one document")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, None)
        found.append(f"{percent(rows['overlap'].iloc[0])} in {phase_words(phase)}")
    next(iter(panels.values())).set_ylabel("share of experts chosen again")
    even = percent(analysis.lag_overlap["uniform"].iloc[0])
    title = (
        f"The next token chooses {' and '.join(found)} of a token's experts again; {even} were "
        "routing even"
    )
    set_title(figure, title)
    return figure


def lru_figure(analysis: Analysis) -> Figure:
    """Hit rate of a cache of every size in each layer that evicts the least recently used."""
    figure, panels, domain = _panels(analysis.lru)
    found = []
    for phase, axes in panels.items():
        rows = _of(analysis.lru, phase, domain)
        _band(axes, rows["share"], rows, "hit_rate", _BLUE)
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1.6, linestyle="--")
        middle = float(np.interp(0.55, rows["share"], rows["hit_rate"]))
        _label(axes, (0.52, middle), "least recently used", _BLUE, above=True)
        axes.annotate(
            "even routing", (0.72, 0.68), color=_GREY, fontweight="bold", ha="left", va="top"
        )
        axes.set_xlabel("experts of each layer held")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        at = rows.iloc[(rows["share"] - analysis.settings.share).abs().argmin()]
        found.append(f"{percent(at['hit_rate'])} in {phase_words(phase)}")
        share = percent(at["share"])
    next(iter(panels.values())).set_ylabel("lookups served, token by token")
    title = f"Keeping the {share} of each layer's experts used last serves {' and '.join(found)}"
    set_title(figure, title)
    return figure


def drift_figure(analysis: Analysis) -> Figure:
    """Along a document above, along the trace below, by phase."""
    phases = list(dict.fromkeys(analysis.place_drift["phase"]))
    figure = Figure(figsize=(1.2 + 4.8 * len(phases), 6.4), layout="constrained")
    grid = figure.subplots(2, len(phases), sharey="row", squeeze=False)
    domain = str(analysis.place_drift["domain"].iloc[0])
    for column, phase in enumerate(phases):
        above, below = grid[:, column]
        above.set_title(f"{phase_words(phase)}, {domain}", loc="left", fontsize=11)
        _draw_places(above, _of(analysis.place_drift, phase, domain))
        if not analysis.trace_drift.empty:
            _draw_parts(below, _of(analysis.trace_drift, phase, domain))
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
    grid[0, 0].set_ylabel("coverage less that of the\nsame documents, points")
    grid[1, 0].set_ylabel("coverage of the first\nquarter's hot set")
    set_title(figure, _drift_title(analysis, domain))
    return figure


def _draw_places(axes: Axes, rows: pd.DataFrame) -> None:
    x = np.arange(len(rows))
    values = 100 * rows["difference"].to_numpy()
    ends = 100 * np.stack([rows["difference_low"], rows["difference_high"]])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.errorbar(x, values, np.abs(ends - values), fmt="o", color=_BLUE, capsize=4)
    names = [places(row).replace("tokens ", "").replace("token ", "") for _, row in rows.iterrows()]
    axes.set_xticks(x, names, rotation=20)
    axes.set_xlim(-0.5, len(x) - 0.5)
    axes.set_xlabel("tokens of the document, in this phase")


def _draw_parts(axes: Axes, rows: pd.DataFrame) -> None:
    x = rows["part"]
    axes.fill_between(
        x, rows["shuffled_low"], rows["shuffled_high"], color=_GREY, alpha=0.35, linewidth=0
    )
    axes.plot(x, rows["shuffled"], color=_GREY, linewidth=1.4, label="documents shuffled")
    axes.plot(x, rows["coverage"], "o-", color=_BLUE, linewidth=2.4, label="as traced")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("quarter of the documents, in the order of tracing")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.legend(frameon=False)


def _drift_title(analysis: Analysis, domain: str) -> str:
    rows = analysis.trace_drift
    if rows.empty:
        return "Coverage along a document"
    p_values = rows[rows["domain"] == domain].groupby("phase")["p_value"].first()
    moving = [phase for phase, p_value in p_values.items() if p_value <= 0.05]
    if moving:
        return f"Routing drifts along the trace in {' and '.join(map(str, moving))}"
    return "Along the trace, routing drifts no more than noise"


def learning_figure(analysis: Analysis) -> Figure:
    """Coverage of new documents and stability of the hot set against the documents chosen on."""
    figure, panels, domain = _panels(analysis.learning)
    for phase, axes in panels.items():
        rows = _of(analysis.learning, phase, domain)
        axes.plot(rows["documents"], rows["coverage"], "o-", color=_BLUE, linewidth=2.4)
        known = rows[rows["jaccard"].notna()]
        axes.plot(known["documents"], known["jaccard"], "o--", color=_ORANGE, linewidth=1.6)
        end = rows.iloc[-1]
        _label(axes, (end["documents"], end["coverage"]), "coverage", _BLUE, above=False)
        if len(known):
            last = known.iloc[-1]
            at = (last["documents"], last["jaccard"])
            _label(axes, at, "Jaccard index of two such sets", _ORANGE, above=True)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("documents that the hot set is chosen on")
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    row = analysis.sufficiency.iloc[-1]
    mine = _of(analysis.sufficiency, str(row["phase"]), domain).iloc[0]
    title = (
        f"More text would add {points(mine['loss'])} points of coverage, which is known to "
        f"±{points(mine['half_width'])} ({phase_words(mine['phase'])})"
    )
    set_title(figure, title)
    return figure
