"""Whether a hot set for each domain pays against one merged set."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.intervals import degrees_of_freedom
from moeprof.placement import Estimate
from moeprof.plan import advice
from moeprof.plan.evaluated import Evaluated
from moeprof.plan.evaluation import Split, gain, is_clear, ratio, total
from moeprof.plan.greedy import solve_greedy
from moeprof.plan.judgement import best_reference
from moeprof.plan.played import Played
from moeprof.plan.routed import DECODE
from moeprof.plan.trials import Situation


def domain_sets(evaluated: Evaluated) -> advice.DomainSets | None:
    """Compare a hot set for each domain with the merged one, in decode.

    Every set is chosen on documents that it is not scored on. A domain whose documents are all in
    one fold has none to choose by, and keeps the merged set for them.

    Args:
        evaluated: the trials under a budget.

    Returns:
        None with fewer than two domains of two documents each, where nothing can be held out, and
        where all or no experts fit.
    """
    situation, room_bytes = evaluated.situation, evaluated.room_bytes
    merged = evaluated.trials[advice.HOT_SET].played
    domain = situation.counts.group_domain
    has_tokens = situation.assignments(DECODE) > 0
    domains = np.unique(domain[has_tokens]).tolist()
    sizes = [int((has_tokens & (domain == one)).sum()) for one in domains]
    full = room_bytes >= situation.total_bytes or room_bytes < int(situation.expert_bytes.min())
    if len(domains) < 2 or min(sizes) < 2 or not situation.split.num_folds or full:
        return None
    own = _play_own(situation, room_bytes)
    names = situation.counts.domains
    untraced = best_reference(evaluated).played
    over_merged = _gain(situation, merged, own, situation.split, slice(None))
    switch_bytes, switch_s = _switch(situation, room_bytes, domains)
    return advice.DomainSets(
        gain=over_merged,
        by_domain={
            names[one]: _gain(
                situation, merged, own, _within(situation.split, domain == one), domain == one
            )
            for one in domains
        },
        over_untraced=_gain(situation, untraced, own, situation.split, slice(None)),
        pays=is_clear(over_merged, evaluated.least_merit),
        switch_bytes=switch_bytes,
        switch_tokens=_switch_tokens(situation, merged, own, switch_s),
    )


def _play_own(situation: Situation, room_bytes: int) -> Played:
    """Each document against the set of the other documents of its domain."""
    domain, fold = situation.counts.group_domain, situation.split.fold
    num_folds = situation.split.num_folds
    sets = np.zeros((int(domain.max() + 1) * num_folds, *situation.training.shape[1:]), np.bool_)
    set_of_group = domain * num_folds + fold
    for index in np.unique(set_of_group):
        others = fold != index % num_folds
        benefit = situation.training[others & (domain == index // num_folds)].sum(axis=0)
        if not benefit.any():
            benefit = situation.training[others].sum(axis=0)
        sets[index] = _hot_set(situation, benefit, room_bytes)
    return situation.play(sets, set_of_group)


def _hot_set(
    situation: Situation, benefit: NDArray[np.int64], room_bytes: int
) -> NDArray[np.bool_]:
    return solve_greedy(benefit.astype(np.float64), situation.expert_bytes, room_bytes).in_vram


def _within(split: Split, kept: NDArray[np.bool_]) -> Split:
    """The resamples of some of the document groups, all of one domain."""
    return replace(split, fold=split.fold[kept], weights=split.weights[:, kept])


def _gain(
    situation: Situation,
    merged: Played,
    own: Played,
    split: Split,
    kept: NDArray[np.bool_] | slice,
) -> Estimate:
    assignments = situation.assignments(DECODE)[kept]
    degrees = degrees_of_freedom(situation.counts.group_domain[kept][assignments > 0])
    if situation.clocks.decode is not None:
        base_s, own_s = (total(one.seconds[DECODE][kept], split) for one in (merged, own))
        return gain(base_s, own_s, degrees)
    hits = total((own.hits - merged.hits)[DECODE][kept], split)
    return ratio(hits, total(assignments, split), degrees)


def _switch(situation: Situation, room_bytes: int, domains: list[int]) -> tuple[int, float | None]:
    """Mean bytes and seconds of copies when one domain's set replaces another's."""
    domain = situation.counts.group_domain
    sets = [
        _hot_set(situation, situation.training[domain == one].sum(axis=0), room_bytes)
        for one in domains
    ]
    moved = [
        int(((after & ~before).sum(axis=1) * situation.expert_bytes).sum())
        for before in sets
        for after in sets
        if before is not after
    ]
    num_bytes = float(np.mean(moved))
    clock = situation.clocks.decode
    return round(num_bytes), None if clock is None else clock.copy.s_per_byte * num_bytes


def _switch_tokens(
    situation: Situation, merged: Played, own: Played, switch_s: float | None
) -> float | None:
    """Tokens until what the own sets save has paid for a switch."""
    saved = float((merged.seconds - own.seconds)[DECODE].sum())
    if switch_s is None or saved <= 0:
        return None
    return float(f"{switch_s / (saved / situation.tokens(DECODE).sum()):.4g}")
