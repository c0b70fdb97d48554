"""The verdict, which stands first: worth it or not, by how much, and what that rests on."""

from dataclasses import dataclass, replace

import numpy as np

from moeprof.placement import Estimate, Placement
from moeprof.plan.advice import (
    CANNOT_TELL,
    DO_NOT_BOTHER,
    ORACLE,
    WHOLE_LAYERS,
    Advice,
    StrategyOutcome,
)
from moeprof.plan.advice_notes import SOURCES
from moeprof.report.page.coverage import even_share, row_at_share
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import (
    UNKNOWN,
    between,
    estimate_text,
    estimated_share,
    sentence,
)
from moeprof.report.page.strategies import signed_percent, strategy_words
from moeprof.report.tables import percent
from moeprof.trace.origin import UNSAID
from moeprof.units import format_size


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that the verdict rests on: its value, interval, and what it is."""

    value: str
    interval: str
    name: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the page says first.

    Attributes:
        mood: `good`, `bad` or `open`, which colours it.
        headline: a few words.
        sentences: the reasons, and what is missing for more.
        figures: two to four numbers.
        changes: what would make it another one, a sentence each.
        in_vain: what was tried for another one and gives none, likewise.
    """

    mood: str
    headline: str
    sentences: tuple[str, ...]
    figures: tuple[Figure, ...]
    changes: tuple[str, ...] = ()
    in_vain: tuple[str, ...] = ()


def verdict(inputs: PageInputs) -> Verdict:
    """From the advice where there is some, else from the plan, else from coverage alone."""
    if inputs.advice is not None:
        found = _of_advice(inputs.advice)
    elif inputs.placement is not None:
        found = _of_plan(inputs, inputs.placement)
    else:
        found = _of_coverage(inputs)
    machine = inputs.machine
    if machine is None:
        return found
    first, *others = found.sentences
    priced = f"All speeds of this page are predicted for {machine.name}, {SOURCES[machine.source]}."
    return replace(found, sentences=(first, priced, *others))


def _of_coverage(inputs: PageInputs) -> Verdict:
    """What a trace alone can say: whether new text is served better than by chance."""
    phase = inputs.main_phase
    row = row_at_share(inputs.analysis, phase, inputs.overall)
    share = percent(inputs.analysis.settings.share)
    held_out, kept = percent(row["held_out"]), even_share(inputs.analysis, row)
    if np.isnan(row["held_out_low"]):
        mood, headline = "open", "Cannot tell yet: too few documents"
        reason = (
            "Coverage has to be scored on documents other than those it was chosen on, and its "
            "interval needs three of them or more. Trace more documents."
        )
    elif kept == 1:
        mood, headline = "bad", "Don't bother: everything fits"
        reason = "A hot set of all cells serves every assignment, and no choice among them gains."
    elif row["held_out_low"] <= kept:
        mood, headline = "bad", "Don't bother: routing is as even as chance"
        reason = (
            f"On new documents the busiest {share} of cells serve {held_out} of {phase}; even "
            f"routing would show {percent(kept)}. No fixed choice of experts gains from that."
        )
    else:
        mood, headline = "good", "Routing is uneven, and stays so on new text"
        reason = (
            f"On new documents the busiest {share} of cells serve {held_out} of {phase}, where "
            f"even routing would show {percent(kept)}. So a placement that knows them beats one "
            "that does not."
        )
    missing = (
        "What that is worth in tokens per second depends on the model's size and the machine, "
        "which this page was not told: give moeprof report a --model, a --vram budget, and a "
        "machine (--hardware FILE, or --gpu and --ram)."
    )
    sentences = (reason, missing, *_on_phase(inputs))
    return Verdict(mood, headline, sentences, _coverage_figures(inputs))


def _coverage_figures(inputs: PageInputs) -> tuple[Figure, ...]:
    share = percent(inputs.analysis.settings.share)
    figures = []
    for phase in reversed(inputs.phases):
        row = row_at_share(inputs.analysis, phase, inputs.overall)
        name = f"of {phase} on new text, served by the busiest {share} of cells"
        interval = between(row["held_out_low"], row["held_out_high"])
        figures.append(Figure(percent(row["held_out"]), interval, name))
    row = row_at_share(inputs.analysis, inputs.main_phase, inputs.overall)
    even = percent(even_share(inputs.analysis, row))
    figures.append(Figure(even, "", "had routing been even"))
    return tuple(figures)


def _of_advice(advice: Advice) -> Verdict:
    finding = advice.finding
    mood = {DO_NOT_BOTHER: "bad", CANNOT_TELL: "open"}.get(finding.answer, "good")
    budget = format_size(advice.budget.total_bytes)
    headline = f"{finding.answer[0].upper()}{finding.answer[1:]}, at {budget} of VRAM"
    unknown = (f"Not known: {text.rstrip('.')}." for text in advice.missing)
    sentences = (sentence(finding.sentence), *unknown)
    changes, in_vain = (
        tuple(map(sentence, tried)) for tried in (finding.would_change, finding.in_vain)
    )
    return Verdict(mood, headline, sentences, _advice_figures(advice), changes, in_vain)


def _advice_figures(advice: Advice) -> tuple[Figure, ...]:
    """Of what is recommended, or else did best: gain, speed and hit rate, beside whole layers."""
    tried = [one for one in advice.strategies if one.decode is not None and one.name != ORACLE]
    chosen = advice.strategy(advice.finding.strategy or "")
    if chosen is None or chosen.decode is None:
        chosen = max(tried, key=_speed_or_hits, default=None)
    if chosen is None or chosen.decode is None:
        return ()
    name, own = strategy_words(chosen), chosen.decode
    figures = []
    if own.gain is not None and chosen.name != WHOLE_LAYERS:
        gain = signed_percent(own.gain)
        figures.append(Figure(*gain, f"tokens/s in decode with {name}, over whole layers"))
    if own.tokens_per_s is not None:
        figures.append(_speed(f"tokens/s in decode with {name}", own.tokens_per_s))
    baseline = advice.strategy(WHOLE_LAYERS)
    if baseline is not None and baseline.decode is not None and baseline is not chosen:
        speed = baseline.decode.tokens_per_s
        if speed is not None:
            figures.append(_speed("tokens/s with the best split by whole layers", speed))
    if own.hit_rate is not None:
        cell = estimated_share(own.hit_rate)
        new = " of the same text" if advice.pieces else " on new text"
        text = new if advice.folds else ""
        figures.append(Figure(cell.text, cell.note, f"of decode{text} found in VRAM by {name}"))
    return tuple(figures)


def _speed_or_hits(one: StrategyOutcome) -> float:
    outcome = one.decode
    known = None if outcome is None else outcome.tokens_per_s or outcome.hit_rate
    return -np.inf if known is None else known.value


def _of_plan(inputs: PageInputs, placement: Placement) -> Verdict:
    judged = placement.verdict
    budget = format_size(placement.budget.total_bytes)
    mood, headline = {
        True: ("good", f"Worth it: this placement pays at {budget} of VRAM"),
        False: ("bad", f"Don't bother at {budget} of VRAM"),
        None: ("open", "Cannot tell yet"),
    }[judged.worthwhile]
    sentences = [sentence(judged.reason)]
    if placement.hardware is None:
        sentences.append(
            "Tokens per second are not predicted, since the plan was made without a machine: "
            "plan with --hardware FILE."
        )
    sentences += _on_phase(inputs)
    return Verdict(mood, headline, tuple(sentences), _plan_figures(inputs, placement))


def _on_phase(inputs: PageInputs) -> tuple[str, ...]:
    if "phase" not in inputs.metadata.missing:
        return ()
    return (f"The trace does not say {UNSAID['phase']}.",)


def _plan_figures(inputs: PageInputs, placement: Placement) -> tuple[Figure, ...]:
    phase = inputs.main_phase
    own = placement.predicted.phase(phase)
    figures = []
    if own is not None and own.tokens_per_s is not None:
        figures.append(_speed(f"tokens/s predicted in {phase}, this plan", own.tokens_per_s))
        for baseline in placement.baselines:
            other = baseline.predicted.phase(phase)
            if other is not None and other.tokens_per_s is not None:
                name = f"tokens/s, {baseline.description}"
                figures.append(_speed(name, other.tokens_per_s))
    if own is not None and own.coverage is not None:
        cell = estimated_share(own.coverage)
        name = f"of {phase} on new text served from VRAM"
        figures.insert(1, Figure(cell.text, cell.note, name))
    return tuple(figures[:4]) or (Figure(UNKNOWN, "", f"nothing predicted for {phase}"),)


def _speed(name: str, estimate: Estimate) -> Figure:
    return Figure(*estimate_text(estimate), name)
