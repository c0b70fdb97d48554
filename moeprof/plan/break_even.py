"""Where a strategy starts and stops to be faster than the best whole-layer split."""

import numpy as np

from moeprof.plan import advice
from moeprof.plan.evaluated import Evaluated
from moeprof.plan.routed import DECODE, PREFILL
from moeprof.plan.trials import Trial

_RATES = np.linspace(0, 1, 1001)


def break_even(evaluated: Evaluated, recommended: str | None) -> advice.BreakEven | None:
    """The hit rates and the mix of prompt and reply at which a gain is none.

    Args:
        evaluated: the trials under one budget.
        recommended: name of the strategy whose gain prompts may eat up; None for the fastest.

    Returns:
        None where nothing prices a token.
    """
    if not evaluated.is_priced(DECODE):
        return None
    trial = evaluated.trials[recommended or _fastest(evaluated)]
    lost_above = prompt_per_output(evaluated, trial)
    cache = evaluated.trials.get(advice.CACHE)
    return advice.BreakEven(
        hit_rate=_rate(evaluated, 0.0),
        cache_hit_rate=None if cache is None else _rate(evaluated, _copied(evaluated, cache)),
        prompt_per_output=None if lost_above is None else float(f"{lost_above:.4g}"),
    )


def prompt_per_output(evaluated: Evaluated, trial: Trial) -> float | None:
    """Prompt tokens per reply token above which prefill loses what decode gains.

    Returns:
        0 where decode gains nothing; None where prefill loses nothing, or is not priced.
    """
    if not (evaluated.is_priced(DECODE) and evaluated.is_priced(PREFILL)):
        return None
    base = evaluated.trials[advice.WHOLE_LAYERS]
    gained = _seconds(evaluated, base, DECODE) - _seconds(evaluated, trial, DECODE)
    lost = _seconds(evaluated, trial, PREFILL) - _seconds(evaluated, base, PREFILL)
    return None if lost <= 0 else max(0.0, gained / lost)


def _seconds(evaluated: Evaluated, trial: Trial, phase: int) -> float:
    """Of one token, in the mean."""
    tokens = evaluated.situation.tokens(phase).sum()
    return float(trial.played.seconds[phase].sum() / tokens)


def _fastest(evaluated: Evaluated) -> str:
    tried = [
        evaluated.trials[name]
        for name in (advice.HOT_SET, advice.CACHE, advice.HOT_SET_AND_CACHE)
        if name in evaluated.trials
    ]
    return min(tried, key=lambda trial: trial.played.seconds[DECODE].sum()).name


def _copied(evaluated: Evaluated, cache: Trial) -> float:
    """Bytes that a cache copies for each miss."""
    assignments = evaluated.situation.assignments(DECODE).sum()
    misses = assignments - cache.played.hits[DECODE].sum()
    return float(cache.played.copied_bytes[DECODE].sum() / misses) if misses else 0.0


def _rate(evaluated: Evaluated, copied_per_miss: float) -> float | None:
    """The hit rate above which experts that hit independently are faster than whole layers."""
    situation = evaluated.situation
    clock = situation.clocks.decode
    if clock is None:
        raise ValueError("nothing prices a token")
    top_k = situation.shape.top_k
    seconds = np.full(len(_RATES), clock.dense_s)
    for row in range(situation.shape.num_moe_layers):
        seconds += clock.expected_seconds(row, top_k, _RATES, copied_per_miss)
    base = _seconds(evaluated, evaluated.trials[advice.WHOLE_LAYERS], DECODE)
    slower = np.flatnonzero(seconds > base)
    if len(slower) == 0:
        return 0.0
    last = int(slower[-1])
    if last == len(_RATES) - 1:
        return None
    step = (seconds[last] - base) / (seconds[last] - seconds[last + 1])
    return round(float(_RATES[last] + step * (_RATES[1] - _RATES[0])), 4)
