"""Strategies played over a trace: what they hit, and how long its documents take with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeprof.plan.cost import DecodeClock
from moeprof.plan.prefill_cost import PrefillClock
from moeprof.policies import Accesses, read_accesses
from moeprof.trace import PHASES, CellCounts, Trace

PREFILL, DECODE = (PHASES.index(phase) for phase in ("prefill", "decode"))
_CHUNK = 1 << 22  # lookups handled at once, so that temporary arrays stay small


@dataclass(frozen=True, slots=True)
class Clocks:
    """What prices the two phases on a machine; None where nothing does."""

    decode: DecodeClock | None = None
    prefill: PrefillClock | None = None


@dataclass(frozen=True)
class Routed:
    """The lookups of a trace, with the document group of each batch.

    Attributes:
        accesses: the lookups; B batches.
        group: [B] int64, document group of each batch, as in the trace's `CellCounts`.
        num_groups: G.
    """

    accesses: Accesses
    group: NDArray[np.int64]
    num_groups: int

    @cached_property
    def tokens(self) -> NDArray[np.float64]:
        """[2, G] float64, tokens of each phase and group."""
        first = self.accesses.row == 0
        return self.sums(np.where(first, self.accesses.tokens, 0))

    @cached_property
    def assignments(self) -> NDArray[np.float64]:
        """[2, G] float64, assignments of each phase and group."""
        return self.sums(segment_sums(self.accesses.uses, self.accesses.batch_start))

    @cached_property
    def prompts(self) -> NDArray[np.float64]:
        """[G] float64, windows of prompts of each group: prefill batches of a layer."""
        return self.sums(self.accesses.row == 0)[PREFILL]

    def sums(self, of_batch: NDArray[np.generic]) -> NDArray[np.float64]:
        """[2, G] float64, the sums of [B] figures over the batches of each phase and group."""
        key = self.accesses.phase.astype(np.int64) * self.num_groups + self.group
        sums = np.bincount(key, of_batch.astype(np.float64), 2 * self.num_groups)
        return sums.reshape(2, self.num_groups)

    def chunks(self) -> Iterator[tuple[slice, slice]]:
        """Batches and their lookups, in slices of about `_CHUNK` lookups."""
        start = self.accesses.batch_start
        first, last = 0, len(start) - 1
        while first < last:
            end = int(np.searchsorted(start, start[first] + _CHUNK, side="right")) - 1
            end = min(max(end, first + 1), last)
            yield slice(first, end), slice(int(start[first]), int(start[end]))
            first = end


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


def read_routed(trace: Trace, num_groups: int) -> Routed:
    """The lookups of a trace whose `CellCounts` have this many document groups."""
    accesses = read_accesses(trace)
    return Routed(accesses, _group_of_sequence(trace)[accesses.sequence], num_groups)


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
    accesses = routed.accesses
    flat = sets.reshape(len(sets), -1)
    hits = np.zeros(len(accesses.row))
    seconds = np.full(len(accesses.row), np.nan)
    for batches, lookups in routed.chunks():
        start = accesses.batch_start[batches.start : batches.stop + 1] - lookups.start
        of_set = np.repeat(set_of_group[routed.group[batches]], np.diff(start))
        present = flat[of_set, accesses.cells[lookups]]
        hits[batches] = segment_sums(present * accesses.uses[lookups], start)
        seconds[batches] = _chunk_seconds(accesses, (batches, lookups), present, clocks)
    copied = np.zeros((2, routed.num_groups))
    return Played(routed.sums(hits), _with_dense(routed, seconds, clocks), copied)


def play_cache(
    routed: Routed,
    hits: NDArray[np.integer],
    served: NDArray[np.integer],
    copied_bytes: NDArray[np.integer],
    clocks: Clocks,
) -> Played:
    """Price what a cache did.

    Args:
        routed: the lookups it was replayed over.
        hits: [B], lookups of each batch that were present.
        served: [B], assignments behind them.
        copied_bytes: [B], bytes brought in.
        clocks: price it.
    """
    accesses = routed.accesses
    decoded = accesses.phase == DECODE
    seconds = np.full(len(decoded), np.nan)
    if clocks.decode is not None:
        present = hits[decoded].astype(np.int64)
        missing = np.diff(accesses.batch_start)[decoded] - present
        seconds[decoded] = clocks.decode.layer_seconds(
            accesses.row[decoded], present, missing, copied_bytes[decoded]
        )
    total = _with_dense(routed, seconds, clocks)
    return Played(routed.sums(served), total, routed.sums(copied_bytes))


def play_counts(
    counts: CellCounts,
    sets: NDArray[np.bool_],
    set_of_group: NDArray[np.int64],
    clock: DecodeClock | None,
    phase: int,
) -> Played:
    """What sets of cells do as far as counts tell: hits exactly, the time of decoding in the mean.

    The time is that of tokens whose experts are chosen independently of each other; see
    `DecodeClock.expected_seconds`.

    Args:
        counts: of the trace.
        sets: [S, L, E] bool, the cells in VRAM.
        set_of_group: [G] int64, which of the sets each document group is played against.
        clock: prices a decoded token.
        phase: index of the phase whose assignments are priced as decoded tokens.
    """
    hits = (counts.counts * sets[set_of_group][:, None]).sum(axis=3)
    total = counts.counts.sum(axis=3)
    seconds = np.full((2, len(total)), np.nan)
    if clock is not None:
        top_k = counts.shape.top_k
        tokens = total[:, phase] / top_k
        rate = hits[:, phase] / np.maximum(total[:, phase], 1)
        each = [clock.expected_seconds(row, top_k, rate[:, row]) for row in range(rate.shape[1])]
        seconds[phase] = (tokens.T * each).sum(axis=0) + tokens.max(axis=1) * clock.dense_s
    copied = np.zeros((2, len(total)))
    return Played(hits.sum(axis=2).T.astype(np.float64), seconds, copied)


def segment_sums(values: NDArray[np.generic], start: NDArray[np.int64]) -> NDArray[np.float64]:
    """[B] float64, sums of the segments `values[start[i]:start[i + 1]]`, which may be empty."""
    running = np.zeros(len(values) + 1)
    np.cumsum(values, out=running[1:])
    sums: NDArray[np.float64] = np.diff(running[start])
    return sums


def _chunk_seconds(
    accesses: Accesses, chunk: tuple[slice, slice], present: NDArray[np.bool_], clocks: Clocks
) -> NDArray[np.float64]:
    """[B] seconds of the experts of each batch of a chunk; NaN where nothing prices it."""
    batches, lookups = chunk
    start = accesses.batch_start[batches.start : batches.stop + 1] - lookups.start
    row, decoded = accesses.row[batches], accesses.phase[batches] == DECODE
    seconds = np.full(len(row), np.nan)
    if clocks.decode is not None and decoded.any():
        num_vram = segment_sums(present, start)[decoded]
        num_ram = np.diff(start)[decoded] - num_vram
        seconds[decoded] = clocks.decode.layer_seconds(row[decoded], num_vram, num_ram)
    if clocks.prefill is not None and not decoded.all():
        of_batch = np.repeat(np.arange(len(row)), np.diff(start))
        prompt = ~decoded[of_batch]
        of_batch, uses = of_batch[prompt], accesses.uses[lookups][prompt]
        parts = clocks.prefill.expert_seconds(row[of_batch], uses, present[prompt])
        device, host = (np.bincount(of_batch, part, len(row))[~decoded] for part in parts)
        seconds[~decoded] = clocks.prefill.layer_seconds(device, host)
    return seconds


def _with_dense(
    routed: Routed, seconds: NDArray[np.float64], clocks: Clocks
) -> NDArray[np.float64]:
    """[2, G] float64, from the seconds of each batch's experts, [B]."""
    total = routed.sums(seconds)
    if clocks.decode is not None:
        total[DECODE] += routed.tokens[DECODE] * clocks.decode.dense_s
    if clocks.prefill is not None:
        tokens = routed.tokens[PREFILL]
        total[PREFILL] += routed.prompts * clocks.prefill.dense_s
        total[PREFILL] += tokens * clocks.prefill.dense_token_s
    return total


def _group_of_sequence(trace: Trace) -> NDArray[np.int64]:
    """Index into the groups of `Trace.cell_counts` for every sequence number."""
    documents = trace.documents()
    documents["domain"] = documents["domain"].map(trace.domains.index)
    counted = trace.counts()[["domain", "document_group"]].drop_duplicates()
    counted["domain"] = counted["domain"].astype(object).map(trace.domains.index)
    counted = counted.astype(np.int64).sort_values(["domain", "document_group"])
    counted["group"] = np.arange(len(counted))
    known = documents.merge(counted, on=["domain", "document_group"])
    group_of = np.zeros(int(documents["sequence"].max()) + 1, np.int64)
    group_of[known["sequence"].to_numpy(np.int64)] = known["group"].to_numpy(np.int64)
    return group_of
