"""Which of the strategies is worth it, in one word and one sentence."""

from collections.abc import Mapping
from dataclasses import dataclass

from moeprof.placement import Estimate
from moeprof.plan import advice
from moeprof.plan.evaluated import Evaluated
from moeprof.plan.routed import DECODE
from moeprof.plan.trials import Trial
from moeprof.plan.verdict import LEAST_GAIN

# Needing no trace and no decisions while running.
_REFERENCES = (advice.WHOLE_LAYERS, advice.ANY_EXPERTS, advice.ALL_RAM)
# From the least effort to the most.
_ANSWER_OF = {
    advice.HOT_SET: advice.PIN_IT,
    advice.CACHE: advice.CACHE_IT,
    advice.HOT_SET_AND_CACHE: advice.BOTH,
}
# Where nothing prices a token: hits that are told from none.
_LEAST_EXTRA_HITS = 0.05


@dataclass(frozen=True, slots=True)
class Judgement:
    """An answer of `advice.ANSWERS`, the trial it recommends if any, and the sentence."""

    answer: str
    trial: Trial | None
    sentence: str


def judge(evaluated: Evaluated, prompt_per_output: Mapping[str, float | None]) -> Judgement:
    """The verdict on the strategies under one budget.

    A strategy is worth it if it is clearly faster than everything that needs no trace; one that
    takes more effort has to be clearly faster than the one that takes less. Clearly faster means
    that the paired interval excludes no gain, and that the gain is larger than predictions are
    wrong. Where nothing prices a token, hit rates stand in for speed.

    Args:
        evaluated: the trials.
        prompt_per_output: prompt tokens per reply token above which each strategy's gain is lost;
            None where it is not.
    """
    hot_set, cells = evaluated.trials[advice.HOT_SET], evaluated.situation.shape.num_cells
    if hot_set.slots == cells:
        sentence = f"all {cells} experts fit into VRAM: run the model without a placement"
        return Judgement(advice.DO_NOT_BOTHER, None, sentence)
    if hot_set.slots == 0:
        sentence = "not one expert fits into what remains of the budget"
        return Judgement(advice.DO_NOT_BOTHER, None, sentence)
    if not evaluated.situation.split.num_folds or evaluated.situation.split.degrees < 1:
        return _without_documents(evaluated)
    best = best_trial(evaluated)
    if best is None:
        return Judgement(advice.DO_NOT_BOTHER, None, _no_gain(evaluated))
    lost_above = prompt_per_output.get(best.name)
    if lost_above is not None and lost_above < 1:
        sentence = (
            f"{_what_is_done(evaluated, best)}, but prompts lose that again unless replies are "
            f"more than {1 / max(lost_above, 1e-3):.3g} times as long"
        )
        return Judgement(advice.DO_NOT_BOTHER, None, sentence)
    sentence = _what_is_done(evaluated, best)
    if lost_above is not None:
        sentence += f"; with more than {lost_above:.3g} prompt tokens per reply token it is lost"
    return Judgement(_ANSWER_OF[best.name], best, sentence)


def best_trial(evaluated: Evaluated) -> Trial | None:
    """The strategy that is worth it; None where none is."""
    best: Trial | None = None
    references = [evaluated.trials[name] for name in _REFERENCES]
    for name in _ANSWER_OF:
        trial = evaluated.trials.get(name)
        if trial is None:
            continue
        rivals = references if best is None else [*references, best]
        if all(_is_clearly_better(evaluated, trial, rival) for rival in rivals):
            best = trial
    return best


def _is_clearly_better(evaluated: Evaluated, own: Trial, rival: Trial) -> bool:
    gain = evaluated.gain(own, rival, DECODE)
    least = LEAST_GAIN - 1
    if gain is None:
        gain = evaluated.extra_hits(own, rival, DECODE)
        least = _LEAST_EXTRA_HITS
    return gain.low is not None and gain.low > 0 and gain.value >= least


def _without_documents(evaluated: Evaluated) -> Judgement:
    """Too few documents to hold any out: only a lack of skew can be seen."""
    hot_set = evaluated.trials[advice.HOT_SET]
    rival = best_reference(evaluated)
    gain, extra = (
        evaluated.gain(hot_set, rival, DECODE),
        evaluated.extra_hits(hot_set, rival, DECODE),
    )
    small = extra.value < _LEAST_EXTRA_HITS if gain is None else gain.value < LEAST_GAIN - 1
    if small and not evaluated.situation.split.num_folds:
        sentence = (
            "even on the text that it was chosen on, the hot set gains too little: "
            f"{_compared(evaluated, hot_set, rival)}"
        )
        return Judgement(advice.DO_NOT_BOTHER, None, sentence)
    return Judgement(
        advice.CANNOT_TELL, None, "too few documents to hold any out and tell gain from chance"
    )


def _no_gain(evaluated: Evaluated) -> str:
    """The best that was tried, and what it does not beat."""
    rival = best_reference(evaluated)
    tried = [evaluated.trials[name] for name in _ANSWER_OF if name in evaluated.trials]
    best = max(tried, key=lambda trial: _merit(evaluated, trial))
    return (
        f"nothing is clearly faster than what needs no trace. {_compared(evaluated, best, rival)}"
        if evaluated.is_priced(DECODE)
        else "nothing hits clearly more than what needs no trace. "
        f"{_compared(evaluated, best, rival)}"
    )


def best_reference(evaluated: Evaluated) -> Trial:
    """What is fastest (or hits most) of all that needs no trace."""
    references = [evaluated.trials[name] for name in _REFERENCES]
    return max(references, key=lambda trial: _merit(evaluated, trial))


def _merit(evaluated: Evaluated, trial: Trial) -> float:
    priced = evaluated.tokens_per_s(trial, DECODE)
    return evaluated.hit_rate(trial, DECODE).value if priced is None else priced.value


def _compared(evaluated: Evaluated, own: Trial, rival: Trial) -> str:
    gain = evaluated.gain(own, rival, DECODE)
    if gain is None:
        extra = evaluated.extra_hits(own, rival, DECODE)
        return (
            f"{own.description}: {_bounds(extra, 100, '+.1f')} points of hit rate over "
            f"{rival.description}"
        )
    speeds = [evaluated.tokens_per_s(trial, DECODE) for trial in (own, rival)]
    own_speed, rival_speed = (one.value if one else float("nan") for one in speeds)
    return (
        f"{own.description}: {own_speed:.3g} tokens/s, {times(gain)} those of {rival.description} "
        f"({rival_speed:.3g})"
    )


def _what_is_done(evaluated: Evaluated, trial: Trial) -> str:
    situation = evaluated.situation
    base = evaluated.trials[advice.WHOLE_LAYERS]
    cells = situation.shape.num_cells
    what = {
        advice.HOT_SET: f"keep the {trial.slots} busiest of {cells} experts in VRAM",
        advice.CACHE: f"keep {trial.slots} of {cells} experts in VRAM, chosen by {trial.policy}",
        advice.HOT_SET_AND_CACHE: (
            f"keep {trial.slots} of {cells} experts in VRAM, the busiest for good and the others "
            f"chosen by {trial.policy}"
        ),
    }[trial.name]
    gain = evaluated.gain(trial, base, DECODE)
    own = evaluated.tokens_per_s(trial, DECODE)
    if gain is None or own is None:
        extra = evaluated.extra_hits(trial, base, DECODE)
        rate = evaluated.hit_rate(trial, DECODE)
        return (
            f"{what}: they serve {100 * rate.value:.0f} % of new replies, "
            f"{_bounds(extra, 100, '.0f')} points more than whole layers would"
        )
    return f"{what}: {own.value:.3g} tokens/s in replies, {times(gain)} the best whole-layer split"


def times(gain: Estimate) -> str:
    """A gain as a factor with its interval, such as `1.42 times [1.38 to 1.46]`."""
    text = f"{1 + gain.value:.2f} times"
    if gain.low is None or gain.high is None:
        return text
    return f"{text} [{1 + gain.low:.2f} to {1 + gain.high:.2f}]"


def _bounds(estimate: Estimate, scale: float, form: str) -> str:
    text = format(scale * estimate.value, form)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{scale * estimate.low:{form}} to {scale * estimate.high:{form}}]"
