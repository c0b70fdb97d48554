"""Strategies that decide while running: caches of experts."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.plan import advice
from moeprof.plan.played import Played, added, play_cache
from moeprof.plan.routed import DECODE
from moeprof.plan.trials import Situation, Trial
from moeprof.plan.warm_replay import hottest_last, replay_warm
from moeprof.policies import Policy


def cache_trials(situation: Situation, room_bytes: int) -> Iterator[Trial]:
    """The best cache, and the best cache beside a hot set that stays.

    A cache begins with the hot set. Which policy is best is decided for the documents of each fold
    on the others, so that choosing among many gains nothing by chance; the trial is named for the
    best of all.

    Args:
        situation: what to try on; its lookups are needed.
        room_bytes: bytes of VRAM that are left for experts.
    """
    kinds = (
        (advice.CACHE, "a cache in VRAM", False),
        (advice.HOT_SET_AND_CACHE, "the busiest, and a cache in the rest", True),
    )
    for name, description, has_pins in kinds:
        policies = [one for one in situation.policies if (one.pinned > 0) == has_pins]
        if not policies:
            continue
        policy, played = _best_policy(situation, policies, room_bytes)
        slots, used = situation.slots(room_bytes)
        yield Trial(
            name=name,
            description=description,
            policy=policy,
            vram_bytes=used,
            slots=slots,
            ram_bytes=situation.total_bytes,
            played=played,
        )


def _best_policy(
    situation: Situation, policies: Sequence[Policy], room_bytes: int
) -> tuple[str | None, Played]:
    """The best policy's name, and what the choice among them did; none where all experts fit."""
    if room_bytes >= situation.total_bytes:
        everything = np.ones((1, *situation.training.shape[1:]), np.bool_)
        return None, situation.play(everything, np.zeros(len(situation.split.fold), np.int64))
    played = [_play(situation, policy, room_bytes) for policy in policies]
    best = _best(situation, played, np.ones(len(situation.split.fold), np.bool_))
    return policies[best].name, _chosen_by_fold(situation, played)


def _play(situation: Situation, policy: Policy, room_bytes: int) -> Played:
    """A policy over the documents of each fold, with what the others teach."""
    played = []
    for part in situation.parts:
        warm_up = hottest_last(part.training, situation.expert_bytes, room_bytes)
        replayed = replay_warm(part, policy, room_bytes, situation.expert_bytes, warm_up)
        played.append(play_cache(part.routed, replayed, situation.clocks))
    return added(played)


def _chosen_by_fold(situation: Situation, played: Sequence[Played]) -> Played:
    """For the documents of each fold, the policy that did best on the others."""
    fold = situation.split.fold
    chosen = [
        played[_best(situation, played, fold != index)]
        for index in range(max(situation.split.num_folds, 1))
    ]
    of_group = np.arange(len(fold))

    def pick(figures: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.stack(list(figures))[fold, :, of_group].T

    return Played(
        pick(one.hits for one in chosen),
        pick(one.seconds for one in chosen),
        pick(one.copied_bytes for one in chosen),
    )


def _best(situation: Situation, played: Sequence[Played], scored: NDArray[np.bool_]) -> int:
    """Which takes the least time in decode, or hits most where nothing prices it."""
    if situation.clocks.decode is not None:
        return int(np.argmin([one.seconds[DECODE, scored].sum() for one in played]))
    return int(np.argmax([one.hits[DECODE, scored].sum() for one in played]))
