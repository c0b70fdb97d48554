"""The sweep of an advice as a matplotlib `Figure` without pyplot: tokens/s over VRAM."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from moeprof.placement import Estimate
from moeprof.plan import advice as words
from moeprof.plan.advice import Advice, PhaseOutcome
from moeprof.report.figures import set_title
from moeprof.report.strategy_names import LABELS
from moeprof.report.table_parts import is_too_wide
from moeprof.units import format_size, format_speed

# Okabe & Ito (2008, Color Universal Design); what needs no trace is grey, the oracle dotted.
# Lines that lie on each other are told apart: the wide ones are drawn first, dashes over them.
_LINES: dict[str, tuple[str, float, str | tuple[int, tuple[int, ...]]]] = {
    words.ALL_RAM: ("#BBBBBB", 1.4, "-"),
    words.ANY_EXPERTS: ("#8C8C8C", 1.4, "--"),
    words.WHOLE_LAYERS: ("#555555", 2.0, "-"),
    words.HOT_SET: ("#0072B2", 3.6, "-"),
    words.CACHE: ("#D55E00", 2.2, "-"),
    words.HOT_SET_AND_CACHE: ("#009E73", 2.2, (0, (4, 4))),
    words.ORACLE: ("#000000", 1.2, ":"),
}
# A sweep to this multiple of its beginning is drawn over the logarithm.
_WIDE = 8
_PHASES = {"decode": "replies (decode)", "prefill": "prompts (prefill)"}


def sweep_figure(advice: Advice) -> Figure:
    """Tokens/s of each strategy over the budget, a panel for each phase that is priced.

    Without a machine it draws hit rates in decode.

    Raises:
        ValueError: the advice has no sweep.
    """
    if not advice.sweep:
        raise ValueError("a sweep is drawn where one was asked for")
    phases = [phase for phase in _PHASES if _is_priced(advice, phase)]
    panels = max(1, len(phases))
    figure = Figure(figsize=(1.4 + 5.6 * panels, 4.8), layout="constrained")
    for axes, phase in zip(
        figure.subplots(1, panels, squeeze=False)[0], phases or ["decode"], strict=True
    ):
        _draw(axes, advice, phase, priced=bool(phases))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
    set_title(figure, _title(advice))
    return figure


def _is_priced(advice: Advice, phase: str) -> bool:
    outcomes = [one.phase(phase) for point in advice.sweep for one in point.strategies]
    return any(one is not None and one.tokens_per_s is not None for one in outcomes)


def _draw(axes: Axes, advice: Advice, phase: str, priced: bool) -> None:
    unit, name = _unit(advice)
    for strategy, (colour, width, style) in _LINES.items():
        points = [
            (point.vram_bytes / unit, _figure(one.phase(phase), priced))
            for point in advice.sweep
            for one in point.strategies
            if one.name == strategy
        ]
        known = [(vram, estimate) for vram, estimate in points if estimate is not None]
        if not known:
            continue
        vram = [one for one, _ in known]
        values = [one.value for _, one in known]
        axes.plot(vram, values, ls=style, color=colour, lw=width, label=LABELS[strategy])
        low, high = zip(*(_ends(one, priced) for _, one in known), strict=True)
        axes.fill_between(vram, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.axvline(advice.budget.total_bytes / unit, color="black", linewidth=0.8, linestyle=":")
    if advice.sweep[-1].vram_bytes >= _WIDE * advice.sweep[0].vram_bytes:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value, priced)))
    axes.set_xlabel(f"VRAM for everything, {name}")
    axes.set_ylabel("tokens/s" if priced else "hit rate")
    axes.set_title(_PHASES[phase], loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _ends(one: Estimate, priced: bool) -> tuple[float, float]:
    """Ends of the band; the figure itself where no interval says anything."""
    if one.low is None or one.high is None or is_too_wide(one.low, one.high, is_share=not priced):
        return one.value, one.value
    return one.low, one.high


def _number(value: float, priced: bool) -> str:
    if not priced:
        return f"{100 * value:.0f} %"
    return f"{value:,.0f}" if value == int(value) else format_speed(value)


def _unit(advice: Advice) -> tuple[float, str]:
    """Bytes of the unit in which the middle of the sweep is a handy number, and its name."""
    middle = advice.sweep[len(advice.sweep) // 2].vram_bytes
    for name, unit in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if middle >= unit:
            return unit, name
    return 1.0, "bytes"


def _figure(outcome: PhaseOutcome | None, priced: bool) -> Estimate | None:
    if outcome is None:
        return None
    return outcome.tokens_per_s if priced else outcome.hit_rate


def _title(advice: Advice) -> str:
    """Where something is worth it, in one sentence."""
    worth = [
        point
        for point in advice.sweep
        if point.answer not in (words.DO_NOT_BOTHER, words.CANNOT_TELL)
    ]
    where = f" ({advice.trace.name}"
    where += ")" if advice.hardware is None else f" on {advice.hardware.name})"
    if not worth:
        return f"No budget of the sweep makes it worth the trouble{where}"
    low, high = worth[0].vram_bytes, worth[-1].vram_bytes
    answers = " or ".join(dict.fromkeys(point.answer for point in worth))
    span = f"With {format_size(low)}"
    if high > low:
        span = f"From {format_size(low)} to {format_size(high)}"
    return f"{span} of VRAM: {answers}{where}"
