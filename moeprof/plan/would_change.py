"""What would make a verdict another one: more VRAM, longer replies, closer text."""

from collections.abc import Iterator

from moeprof.placement import Budget
from moeprof.plan import advice
from moeprof.plan.evaluated import Evaluated, evaluate
from moeprof.plan.evaluation import is_clear
from moeprof.plan.judgement import Judgement, best_reference, judge
from moeprof.plan.trials import in_sample_trial
from moeprof.units import format_size

# Shares of the experts to try in VRAM, where the room at hand gives no reason to bother.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def would_change(
    evaluated: Evaluated,
    judgement: Judgement,
    budget: Budget,
    domain_sets: advice.DomainSets | None,
) -> Iterator[str]:
    """Sentences on what would change the verdict; none where nothing that was tried would.

    Args:
        evaluated: the trials under the budget.
        judgement: the verdict on them.
        budget: what the VRAM is spent on.
        domain_sets: what sets by domain gain.
    """
    if judgement.answer == advice.CANNOT_TELL:
        yield "more documents: moeprof trace MODEL DATA -o traces/NAME --generate 128"
    elif evaluated.room_bytes >= evaluated.situation.total_bytes:
        return
    elif judgement.answer == advice.DO_NOT_BOTHER:
        yield from _more_vram(evaluated, budget)
        if judgement.lost_above is not None:
            share = 1 / max(judgement.lost_above, 1e-3)
            yield f"longer replies: at least {share:.3g} times as long as their prompts"
        else:
            yield from _closer_text(evaluated, domain_sets)
    elif domain_sets is not None and domain_sets.pays:
        yield (
            "one domain at a time, each with its own busiest experts in VRAM: "
            f"{evaluated.over(domain_sets.gain)} one set for all"
        )


def _more_vram(evaluated: Evaluated, budget: Budget) -> Iterator[str]:
    """The least room, of a few that are tried, in which something is worth it."""
    situation = evaluated.situation
    for share in _SHARES:
        room = int(share * situation.total_bytes)
        if room <= evaluated.room_bytes:
            continue
        other = evaluate(situation, room)
        judgement = judge(other)
        best = judgement.trial
        if best is not None and judgement.answer != advice.DO_NOT_BOTHER:
            vram = budget.total_bytes - budget.experts_available_bytes + room
            base = other.trials[advice.WHOLE_LAYERS]
            yield (
                f"more VRAM: with {format_size(vram)}, {best.description} would have "
                f"{other.over(other.merit(best, base))} {base.description}"
            )
            return


def _closer_text(evaluated: Evaluated, domain_sets: advice.DomainSets | None) -> Iterator[str]:
    base, least = evaluated.trials[advice.WHOLE_LAYERS], evaluated.least_merit
    if domain_sets is not None and is_clear(domain_sets.over_whole_layers, least):
        yield (
            "one domain at a time, each with its own busiest experts in VRAM: "
            f"{evaluated.over(domain_sets.over_whole_layers)} {base.description}"
        )
    if not evaluated.situation.split.num_folds:
        return
    known = in_sample_trial(evaluated.situation, evaluated.room_bytes)
    if evaluated.is_clearly_better(known, best_reference(evaluated)):
        rival = best_reference(evaluated)
        yield (
            "a closer workload: on the very text they were chosen on, the busiest experts have "
            f"{evaluated.over(evaluated.merit(known, rival))} {rival.description}"
        )
