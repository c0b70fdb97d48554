"""Which of the strategies is worth it, in one word and one sentence."""

from dataclasses import dataclass

from moeprof.plan import advice
from moeprof.plan.break_even import prompt_per_output
from moeprof.plan.evaluated import Evaluated
from moeprof.plan.trials import Trial
from moeprof.units import format_speed

# Needing no trace and no decisions while running.
_REFERENCES = (advice.WHOLE_LAYERS, advice.ANY_EXPERTS, advice.ALL_RAM)
# From the least effort to the most.
_ANSWER_OF = {
    advice.HOT_SET: advice.PIN_IT,
    advice.CACHE: advice.CACHE_IT,
    advice.HOT_SET_AND_CACHE: advice.BOTH,
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict.

    Attributes:
        answer: of `advice.ANSWERS`.
        trial: the best one in decode; None where none is worth it.
        sentence: the answer in words, with its figures.
        lost_above: prompt tokens per reply token above which the trial's gain is lost; None where
            it is not, or prefill is not priced.
    """

    answer: str
    trial: Trial | None
    sentence: str
    lost_above: float | None = None


def judge(evaluated: Evaluated) -> Judgement:
    """The verdict on the strategies under one budget.

    A strategy is worth it if it is clearly faster in decode than everything that needs no trace,
    and one that takes more effort clearly faster than the one that takes less. Where prompts of
    the length of their replies lose in prefill what decode gains, nothing is. What pieces of a
    single document show does not tell of other text: the verdict on them is part of the sentence.
    """
    found = _judge_sample(evaluated)
    if not evaluated.situation.pieces or found.answer == advice.CANNOT_TELL or _is_given(evaluated):
        return found
    words = "one document tells nothing of others. For more of the same text it would be "
    words += f"{found.answer}: {found.sentence}"
    return Judgement(advice.CANNOT_TELL, found.trial, words, found.lost_above)


def _is_given(evaluated: Evaluated) -> bool:
    """Whether no routing could change the verdict: all experts fit, or none."""
    return evaluated.trials[advice.HOT_SET].slots in (0, evaluated.situation.shape.num_cells)


def _judge_sample(evaluated: Evaluated) -> Judgement:
    cells = evaluated.situation.shape.num_cells
    held = evaluated.trials[advice.HOT_SET].slots
    if held == cells:
        words = f"all {cells:,} experts fit into VRAM, so run the model without a placement"
        return Judgement(advice.DO_NOT_BOTHER, None, words)
    if held == 0:
        words = "not one expert fits into what the budget leaves for them"
        return Judgement(advice.DO_NOT_BOTHER, None, words)
    known = evaluated.merit(evaluated.trials[advice.HOT_SET], evaluated.trials[advice.WHOLE_LAYERS])
    if not evaluated.situation.split.num_folds or known.low is None:
        return _without_documents(evaluated)
    best = best_trial(evaluated)
    if best is None:
        return Judgement(advice.DO_NOT_BOTHER, None, _no_gain(evaluated))
    words = f"{_action(evaluated, best)}; {_gained(evaluated, best)}{_passed_over(evaluated, best)}"
    lost_above = prompt_per_output(evaluated, best)
    if lost_above is None:
        return Judgement(_ANSWER_OF[best.name], best, words)
    if lost_above < 1:
        words = f"prompts lose in prefill what replies gain. Without them: {words}"
        return Judgement(advice.DO_NOT_BOTHER, best, words, lost_above)
    words += f". The gain is lost with more than {lost_above:.3g} prompt tokens per reply token"
    return Judgement(_ANSWER_OF[best.name], best, words, lost_above)


def best_trial(evaluated: Evaluated) -> Trial | None:
    """The strategy that is worth it in decode; None where none is."""
    best: Trial | None = None
    references = [evaluated.trials[name] for name in _REFERENCES]
    for trial in _contenders(evaluated):
        rivals = references if best is None else [*references, best]
        if all(evaluated.is_clearly_better(trial, rival) for rival in rivals):
            best = trial
    return best


def best_reference(evaluated: Evaluated) -> Trial:
    """What is fastest, or hits most, of all that needs no trace."""
    return _best(evaluated, [evaluated.trials[name] for name in _REFERENCES])


def _contenders(evaluated: Evaluated) -> list[Trial]:
    return [evaluated.trials[name] for name in _ANSWER_OF if name in evaluated.trials]


def _best(evaluated: Evaluated, trials: list[Trial]) -> Trial:
    base = evaluated.trials[advice.WHOLE_LAYERS]
    return max(trials, key=lambda trial: evaluated.merit(trial, base).value)


def _without_documents(evaluated: Evaluated) -> Judgement:
    """Too few documents to hold any out: all that can be seen is a lack of skew."""
    hot_set, rival = evaluated.trials[advice.HOT_SET], best_reference(evaluated)
    merit = evaluated.merit(hot_set, rival)
    if merit.value < evaluated.least_merit and not evaluated.situation.split.num_folds:
        words = "even on the text that they were chosen on, the busiest experts gain too little: "
        words += f"{evaluated.over(merit)} {rival.description}"
        return Judgement(advice.DO_NOT_BOTHER, None, words)
    words = "there are too few documents to tell gain from chance"
    return Judgement(advice.CANNOT_TELL, None, words)


def _no_gain(evaluated: Evaluated) -> str:
    """The best that was tried, and what needs no trace and is about as good."""
    best, rival = _best(evaluated, _contenders(evaluated)), best_reference(evaluated)
    merit = evaluated.over(evaluated.merit(best, rival))
    words = f"the best that was tried ({best.description}) has {merit} {rival.description}"
    if evaluated.situation.routed is None:
        words += "; caches cannot be tried on counts"
    return words


def _passed_over(evaluated: Evaluated, best: Trial) -> str:
    """Why what takes less effort stands before something that is faster, or hits more."""
    names = list(_ANSWER_OF)
    others = [
        trial
        for trial in _contenders(evaluated)
        if names.index(trial.name) > names.index(best.name)
        and evaluated.merit(trial, best).value > 0
    ]
    if not others:
        return ""
    other = _best(evaluated, others)
    merit = evaluated.merit(other, best)
    words = f". {other.description[0].upper()}{other.description[1:]} would have "
    words += f"{evaluated.over(merit)} that, "
    if merit.value < evaluated.least_merit:
        words += f"less than {evaluated.least_words}"
    else:
        words += "which may be chance"
    return f"{words}, so that what takes less effort stands first"


def _action(evaluated: Evaluated, trial: Trial) -> str:
    held = f"of {evaluated.situation.shape.num_cells:,} experts"
    if trial.name == advice.HOT_SET:
        return f"keep the {trial.slots:,} busiest {held} in VRAM"
    if trial.name == advice.CACHE:
        return f"keep {trial.slots:,} {held} in VRAM, chosen while running by {trial.policy}"
    return f"keep {trial.slots:,} {held} in VRAM, chosen by {trial.policy}"


def _gained(evaluated: Evaluated, trial: Trial) -> str:
    base = evaluated.trials[advice.WHOLE_LAYERS]
    own, other = evaluated.tokens_per_s(trial), evaluated.tokens_per_s(base)
    merit = evaluated.over(evaluated.merit(trial, base))
    if own is None or other is None:
        rate = evaluated.hit_rate(trial).value
        return f"they serve {100 * rate:.0f} % of new replies, {merit} {base.description}"
    return (
        f"replies then come at {format_speed(own.value)} tokens/s, {merit} {base.description} "
        f"({format_speed(other.value)})"
    )
