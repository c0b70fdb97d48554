"""The oracle: what no strategy can beat under a budget, since it knows all that will be routed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.plan import advice
from moeprof.plan.cost import DecodeClock
from moeprof.plan.played import play_cache
from moeprof.plan.routed import DECODE, PREFILL, Routed
from moeprof.plan.trials import Situation, Trial
from moeprof.plan.warm_replay import Part, replay_warm
from moeprof.policies import parse_policy

_OPTIMUM = parse_policy("optimum")


def oracle_trial(
    situation: Situation, routed: Routed, room_bytes: int, others: Sequence[Trial]
) -> Trial:
    """The oracle's trial.

    It begins with what is used first, copies for free and in time, and hits as often as can be
    (`optimum`); each layer then takes the time of the best spread of its hits over the tokens of a
    document. Where another strategy is faster even so, which can only be where hits gather in
    some layers, it does what that one does.

    Args:
        situation: what to try on.
        routed: its lookups.
        room_bytes: bytes of VRAM that are left for experts.
        others: what was tried under the same budget.
    """
    everything = [np.arange(situation.shape.num_cells)]
    part = Part(routed, situation.training.sum(axis=0))
    replayed = replay_warm(part, _OPTIMUM, room_bytes, situation.expert_bytes, everything)
    replayed.bytes_read[:] = 0
    played = play_cache(routed, replayed, situation.clocks)
    clock = situation.clocks.decode
    if clock is not None:
        played.seconds[DECODE] = _best_spread(clock, routed, replayed.hits, situation.shape.top_k)
    for phase in (PREFILL, DECODE):
        for other in others:
            if other.played.seconds[phase].sum() < played.seconds[phase].sum():
                played.seconds[phase] = other.played.seconds[phase]
            if other.played.hits[phase].sum() > played.hits[phase].sum():
                played.hits[phase] = other.played.hits[phase]
    slots, used = situation.slots(room_bytes)
    return Trial(
        name=advice.ORACLE,
        description="an oracle that knows the future",
        policy=None,
        vram_bytes=used,
        slots=slots,
        ram_bytes=situation.total_bytes,
        played=played,
    )


def _best_spread(
    clock: DecodeClock, routed: Routed, hits: NDArray[np.uint16], top_k: int
) -> NDArray[np.float64]:
    """[G] float64, least seconds of decoding with so many hits of each document in each layer."""
    num_groups, num_rows = routed.num_groups, len(clock.vram_expert_s)
    decoded = routed.phase == DECODE
    key = routed.group[decoded] * num_rows + routed.row[decoded]
    tokens = np.bincount(key, minlength=num_groups * num_rows).reshape(num_groups, num_rows)
    hit = np.bincount(key, hits[decoded], num_groups * num_rows).reshape(num_groups, num_rows)
    mean = hit / np.maximum(tokens, 1)
    seconds: NDArray[np.float64] = routed.tokens[DECODE] * clock.dense_s
    for row in range(num_rows):
        corners = lower_envelope(clock.seconds_by_hits(row, top_k))
        seconds += tokens[:, row] * np.interp(mean[:, row], np.arange(top_k + 1), corners)
    return seconds


def lower_envelope(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest convex function that never rises and lies below values at 0, 1, 2, ...

    Args:
        values: [N] float64.

    Returns:
        [N] float64.
    """
    falling = np.minimum.accumulate(values)
    envelope = falling.copy()
    for first in range(len(values)):
        for last in range(first + 1, len(values)):
            line = np.linspace(falling[first], falling[last], last - first + 1)
            below = envelope[first : last + 1]
            np.minimum(below, line, out=below)
    return envelope
