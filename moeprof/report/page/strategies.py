"""The section on strategies: what each way to use the VRAM gains over whole layers."""

from typing import Any

import numpy as np

from moeprof.placement import Estimate
from moeprof.plan import ModelFacts, PlanRequest
from moeprof.plan.advice import (
    ORACLE,
    WHOLE_LAYERS,
    Advice,
    PhaseOutcome,
    StrategyOutcome,
)
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import (
    UNKNOWN,
    Cell,
    Chart,
    Column,
    Section,
    Table,
    absent,
    estimate_cell,
    estimate_text,
    estimated_share,
    sentence,
)
from moeprof.report.strategy_names import IN_SENTENCE, LABELS
from moeprof.report.table_parts import is_too_wide
from moeprof.report.tables import percent
from moeprof.units import format_size

_KEY, _TITLE = "strategies", "Strategies"
_SWEPT = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)  # of all experts
# The line that belongs to a strategy in every chart.
_ROLES = {
    "all_ram": "floor",
    "whole_layers": "5",
    "any_experts": "6",
    "hot_set": "1",
    "cache": "2",
    "hot_set_and_cache": "3",
    "oracle": "bound",
}


def swept_budgets(facts: ModelFacts, plan: PlanRequest) -> tuple[int, ...]:
    """The budget asked for and others, from no expert in VRAM to all of them, ascending."""
    rest = facts.dense_bytes + facts.kv_cache_bytes + facts.workspace_bytes
    rest += plan.device_context_bytes
    swept = {rest + int(share * facts.total_expert_bytes) for share in _SWEPT}
    return tuple(sorted(swept | {plan.vram_bytes}))


def strategies_section(inputs: PageInputs) -> Section:
    """All strategies at one budget, and the same over budgets where they were swept."""
    advice = inputs.advice
    if advice is None:
        return absent(
            _KEY,
            _TITLE,
            "No model and budget were given, so nothing is said on what pinning or caching "
            "experts gains; name them with --model MODEL --vram SIZE, and a machine with "
            "--hardware FILE, or --gpu and --ram, for tokens/s.",
        )
    budget = advice.budget
    prose = [
        f"At {format_size(budget.total_bytes)} of VRAM, "
        f"{format_size(budget.experts_available_bytes)} of it for experts. Gains are over the best "
        "split by whole layers in as much VRAM, which needs no trace and fills one more layer in "
        f"part. {_scored_on(advice)}",
        *_break_even(advice),
        *_domain_sets(advice),
    ]
    tables = [_table(advice, phase, folded=phase == "prefill") for phase in ("decode", "prefill")]
    found = tuple(table for table in tables if table is not None)
    rests_on = tuple(map(sentence, advice.rests_on))
    return Section(_KEY, _TITLE, _finding(advice), tuple(prose), _sweep(advice), found, rests_on)


def _scored_on(advice: Advice) -> str:
    if not advice.folds:
        return "No figure is held out: experts were chosen on the text that they are scored on."
    if advice.pieces:
        return "All figures are on parts of the only document that nothing was chosen on."
    return "All figures are on documents that nothing was chosen on."


def _finding(advice: Advice) -> str:
    """What whole layers, the best strategy and the oracle reach in decode."""
    tried = [one for one in advice.strategies if one.decode is not None]
    priced = [one for one in tried if one.decode is not None and one.decode.tokens_per_s]
    if not tried:
        return "The trace has no decode, so no strategy can be told from another there."
    reached = {one.name: _reached(one.decode, bool(priced)) for one in priced or tried}
    best = max(
        (one for one in priced or tried if one.name not in (ORACLE, WHOLE_LAYERS)),
        key=lambda one: reached[one.name],
    )
    shown = dict.fromkeys((advice.finding.strategy, best.name, WHOLE_LAYERS, ORACLE))
    words = [
        f"{IN_SENTENCE.get(name, name)} {_figure(reached[name], bool(priced))}"
        for name in shown
        if name in reached
    ]
    return f"In decode: {', '.join(words)}."


def _reached(outcome: PhaseOutcome | None, priced: bool) -> float:
    known = None if outcome is None else outcome.tokens_per_s if priced else outcome.hit_rate
    return -np.inf if known is None else known.value


def _figure(value: float, priced: bool) -> str:
    if not priced:
        return f"a hit rate of {percent(value)}"
    return f"{estimate_text(Estimate(value, None, None))[0]} tokens/s"


def strategy_words(one: StrategyOutcome) -> str:
    """A strategy's name as readers are told of it, in the middle of a sentence."""
    return IN_SENTENCE.get(one.name, one.name)


def _short(one: StrategyOutcome) -> str:
    """The same as a label."""
    return LABELS.get(one.name, one.name)


def signed_percent(estimate: Estimate) -> tuple[str, str]:
    """A gain in percent with its sign, and its interval."""
    digits = 0 if abs(estimate.value) >= 0.0995 else 1
    scaled = Estimate(*_scaled(estimate, 100))
    text, interval = estimate_text(scaled, digits, least=-100)
    return (text if estimate.value < 0 else f"+{text}") + " %", interval


def _scaled(estimate: Estimate, factor: float) -> tuple[float, float | None, float | None]:
    low, high = (None if end is None else factor * end for end in (estimate.low, estimate.high))
    return factor * estimate.value, low, high


def _table(advice: Advice, phase: str, folded: bool) -> Table | None:
    known = [(one, one.phase(phase)) for one in advice.strategies]
    rows = [(one, outcome) for one, outcome in known if outcome is not None]
    if not rows:
        return None
    speeds = [entry.tokens_per_s.value for _, entry in rows if entry.tokens_per_s is not None]
    columns = [
        Column("strategy", numeric=False),
        Column("tokens/s", "predicted, of one sequence"),
        Column("gain", "tokens/s over the best split by whole layers"),
        Column("hit rate", "share of choices whose expert is in VRAM when it is needed"),
        Column("slots", "experts that VRAM holds"),
        Column("copied", "bytes copied into VRAM per token"),
    ]
    body = [tuple(_cells(one, outcome, speeds)) for one, outcome in rows]
    if not speeds:
        columns[1:3] = []
        body = [(row[0], *row[3:]) for row in body]
    rates = [outcome.hit_rate for _, outcome in rows if outcome.hit_rate is not None]
    intervals = ", with 95 % intervals" if any(rate.low is not None for rate in rates) else ""
    caption = f"{phase}: what each strategy does{intervals}"
    return Table(caption, tuple(columns), tuple(body), folded=folded)


def _cells(one: StrategyOutcome, outcome: PhaseOutcome, speeds: list[float]) -> list[Cell]:
    gain = Cell(UNKNOWN)
    if outcome.gain is not None:
        text, interval = signed_percent(outcome.gain)
        gain = Cell(text, outcome.gain.value, interval)
    said = () if one.description == _short(one) else (one.description,)
    note = "; ".join((*said, *((one.policy,) if one.policy else ())))
    copied = one.copied_bytes_per_token
    return [
        Cell(_short(one), one.name, note),
        estimate_cell(outcome.tokens_per_s, max(speeds, default=None)),
        gain,
        estimated_share(outcome.hit_rate),
        Cell(f"{one.slots:,}", one.slots),
        Cell(format_size(copied) if copied else "0 B", copied),
    ]


def _break_even(advice: Advice) -> list[str]:
    even = advice.break_even
    if even is None:
        return []
    sentences = []
    if even.hit_rate is not None:
        text = (
            f"Spread over the layers, experts in VRAM are faster than whole layers from a decode "
            f"hit rate of {percent(even.hit_rate)}"
        )
        if even.cache_hit_rate is not None:
            text += f"; a cache, which copies what it misses, from {percent(even.cache_hit_rate)}"
        sentences.append(f"{text}.")
    else:
        sentences.append("No hit rate is enough to be faster than whole layers on this machine.")
    if even.prompt_per_output is not None:
        sentences.append(
            f"With more than {even.prompt_per_output:,.1f} prompt tokens per reply token, prefill "
            "loses what decode gains."
        )
    return sentences


def _domain_sets(advice: Advice) -> list[str]:
    sets = advice.domain_sets
    if sets is None:
        return []
    gain, interval = signed_percent(sets.gain)
    between = f" [{interval}]" if interval else ""
    text = f"A hot set for each kind of text instead of one for all makes {gain}{between} in decode"
    if not sets.pays:
        return [f"{text}, which is too little to be worth it."]
    text += f"; a change of text copies {format_size(sets.switch_bytes)}"
    if sets.switch_tokens is not None:
        text += f", earned back after {max(1, round(sets.switch_tokens)):,} tokens"
    return [f"{text}."]


def _sweep(advice: Advice) -> tuple[Chart, ...]:
    """Tokens/s over VRAM, or hit rates where nothing is priced; a panel for each phase."""
    panels = [_sweep_panel(advice, phase) for phase in ("decode", "prefill")]
    drawn = [panel for panel in panels if panel["lines"] and len(panel["x"]) > 1]
    if not drawn:
        return ()
    priced = advice.hardware is not None
    unit = "rate" if priced else "percent"
    data: dict[str, Any] = {
        "x": {"name": "VRAM for everything", "unit": "bytes", "log": True, "tight": True},
        "y": {"name": "tokens/s" if priced else "hit rate", "unit": unit},
        "mark": {"x": advice.budget.total_bytes, "name": "this budget"},
        "panels": drawn,
    }
    return (Chart("sweep", "curves", "Each strategy over VRAM", data),)


def _sweep_panel(advice: Advice, phase: str) -> dict[str, Any]:
    outcomes: dict[str, list[Estimate | None]] = {}
    names: dict[str, str] = {}
    for index, point in enumerate(advice.sweep):
        for one in point.strategies:
            names[one.name] = _short(one)
            values = outcomes.setdefault(one.name, [None] * len(advice.sweep))
            outcome = one.phase(phase)
            if outcome is not None:
                values[index] = outcome.tokens_per_s if advice.hardware else outcome.hit_rate
    lines = [
        {"name": names[name], "role": _ROLES.get(name, "4"), **_line(values, advice)}
        for name, values in outcomes.items()
        if any(value is not None for value in values)
    ]
    x = [point.vram_bytes for point in advice.sweep]
    return {"title": f"{phase} over VRAM", "x": x, "lines": lines}


def _line(values: list[Estimate | None], advice: Advice) -> dict[str, list[float]]:
    known = [
        Estimate(value.value, None, None)
        if value is not None
        and is_too_wide(value.low, value.high, is_share=advice.hardware is None)
        else value
        for value in values
    ]

    def column(name: str) -> list[float]:
        found = [None if value is None else getattr(value, name) for value in known]
        return [np.nan if value is None else value for value in found]

    return {"y": column("value"), "low": column("low"), "high": column("high")}
