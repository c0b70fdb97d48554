"""What strategies are played over: the lookups of a trace, and the documents they belong to."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.policies import Accesses, read_accesses
from moeprof.trace import PHASES, CellCounts, Tokens, Trace
from moeprof.trace.folds import group_of_sequence

PREFILL, DECODE = (PHASES.index(phase) for phase in ("prefill", "decode"))
_CHUNK = 1 << 22  # lookups handled at once, so that temporary arrays stay small
_PIECES = 8


class Routed:
    """The lookups of a trace, with the document group of each batch.

    Attributes:
        accesses: the lookups; B batches of N lookups.
        group: [B] int64, document group of each batch.
        num_groups: G.
        batch_start, cells, uses, row, phase: of `accesses`.
        tokens: [2, G] float64, tokens of each phase and group.
        prompts: [G] float64, windows of prompts of each group: prefill steps.
    """

    def __init__(self, accesses: Accesses, group: NDArray[np.int64], num_groups: int) -> None:
        self.accesses = accesses
        self.group = group
        self.batch_start, self.cells, self.uses = (
            accesses.batch_start,
            accesses.cells,
            accesses.uses,
        )
        self.row, self.phase = accesses.row, accesses.phase
        self._key = self.phase.astype(np.int64) * num_groups + group
        self.num_groups = num_groups
        first = self.row == 0
        self.tokens = self.sums(np.where(first, accesses.tokens, 0))
        self.prompts = self.sums(first)[PREFILL]

    def select(self, kept: NDArray[np.bool_]) -> "Routed":
        """The lookups of some document groups, [G] bool; the others have none."""
        steps = kept[self.group[:: self.accesses.shape.num_moe_layers]]
        group = self.group[np.repeat(steps, self.accesses.shape.num_moe_layers)]
        return Routed(self.accesses.select(steps), group, self.num_groups)

    def sums(self, of_batch: NDArray[np.generic]) -> NDArray[np.float64]:
        """[2, G] float64, the sums of [B] figures over the batches of each phase and group."""
        sums = np.bincount(self._key, of_batch.astype(np.float64), 2 * self.num_groups)
        return sums.reshape(2, self.num_groups).astype(np.float64)

    def chunks(self) -> Iterator[tuple[slice, slice]]:
        """Batches and their lookups, in slices of about `_CHUNK` lookups."""
        start = self.batch_start
        first, last = 0, len(start) - 1
        while first < last:
            end = int(np.searchsorted(start, start[first] + _CHUNK, side="right")) - 1
            end = min(max(end, first + 1), last)
            yield slice(first, end), slice(int(start[first]), int(start[end]))
            first = end


@dataclass(frozen=True, slots=True)
class Sample:
    """What a trace holds, made ready for decisions about decoding.

    Attributes:
        counts: by document group.
        routed: None where the trace has counts alone, or does not say the order of its tokens.
        stands_in: whether its prompts stand in for replies that it does not have.
        pieces: into how many pieces its only document was cut, which stand for documents; 0 where
            documents are documents.
    """

    counts: CellCounts
    routed: Routed | None
    stands_in: bool
    pieces: int


class _AsDecoded(Trace):
    """A trace whose tokens all count as decoded, one after the other."""

    def tokens(self, domain: str | None = None) -> Tokens:
        tokens = super().tokens(domain)
        return replace(tokens, phase=np.full_like(tokens.phase, DECODE))

    def require(self, what: str, why: str) -> None:
        if what != "phase":
            super().require(what, why)


def read_routed(trace: Trace, counts: CellCounts) -> Routed:
    """The lookups of a trace, by the document groups of its counts.

    Raises:
        TraceError: the trace does not say the order or the phase of its tokens.
    """
    accesses = read_accesses(trace)
    group = group_of_sequence(trace)[accesses.sequence]
    return Routed(accesses, group, len(counts.group_domain))


def read_sample(trace: Trace) -> Sample:
    """The counts and lookups of a trace.

    Without decoded tokens its prompts stand in for them, token by token. A single document of a
    trace with lookups is cut into pieces of equal length.
    """
    counts = trace.cell_counts()
    stands_in = not counts.counts[:, DECODE].any()
    if stands_in:
        both = counts.counts[:, ::-1].copy()
        counts = replace(counts, counts=both)
        trace = _AsDecoded(trace.path, trace.metadata)
    if {"rows", "order"} & set(trace.metadata.missing):
        return Sample(counts, None, stands_in, 0)
    routed = read_routed(trace, counts)
    if (counts.counts[:, DECODE].sum(axis=(1, 2)) > 0).sum() > 1:
        return Sample(counts, routed, stands_in, 0)
    counts, routed = _cut(counts, routed.accesses)
    return Sample(counts, routed, stands_in, len(counts.counts))


def _cut(counts: CellCounts, accesses: Accesses) -> tuple[CellCounts, Routed]:
    """The decoded steps of the only document cut into pieces; its prompt belongs to the first."""
    decoded = accesses.step_phase == DECODE
    total = int(decoded.sum())
    pieces = max(1, min(_PIECES, total))
    of_step = np.zeros(accesses.num_steps, np.int64)
    of_step[decoded] = np.arange(total) * pieces // max(total, 1)
    return _grouped(counts, accesses, of_step, np.zeros(pieces, np.int64))


def halved(counts: CellCounts, routed: Routed) -> tuple[CellCounts, Routed]:
    """The decoded steps of every document cut into halves that are groups of their own.

    Args:
        counts: of G document groups.
        routed: their lookups.

    Returns:
        Counts and lookups of 2 G groups: the first halves of the documents of each group, with
        their prompts, then the second halves.
    """
    accesses = routed.accesses
    group = routed.group[:: accesses.shape.num_moe_layers]
    sequence = accesses.step_sequence
    starts = np.ones(accesses.num_steps, np.bool_)
    starts[1:] = (sequence[1:] != sequence[:-1]) | (group[1:] != group[:-1])
    document = np.cumsum(starts) - 1
    decoded = (accesses.step_phase == DECODE).astype(np.int64)
    length = np.bincount(document, decoded)
    begins = np.cumsum(length) - length
    place = np.cumsum(decoded) - decoded - begins[document]
    is_second = (decoded > 0) & (2 * place >= length[document])
    of_step = group + is_second * routed.num_groups
    return _grouped(counts, accesses, of_step, np.tile(counts.group_domain, 2))


def _grouped(
    counts: CellCounts,
    accesses: Accesses,
    of_step: NDArray[np.int64],
    group_domain: NDArray[np.int64],
) -> tuple[CellCounts, Routed]:
    """The same lookups, the group of each step given, [S]; and what they count."""
    groups = len(group_domain)
    group = np.repeat(of_step, accesses.shape.num_moe_layers)
    cells = accesses.shape.num_cells
    of_lookup = np.repeat(group * 2 + accesses.phase, accesses.lookups)
    flat = np.bincount(of_lookup * cells + accesses.cells, accesses.uses, groups * 2 * cells)
    made = flat.reshape(groups, *counts.counts.shape[1:]).astype(np.int64)
    cut = replace(counts, group_domain=group_domain, counts=made)
    return cut, Routed(accesses, group, groups)


def segment_sums(values: NDArray[np.generic], start: NDArray[np.int64]) -> NDArray[np.float64]:
    """[B] float64, sums of the segments `values[start[i]:start[i + 1]]`, which may be empty."""
    running = np.zeros(len(values) + 1)
    np.cumsum(values, out=running[1:])
    sums: NDArray[np.float64] = np.diff(running[start])
    return sums
