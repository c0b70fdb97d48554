"""Advice on the terminal: the verdict, one table of strategies, and what it rests on."""

import math
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeprof.placement import Estimate
from moeprof.plan.advice import ORACLE, WHOLE_LAYERS, Advice, PhaseOutcome, StrategyOutcome
from moeprof.report.strategy_names import LABELS
from moeprof.report.table_parts import headed_table, is_too_wide
from moeprof.units import format_size, format_speed

_UNKNOWN = "-"
_PHASES = {"decode": "replies", "prefill": "prompts"}
_KEY = (
    "replies: decode; prompts: prefill; hit rate: assignments whose expert is in VRAM; whole "
    "layers: as many as fit, and of one more what still fits, unlike first_layers of a plan; gain: "
    "over whole layers in as much VRAM; arbitrary experts: as many of each layer; hot set: the "
    "busiest experts; oracle: knows the future, the limit of any cache; ±: half of a 95 % interval "
    "over {of}, ? where it is too wide to say anything."
)


def advice_tables(advice: Advice) -> RenderableType:
    """The verdict, the strategies, where they break even, and what is known and missing."""
    finding = advice.finding
    parts: list[RenderableType] = [
        Text.assemble((f"{finding.answer}: ", "bold"), f"{finding.sentence}."),
    ]
    parts += [Text(f"would change with {change}.") for change in finding.would_change]
    parts += [Text(f"would not change with {change}.") for change in finding.in_vain]
    parts += [_strategy_table(advice), Text(_key(advice), style="dim")]
    caches = [one for one in advice.strategies if one.policy is not None]
    if caches:
        policies = "; ".join(f"{LABELS[one.name]}: {one.policy}" for one in caches)
        parts.append(Text(f"best policies: {policies}.", style="dim"))
    parts += [Text(line) for line in _break_even(advice)]
    parts += [Text(line) for line in _domain_sets(advice)]
    parts.append(Text(f"rests on: {'; '.join(advice.rests_on)}."))
    parts += [Text(f"missing: {line}.") for line in advice.missing]
    if advice.sweep:
        parts += [Text(), _sweep_table(advice)]
    return Group(*parts)


def _key(advice: Advice) -> str:
    return _KEY.format(of="pieces of the only document" if advice.pieces else "documents")


def _strategy_table(advice: Advice) -> Table:
    budget = advice.budget
    title = (
        f"{format_size(budget.total_bytes)} of VRAM, "
        f"{format_size(budget.experts_available_bytes)} of it for experts"
    )
    table = headed_table(title)
    table.add_column("\nstrategy")
    phases = [phase for phase in _PHASES if any(one.phase(phase) for one in advice.strategies)]
    priced = {phase: _is_priced(advice, phase) for phase in phases}
    for phase in phases:
        table.add_column(f"{_PHASES[phase]}\nhit rate", justify="right", no_wrap=True)
        names = ("tokens/s", "gain") if priced[phase] else ("over layers",)
        for name in names:
            table.add_column(f"\n{name}", justify="right", no_wrap=True)
    for one in advice.strategies:
        cells: list[str] = []
        for phase in phases:
            cells += _cells(one, phase, priced[phase])
        chosen = one.name == advice.finding.strategy
        style = "bold" if chosen else "dim" if one.name == ORACLE else None
        table.add_row(f"{'> ' if chosen else '  '}{LABELS[one.name]}", *cells, style=style)
    return table


def _is_priced(advice: Advice, phase: str) -> bool:
    outcomes = [one.phase(phase) for one in advice.strategies]
    return any(one is not None and one.tokens_per_s is not None for one in outcomes)


def _cells(one: StrategyOutcome, phase: str, is_priced: bool) -> Iterator[str]:
    outcome = one.phase(phase)
    yield _hit_rate(outcome)
    if is_priced:
        yield _speed(outcome)
    yield _gain(one.name, outcome, is_priced)


def _hit_rate(outcome: PhaseOutcome | None) -> str:
    if outcome is None or outcome.hit_rate is None:
        return _UNKNOWN
    return f"{100 * outcome.hit_rate.value:.1f} %"


def _speed(outcome: PhaseOutcome | None) -> str:
    if outcome is None or outcome.tokens_per_s is None:
        return _UNKNOWN
    text = format_speed(outcome.tokens_per_s.value)
    return text + _plus_minus(outcome.tokens_per_s, len(text.partition(".")[2]))


def _gain(name: str, outcome: PhaseOutcome | None, is_priced: bool) -> str:
    if outcome is None or name == WHOLE_LAYERS:
        return _UNKNOWN
    gain = outcome.gain if is_priced else outcome.extra_hits
    if gain is None:
        return _UNKNOWN
    return f"{_percents(gain)} %" if is_priced else _percents(gain)


def _percents(gain: Estimate) -> str:
    """A gain, or a difference of shares, with its sign and half of its interval."""
    ends = (None if end is None else 100 * end for end in (gain.low, gain.high))
    scaled = Estimate(100 * gain.value, *ends)
    return f"{scaled.value:+.1f}{_plus_minus(scaled, 1, least=-100)}"


def _plus_minus(estimate: Estimate, decimals: int, least: float = 0) -> str:
    """Half of an interval, after the figure; `least` as in `is_too_wide`."""
    if estimate.low is None or estimate.high is None:
        return ""
    if is_too_wide(estimate.low, estimate.high, least):
        return " ± ?"
    half = max(estimate.value - estimate.low, estimate.high - estimate.value)
    return f" ± {half:,.{decimals}f}"


def _break_even(advice: Advice) -> Iterator[str]:
    even = advice.break_even
    if even is None:
        return
    text = (
        "break-even: no hit rate makes experts spread over the layers faster than whole layers"
        if even.hit_rate is None
        else f"break-even: experts spread over the layers are faster than whole layers above a "
        f"hit rate of {100 * even.hit_rate:.0f} %"
    )
    if even.cache_hit_rate is not None:
        text += f", with the copies of the cache above {100 * even.cache_hit_rate:.0f} %"
    yield f"{text}."
    if even.prompt_per_output is not None and advice.finding.strategy is not None:
        yield (
            "break-even: prompts eat the gain up with more than "
            f"{even.prompt_per_output:.3g} prompt tokens per reply token."
        )


def _domain_sets(advice: Advice) -> Iterator[str]:
    sets = advice.domain_sets
    if sets is None:
        return
    gain = _percents(sets.gain)
    unit = "points of hit rate" if advice.hardware is None else "% tokens/s"
    text = f"one domain at a time, each with its own busiest experts: {gain} {unit} over one set"
    if not sets.pays:
        yield f"{text} for all, too little to bother."
        return
    text += f" for all; a switch copies {format_size(sets.switch_bytes)}"
    if sets.switch_tokens is not None:
        text += f", worth it from {max(1, math.ceil(sets.switch_tokens)):,} reply tokens on"
    yield f"{text}."


def _sweep_table(advice: Advice) -> Table:
    unit = "tokens/s" if advice.hardware else "hit rate"
    table = headed_table(f"The same with other budgets, {unit} in replies")
    table.add_column("VRAM", justify="right")
    table.add_column("verdict")
    names = list(dict.fromkeys(one.name for point in advice.sweep for one in point.strategies))
    for name in names:
        table.add_column(LABELS[name].replace(" ", "\n", 1), justify="right")
    for point in advice.sweep:
        by_name = {one.name: one.decode for one in point.strategies}
        cells = [_swept(by_name.get(name), advice.hardware is not None) for name in names]
        table.add_row(format_size(point.vram_bytes), point.answer, *cells)
    return table


def _swept(outcome: PhaseOutcome | None, is_priced: bool) -> str:
    if outcome is None:
        return _UNKNOWN
    if not is_priced:
        return _hit_rate(outcome)
    return _UNKNOWN if outcome.tokens_per_s is None else format_speed(outcome.tokens_per_s.value)
