"""Strategies played over a trace: what they hit, and how long its documents take with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.hardware import HardwareProfile
from moeprof.model_shape import ModelShape
from moeprof.plan.cost import DecodeClock, decode_clock
from moeprof.plan.prefill_cost import PrefillClock, prefill_clock
from moeprof.plan.routed import DECODE, PREFILL, Routed, segment_sums
from moeprof.policies import ReplayResult
from moeprof.trace import CellCounts


@dataclass(frozen=True, slots=True)
class Clocks:
    """What prices the two phases on a machine; None where nothing does."""

    decode: DecodeClock | None = None
    prefill: PrefillClock | None = None


def clocks_of(
    profile: HardwareProfile | None,
    shape: ModelShape,
    weight_format: str,
    expert_bytes: Sequence[int],
) -> Clocks:
    """The clocks of a model on a machine; none without a profile.

    Args:
        profile: of the machine.
        shape: the model's numbers.
        weight_format: of its experts, as the profile names it.
        expert_bytes: for each MoE layer the bytes of one expert in that format.

    Raises:
        CapacityError: the profile does not know the format.
    """
    if profile is None:
        return Clocks()
    return Clocks(
        decode_clock(profile, shape, weight_format, expert_bytes),
        prefill_clock(profile, shape, weight_format, expert_bytes),
    )


@dataclass(frozen=True, slots=True)
class Played:
    """What a strategy did with the documents of each group, for each phase.

    Attributes:
        hits: [2, G] float64, assignments whose expert was in VRAM.
        seconds: [2, G] float64, the time of the phase's tokens; NaN where nothing prices it.
        copied_bytes: [2, G] float64, bytes copied into VRAM by a cache.
    """

    hits: NDArray[np.float64]
    seconds: NDArray[np.float64]
    copied_bytes: NDArray[np.float64]


def play_sets(
    routed: Routed, sets: NDArray[np.bool_], set_of_group: NDArray[np.int64], clocks: Clocks
) -> Played:
    """Play fixed sets of cells in VRAM.

    Args:
        routed: lookups to play.
        sets: [S, L, E] bool, the cells in VRAM.
        set_of_group: [G] int64, which of the sets each document group is played against.
        clocks: price it.
    """
    flat = sets.reshape(len(sets), -1)

    def present(batches: slice, lookups: slice) -> NDArray[np.bool_]:
        of_set = set_of_group[routed.group[batches]]
        size = np.diff(routed.batch_start[batches.start : batches.stop + 1])
        found: NDArray[np.bool_] = flat[np.repeat(of_set, size), routed.cells[lookups]]
        return found

    return _play(routed, present, np.zeros(len(routed.row), np.int64), clocks)


def play_cache(routed: Routed, replayed: ReplayResult, clocks: Clocks) -> Played:
    """Price what a cache did with the same lookups."""
    return _play(routed, lambda _, lookups: replayed.is_hit[lookups], replayed.bytes_read, clocks)


def added(parts: Sequence[Played]) -> Played:
    """What was done with documents that were played apart."""
    return Played(
        np.sum([part.hits for part in parts], axis=0),
        np.sum([part.seconds for part in parts], axis=0),
        np.sum([part.copied_bytes for part in parts], axis=0),
    )


def play_counts(
    counts: CellCounts,
    sets: NDArray[np.bool_],
    set_of_group: NDArray[np.int64],
    clock: DecodeClock | None,
) -> Played:
    """What sets of cells do as far as counts tell: hits exactly, the time of decoding in the mean.

    The time is that of tokens whose experts are chosen independently of each other; see
    `DecodeClock.expected_seconds`. Prefill is not priced.

    Args:
        counts: of the trace.
        sets: [S, L, E] bool, the cells in VRAM.
        set_of_group: [G] int64, which of the sets each document group is played against.
        clock: prices a decoded token.
    """
    hits = (counts.counts * sets[set_of_group][:, None]).sum(axis=3)
    total = counts.counts.sum(axis=3)
    seconds = np.full((2, len(total)), np.nan)
    if clock is not None:
        top_k = counts.shape.top_k
        tokens = total[:, DECODE] / top_k
        rate = hits[:, DECODE] / np.maximum(total[:, DECODE], 1)
        each = [clock.expected_seconds(row, top_k, rate[:, row]) for row in range(rate.shape[1])]
        seconds[DECODE] = (tokens.T * each).sum(axis=0) + tokens.max(axis=1) * clock.dense_s
    copied = np.zeros((2, len(total)))
    return Played(hits.sum(axis=2).T.astype(np.float64), seconds, copied)


def _play(
    routed: Routed,
    present_in: Callable[[slice, slice], NDArray[np.bool_]],
    copied_bytes: NDArray[np.int64],
    clocks: Clocks,
) -> Played:
    """`present_in` says of a chunk's lookups [N] whether their cells are in VRAM."""
    hits = np.zeros(len(routed.row))
    seconds = np.full(len(routed.row), np.nan)
    for batches, lookups in routed.chunks():
        start = routed.batch_start[batches.start : batches.stop + 1] - lookups.start
        present, uses = present_in(batches, lookups), routed.uses[lookups]
        hits[batches] = segment_sums(present * uses, start)
        row, copied = routed.row[batches], copied_bytes[batches]
        decoded = routed.phase[batches] == DECODE
        if clocks.decode is not None and decoded.any():
            num_vram = segment_sums(present, start)[decoded]
            num_ram = np.diff(start)[decoded] - num_vram
            seconds[batches][decoded] = clocks.decode.layer_seconds(
                row[decoded], num_vram, num_ram, copied[decoded]
            )
        if clocks.prefill is not None and not decoded.all():
            priced = clocks.prefill.batch_seconds(row, start, uses, present, copied)
            seconds[batches][~decoded] = priced[~decoded]
    total = routed.sums(seconds)
    if clocks.decode is not None:
        total[DECODE] += routed.tokens[DECODE] * clocks.decode.dense_s
    if clocks.prefill is not None:
        total[PREFILL] += routed.prompts * clocks.prefill.dense_s
        total[PREFILL] += routed.tokens[PREFILL] * clocks.prefill.dense_token_s
    return Played(routed.sums(hits), total, routed.sums(copied_bytes))
