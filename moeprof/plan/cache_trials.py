"""Strategies that decide while running: caches, and the oracle that bounds them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import cell_bytes
from moeprof.plan import advice
from moeprof.plan.played import Played, play_cache
from moeprof.plan.routed import DECODE, PREFILL, Routed
from moeprof.plan.trials import Situation, Trial
from moeprof.policies import Accesses, Policy, ReplayResult, parse_policy, replay

_OPTIMUM = parse_policy("optimum")


def cache_trials(situation: Situation, room_bytes: int) -> Iterator[Trial]:
    """The best cache, and the best cache beside a hot set that stays.

    Which policy is best is decided for the documents of each fold on the others, so that choosing
    among many gains nothing by chance. The trial is named for the best of all.

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
        used = min(room_bytes, situation.total_bytes)
        yield Trial(
            name=name,
            description=description,
            policy=policy,
            vram_bytes=used,
            slots=_slots(situation, used),
            ram_bytes=situation.total_bytes,
            played=played,
        )


def oracle_trial(situation: Situation, room_bytes: int, others: Sequence[Trial]) -> Trial:
    """What nothing under this budget can beat: it knows all that will be routed.

    It starts with what is used first, copies for free and in time, and hits as often as can be
    (`optimum`); each layer then takes the time that the best spread of its hits over the tokens
    of a document would take. Where another strategy is faster even so, which can only be where
    hits gather in some layers, it does what that one does.

    Args:
        situation: what to try on; its lookups are needed.
        room_bytes: bytes of VRAM that are left for experts.
        others: what was tried under the same budget.
    """
    routed = _routed(situation)
    warm = _replay(situation, _after_warm_up(routed.accesses), _OPTIMUM, room_bytes)
    row_count = situation.shape.num_moe_layers
    result = replace(
        warm,
        accesses=routed.accesses,
        is_hit=warm.is_hit[situation.shape.num_cells :],
        hits=warm.hits[row_count:],
        served=warm.served[row_count:],
        uploads=warm.uploads[row_count:],
        bytes_read=np.zeros(routed.accesses.num_batches, np.int64),
    )
    played = play_cache(routed, result, situation.clocks)
    if situation.clocks.decode is not None:
        played.seconds[DECODE] = _best_spread(situation, result.hits)
    for phase in (PREFILL, DECODE):
        for other in others:
            if other.played.seconds[phase].sum() < played.seconds[phase].sum():
                played.seconds[phase] = other.played.seconds[phase]
            if other.played.hits[phase].sum() > played.hits[phase].sum():
                played.hits[phase] = other.played.hits[phase]
    used = min(room_bytes, situation.total_bytes)
    return Trial(
        name=advice.ORACLE,
        description="an oracle that knows the future",
        policy=None,
        vram_bytes=used,
        slots=_slots(situation, used),
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
    """A policy that learns is played once for each fold, on the other folds' counts."""
    routed = _routed(situation)
    if not policy.learns or not situation.split.num_folds:
        training = situation.training.sum(axis=0)
        result = _replay(situation, routed.accesses, policy, room_bytes, training)
        return play_cache(routed, result, situation.clocks)
    fold_of_group = situation.split.fold
    parts = []
    for fold in range(situation.split.num_folds):
        training = situation.training[fold_of_group != fold].sum(axis=0)
        result = _replay(situation, routed.accesses, policy, room_bytes, training)
        parts.append(play_cache(routed, result, situation.clocks))
    return _by_fold(parts, fold_of_group)


def _replay(
    situation: Situation,
    accesses: Accesses,
    policy: Policy,
    room_bytes: int,
    training: NDArray[np.int64] | None = None,
) -> ReplayResult:
    sizes = cell_bytes(situation.expert_bytes.tolist(), situation.shape.num_experts)
    return replay(accesses, policy, room_bytes, sizes, training)


def _chosen_by_fold(situation: Situation, played: Sequence[Played]) -> Played:
    """For the documents of each fold, the policy that did best on the others."""
    fold_of_group = situation.split.fold
    chosen = [
        played[_best(situation, played, fold_of_group != fold)]
        for fold in range(max(situation.split.num_folds, 1))
    ]
    return _by_fold(chosen, fold_of_group)


def _best(situation: Situation, played: Sequence[Played], scored: NDArray[np.bool_]) -> int:
    """Which takes the least time in decode, or misses least where nothing prices it."""
    if situation.clocks.decode is not None:
        return int(np.argmin([one.seconds[DECODE, scored].sum() for one in played]))
    return int(np.argmax([one.hits[DECODE, scored].sum() for one in played]))


def _by_fold(parts: Sequence[Played], fold_of_group: NDArray[np.int64]) -> Played:
    """Of each document group what the part of its fold says."""
    of_group = np.arange(len(fold_of_group))

    def pick(figures: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.stack(list(figures))[fold_of_group, :, of_group].T

    return Played(
        pick(part.hits for part in parts),
        pick(part.seconds for part in parts),
        pick(part.copied_bytes for part in parts),
    )


def _after_warm_up(accesses: Accesses) -> Accesses:
    """The same lookups after a step that looks up every cell, so that all has been seen once."""
    shape = accesses.shape
    cells = np.arange(shape.num_cells, dtype=np.uint32)
    starts = np.arange(shape.num_moe_layers, dtype=np.int64) * shape.num_experts
    return replace(
        accesses,
        step_phase=np.concatenate([[PREFILL], accesses.step_phase]).astype(np.uint8),
        step_sequence=np.concatenate([accesses.step_sequence[:1], accesses.step_sequence]),
        step_tokens=np.concatenate([[1], accesses.step_tokens]).astype(np.uint32),
        batch_start=np.concatenate([starts, accesses.batch_start + shape.num_cells]),
        cells=np.concatenate([cells, accesses.cells]),
        uses=np.concatenate([np.ones(len(cells), accesses.uses.dtype), accesses.uses]),
    )


def _best_spread(situation: Situation, hits: NDArray[np.uint16]) -> NDArray[np.float64]:
    """[G] float64, least seconds of decoding with so many hits of each document in each layer."""
    clock, routed = situation.clocks.decode, _routed(situation)
    if clock is None:
        raise ValueError("nothing prices a token")
    num_groups, num_rows = len(situation.split.fold), situation.shape.num_moe_layers
    decoded = routed.phase == DECODE
    key = routed.group[decoded] * num_rows + routed.row[decoded]
    tokens = np.bincount(key, minlength=num_groups * num_rows).reshape(num_groups, num_rows)
    hit = np.bincount(key, hits[decoded], num_groups * num_rows).reshape(num_groups, num_rows)
    seconds: NDArray[np.float64] = routed.tokens[DECODE] * clock.dense_s
    for row in range(num_rows):
        corners = _lower_envelope(clock.seconds_by_hits(row, situation.shape.top_k))
        mean = hit[:, row] / np.maximum(tokens[:, row], 1)
        seconds = seconds + tokens[:, row] * np.interp(mean, np.arange(len(corners)), corners)
    return seconds


def _lower_envelope(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest convex function below `values` at 0, 1, 2, ... that never rises."""
    falling = np.minimum.accumulate(values)
    envelope = falling.copy()
    for first in range(len(values)):
        for last in range(first + 1, len(values)):
            line = np.linspace(falling[first], falling[last], last - first + 1)
            below = envelope[first : last + 1]
            np.minimum(below, line, out=below)
    return envelope


def _slots(situation: Situation, used_bytes: int) -> int:
    """Experts of mean size that so many bytes hold."""
    return used_bytes * situation.shape.num_cells // situation.total_bytes


def _routed(situation: Situation) -> Routed:
    if situation.routed is None:
        raise ValueError("a cache is replayed over lookups, the trace has counts alone")
    return situation.routed
