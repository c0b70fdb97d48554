"""What would make a verdict another one, or was tried in vain: more VRAM, replies, closer text."""

from collections.abc import Iterator

from moeprof.placement import Budget
from moeprof.plan import advice
from moeprof.plan.evaluated import Evaluated, evaluate
from moeprof.plan.evaluation import is_clear
from moeprof.plan.judgement import Judgement, best_reference, judge
from moeprof.plan.trials import closer_trial
from moeprof.units import format_size

# Shares of the experts to try in VRAM, where the room at hand gives no reason to bother.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
_BY_DOMAIN = "one domain at a time, each with its own busiest experts in VRAM"

# Whether something gives another verdict, and what it is, in words.
Tried = tuple[bool, str]


def would_change(
    evaluated: Evaluated,
    judgement: Judgement,
    budget: Budget,
    domain_sets: advice.DomainSets | None,
) -> Iterator[Tried]:
    """What was tried for another verdict, in words that go on after `would change with`.

    Args:
        evaluated: the trials under the budget.
        judgement: the verdict on them.
        budget: what the VRAM is spent on.
        domain_sets: what sets by domain gain.
    """
    if judgement.answer == advice.CANNOT_TELL:
        yield True, "more documents: moeprof trace MODEL DATA -o traces/NAME --generate 128"
    elif evaluated.room_bytes >= evaluated.situation.total_bytes:
        return
    elif judgement.answer == advice.DO_NOT_BOTHER:
        yield from _more_vram(evaluated, budget)
        if evaluated.trials[advice.HOT_SET].slots == 0:
            return
        if judgement.lost_above is not None:
            share = 1 / max(judgement.lost_above, 1e-3)
            yield True, f"longer replies: at least {share:.3g} times as long as their prompts"
        else:
            yield from _closer_text(evaluated, domain_sets)
    elif domain_sets is not None and domain_sets.pays:
        yield True, f"{_BY_DOMAIN}: {evaluated.over(domain_sets.gain)} one set for all"


def _more_vram(evaluated: Evaluated, budget: Budget) -> Iterator[Tried]:
    """The least room, of a few that are tried, in which something is worth it."""
    situation = evaluated.situation
    most = 0.0
    for share in _SHARES:
        room = int(share * situation.total_bytes)
        if room <= evaluated.room_bytes:
            continue
        most = share
        other = evaluate(situation, room)
        judgement = judge(other)
        best = judgement.trial
        if best is not None and judgement.answer != advice.DO_NOT_BOTHER:
            vram = budget.total_bytes - budget.experts_available_bytes + room
            base = other.trials[advice.WHOLE_LAYERS]
            yield (
                True,
                f"more VRAM: with {format_size(vram)}, {best.description} would have "
                f"{other.over(other.merit(best, base))} {base.description}",
            )
            return
    if most:
        yield False, f"more VRAM, up to {100 * most:.0f} % of the experts"


def _closer_text(evaluated: Evaluated, domain_sets: advice.DomainSets | None) -> Iterator[Tried]:
    situation, rival = evaluated.situation, best_reference(evaluated)
    if domain_sets is not None:
        over = domain_sets.over_untraced
        words = f"{_BY_DOMAIN}: {evaluated.over(over)} {rival.description}"
        yield is_clear(over, evaluated.least_merit), words
    if situation.routed is None or not situation.split.num_folds:
        return
    closer = closer_trial(situation, evaluated.room_bytes)
    # Of other documents the set may serve as much; then it is not closeness that is wanting.
    beyond = evaluated.merit(closer, evaluated.trials[advice.HOT_SET])
    is_closer = is_clear(beyond, 0.0) and evaluated.is_clearly_better(closer, rival)
    words = (
        "a closer workload: chosen on other parts of the same documents, the busiest experts have "
        f"{evaluated.over(evaluated.merit(closer, rival))} {rival.description}"
    )
    yield is_closer, words
