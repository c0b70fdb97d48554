"""The lookups of a trace, in the order in which a machine makes them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.model_shape import ModelShape
from moeprof.native import pack_lookups
from moeprof.trace import PHASES, Tokens, Trace

_DECODE = PHASES.index("decode")


@dataclass(frozen=True, slots=True)
class Accesses:
    """Which cells are looked up, batch by batch.

    A *step* passes through all layers before the next one begins: a decoded token, or all tokens
    of a prompt that a forward takes (a window of the trace's `sequence_length`). In each step each
    layer makes one *batch*, which looks up every distinct expert once; batch `b` is that of step
    `b // L` and row `b % L`, and may be empty. Documents follow each other as they were traced.

    Attributes:
        shape: the model's numbers.
        step_phase: [S] uint8, index into `PHASES`.
        step_sequence: [S] uint32, document of each step.
        step_tokens: [S] uint32, tokens of each step; 1 in decode.
        batch_start: [S * L + 1] int64, where each batch begins in `cells`.
        cells: [N] uint32, row * E + expert, in the order of their first use in the batch.
        uses: [N] uint16 (uint32 where a step has more than 65535 tokens), assignments behind each
            lookup.
    """

    shape: ModelShape
    step_phase: NDArray[np.uint8]
    step_sequence: NDArray[np.uint32]
    step_tokens: NDArray[np.uint32]
    batch_start: NDArray[np.int64]
    cells: NDArray[np.uint32]
    uses: NDArray[np.uint16] | NDArray[np.uint32]

    @property
    def num_steps(self) -> int:
        """Steps (S)."""
        return len(self.step_phase)

    @property
    def num_batches(self) -> int:
        """Batches, S x L."""
        return len(self.batch_start) - 1

    @property
    def lookups(self) -> NDArray[np.int64]:
        """[B] int64, lookups of each batch."""
        return np.diff(self.batch_start)

    @property
    def phase(self) -> NDArray[np.uint8]:
        """[B] uint8, index into `PHASES` of each batch."""
        return np.repeat(self.step_phase, self.shape.num_moe_layers)

    @property
    def row(self) -> NDArray[np.int64]:
        """[B] int64, row of the layer of each batch."""
        return np.tile(np.arange(self.shape.num_moe_layers), self.num_steps)

    @property
    def sequence(self) -> NDArray[np.uint32]:
        """[B] uint32, document of each batch."""
        return np.repeat(self.step_sequence, self.shape.num_moe_layers)

    @property
    def tokens(self) -> NDArray[np.uint32]:
        """[B] uint32, tokens of each batch."""
        return np.repeat(self.step_tokens, self.shape.num_moe_layers)

    @property
    def document_starts(self) -> NDArray[np.int64]:
        """[documents] int64, the first step of each document."""
        changes = np.flatnonzero(np.diff(self.step_sequence.astype(np.int64))) + 1
        return np.concatenate([[0], changes]).astype(np.int64)[: self.num_steps]

    def has(self, phase: str) -> bool:
        """Whether anything is looked up in a phase."""
        return bool(self.lookups[self.phase == PHASES.index(phase)].any())

    def select(self, kept: NDArray[np.bool_]) -> "Accesses":
        """The lookups of some steps alone.

        Args:
            kept: [S] bool.
        """
        of_batch = np.repeat(kept, self.shape.num_moe_layers)
        lookups = self.lookups
        of_lookup = np.repeat(of_batch, lookups)
        return replace(
            self,
            step_phase=self.step_phase[kept],
            step_sequence=self.step_sequence[kept],
            step_tokens=self.step_tokens[kept],
            batch_start=np.concatenate([[0], np.cumsum(lookups[of_batch])]).astype(np.int64),
            cells=self.cells[of_lookup],
            uses=self.uses[of_lookup],
        )


def read_accesses(
    trace: Trace,
    domains: Sequence[str] | None = None,
    documents: NDArray[np.integer] | None = None,
) -> Accesses:
    """The lookups of a trace; 6 to 9 bytes of memory per assignment.

    Args:
        trace: whose rows are read, domain by domain.
        domains: which domains, None for all.
        documents: sequence numbers of the documents to take, None for all.

    Raises:
        TraceError: the trace does not say the order or the phase of its tokens.
        ValueError: the trace has no such domain.
    """
    for word in ("order", "phase"):
        trace.require(word, "a cache cannot be replayed")
    walks = [_walk(trace, domain, documents) for domain in domains or trace.domains]
    return _Packer(trace.shape, walks).pack(trace)


@dataclass(frozen=True, slots=True)
class _Walk:
    """In which order the tokens of a domain pass, and where steps begin.

    `order` [T] int64 indexes the rows of each layer; None keeps them as they are.
    """

    domain: str
    order: NDArray[np.int64] | None
    step_start: NDArray[np.int64]  # [S + 1]
    phase: NDArray[np.uint8]  # [S]
    sequence: NDArray[np.uint32]  # [S]

    @property
    def tokens(self) -> NDArray[np.int64]:
        return np.diff(self.step_start)


def _walk(trace: Trace, domain: str, documents: NDArray[np.integer] | None) -> _Walk:
    tokens = trace.tokens(domain)
    order = _order(tokens, documents)
    phase, sequence, position = tokens.phase, tokens.sequence, tokens.position
    if order is not None:
        phase, sequence, position = phase[order], sequence[order], position[order]
    window = position // max(trace.metadata.capture.sequence_length, 1)
    decoded = phase == _DECODE
    starts = np.ones(len(phase), np.bool_)
    starts[1:] = (sequence[1:] != sequence[:-1]) | decoded[1:] | decoded[:-1]
    starts[1:] |= window[1:] != window[:-1]
    at = np.flatnonzero(starts)
    step_start = np.concatenate([at, [len(phase)]]).astype(np.int64)
    return _Walk(domain, order, step_start, phase[at], sequence[at])


def _order(tokens: Tokens, documents: NDArray[np.integer] | None) -> NDArray[np.int64] | None:
    """Rows by document and position, of some documents; None if that is all rows as they are."""
    key = tokens.sequence.astype(np.uint64) << np.uint64(32) | tokens.position
    is_sorted = bool((key[1:] > key[:-1]).all())
    if is_sorted and documents is None:
        return None
    order = np.arange(len(key)) if is_sorted else np.argsort(key, kind="stable")
    if documents is not None:
        order = order[np.isin(tokens.sequence[order], documents)]
    return order


class _Packer:
    """Arrays of the right size, filled domain by domain."""

    def __init__(self, shape: ModelShape, walks: list[_Walk]) -> None:
        tokens = np.concatenate([walk.tokens for walk in walks])
        # Pages that empty slots leave untouched take no memory.
        size = int(tokens.sum()) * shape.num_moe_layers * shape.top_k
        is_small = tokens.max(initial=0) <= np.iinfo(np.uint16).max
        self.shape = shape
        self.walks = walks
        self.tokens = tokens
        self.cells = np.empty(size, np.uint32)
        self.uses: NDArray[np.uint16] | NDArray[np.uint32] = (
            np.empty(size, np.uint16) if is_small else np.empty(size, np.uint32)
        )
        self.batch_start = np.zeros(len(tokens) * shape.num_moe_layers + 1, np.int64)

    def pack(self, trace: Trace) -> Accesses:
        end, batch = 0, 1
        for walk in self.walks:
            experts = [self._experts(trace, layer, walk) for layer in self.shape.moe_layers]
            batches = self.batch_start[batch : batch + len(walk.tokens) * len(experts)]
            batch += len(batches)
            num_experts = self.shape.num_experts
            cells, uses = self.cells[end:], self.uses[end:]
            packed = pack_lookups(experts, walk.step_start, num_experts, cells, uses, batches)
            batches += end
            end += packed
        return Accesses(
            shape=self.shape,
            step_phase=np.concatenate([walk.phase for walk in self.walks]),
            step_sequence=np.concatenate([walk.sequence for walk in self.walks]),
            step_tokens=self.tokens.astype(np.uint32),
            batch_start=self.batch_start,
            cells=self.cells[:end],
            uses=self.uses[:end],
        )

    def _experts(self, trace: Trace, layer: int, walk: _Walk) -> NDArray[np.uint16]:
        experts = trace.experts(layer, walk.domain)
        chosen = experts if walk.order is None else experts[walk.order]
        return np.ascontiguousarray(chosen)
