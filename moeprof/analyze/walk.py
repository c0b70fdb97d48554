"""Passing over the rows of a trace once, layer by layer, for every statistic that needs them."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.sample import Sample
from moeprof.analyze.settings import BOTH_PHASES, OVERALL
from moeprof.native.cores import physical_cores
from moeprof.trace.columns import Tokens
from moeprof.trace.reader import Trace
from moeprof.trace.schema import PHASES

_LAYER_BYTES = 32 << 20  # of layers read together, which spares opening every part for each


@dataclass(frozen=True, slots=True)
class PhaseTokens:
    """The tokens of one phase (or both) in document order, and where they belong.

    Attributes:
        phase: `prefill`, `decode` or `all`.
        rows: [T] int64, which rows of each layer; None where it is all of them as they stand.
        group: [T] uint32, document group, as an index among those of the counts.
        document_start: [D + 1] int64, where each document begins.
        run_start: [R + 1] int64, where each run begins: tokens that follow each other and that
            the model read in one context.
        place: [T] uint32, tokens of the document before this one in this phase.
        domain_span: [domains, 2] int64, first token of each domain and the one behind its last.
    """

    phase: str
    rows: NDArray[np.int64] | None
    group: NDArray[np.uint32]
    document_start: NDArray[np.int64]
    run_start: NDArray[np.int64]
    place: NDArray[np.uint32]
    domain_span: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Tokens (T)."""
        return len(self.group)

    def span(self, domain: int | None) -> slice:
        """Where the tokens of a domain stand; None for all domains."""
        if domain is None:
            return slice(0, self.num_tokens)
        return slice(*self.domain_span[domain].tolist())

    def select(self, experts: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """[T, K] of a layer's rows, contiguous."""
        chosen = experts if self.rows is None else experts[self.rows]
        return np.ascontiguousarray(chosen)


@dataclass(frozen=True, slots=True)
class RoutedLayer:
    """What the tokens of one phase chose in one layer, and in the layer before it.

    Attributes:
        row: of the layer.
        experts: [T, K] uint16.
        before: [T, K] uint16, of row - 1; None in the first layer.
    """

    row: int
    experts: NDArray[np.uint16]
    before: NDArray[np.uint16] | None


@dataclass(frozen=True, slots=True)
class SampleTokens:
    """Which of a phase's tokens are of a sample, and where they belong in it.

    Attributes:
        sample: the sample.
        span: its tokens among those of the phase.
        group: [T'] uint32, index among the sample's groups of each of its tokens.
        fold: [T'] uint32, fold of each of its tokens; zero with a single group.
    """

    sample: Sample
    span: slice
    group: NDArray[np.uint32]
    fold: NDArray[np.uint32]


def tokens_of_sample(tokens: PhaseTokens, sample: Sample, domains: Sequence[str]) -> SampleTokens:
    """Place a sample among the tokens of its phase; `domains` as the trace orders them."""
    overall = sample.domain == OVERALL
    span = tokens.span(None if overall else domains.index(sample.domain))
    # A token of another group has no assignment at all, and may stand anywhere.
    group = np.searchsorted(sample.groups, tokens.group[span]).clip(max=sample.num_groups - 1)
    fold = sample.fold if sample.num_groups > 1 else np.zeros(sample.num_groups, np.int64)
    return SampleTokens(sample, span, group.astype(np.uint32), fold.astype(np.uint32)[group])


class Visitor(Protocol):
    """A statistic that is gathered layer by layer; layers may come at the same time."""

    def visit(self, layer: RoutedLayer) -> None:
        """Take in one layer; writes only what belongs to that layer."""


def tokens_of_phase(
    trace: Trace, tokens: Tokens, group_of: NDArray[np.int64], phase: str
) -> PhaseTokens:
    """Sort out the tokens of a phase.

    Args:
        trace: the trace.
        tokens: of the trace, or of one of its domains.
        group_of: group of each sequence number, from `group_of_sequence`.
        phase: `prefill`, `decode` or `all`.
    """
    kept = np.ones(len(tokens.phase), bool)
    if phase != BOTH_PHASES:
        kept = tokens.phase == PHASES.index(phase)
    rows = np.flatnonzero(kept)
    keys = (tokens.position[rows], tokens.sequence[rows], tokens.domain[rows])
    if not _ascends(*keys[::-1]):
        rows = rows[np.lexsort(keys)]
    group = group_of[tokens.sequence[rows]].astype(np.uint32)
    return _sorted_out(trace, tokens, phase, rows, group)


def _ascends(
    domain: NDArray[np.uint16], sequence: NDArray[np.uint32], position: NDArray[np.uint32]
) -> bool:
    same = domain[1:] == domain[:-1]
    in_order = (sequence[1:] > sequence[:-1]) | (
        (sequence[1:] == sequence[:-1]) & (position[1:] > position[:-1])
    )
    return bool(np.all((domain[1:] > domain[:-1]) | (same & in_order)))


def _sorted_out(
    trace: Trace,
    tokens: Tokens,
    phase: str,
    rows: NDArray[np.int64],
    group: NDArray[np.uint32],
) -> PhaseTokens:
    sequence, position = tokens.sequence[rows], tokens.position[rows].astype(np.int64)
    domain = tokens.domain[rows]
    capture = trace.metadata.capture
    # Without generation a document is read in windows, each without what came before it.
    window = (
        position // capture.sequence_length if capture.generate == 0 else np.zeros_like(position)
    )
    new_document = np.ones(len(rows), bool)
    new_document[1:] = (sequence[1:] != sequence[:-1]) | (domain[1:] != domain[:-1])
    new_run = new_document.copy()
    new_run[1:] |= (position[1:] != position[:-1] + 1) | (window[1:] != window[:-1])
    document_start = np.append(np.flatnonzero(new_document), len(rows))
    length = np.diff(document_start)
    ids = np.arange(len(trace.domains))
    span = np.stack([np.searchsorted(domain, ids), np.searchsorted(domain, ids, "right")], axis=1)
    return PhaseTokens(
        phase=phase,
        rows=None if len(rows) == len(tokens.sequence) and _is_arange(rows) else rows,
        group=group,
        document_start=document_start,
        run_start=np.append(np.flatnonzero(new_run), len(rows)),
        place=(np.arange(len(rows)) - np.repeat(document_start[:-1], length)).astype(np.uint32),
        domain_span=span,
    )


def _is_arange(rows: NDArray[np.int64]) -> bool:
    return bool(np.all(np.diff(rows) == 1))


def visit_layers(
    trace: Trace,
    domain: str | None,
    visits: Sequence[tuple[PhaseTokens, Sequence[Visitor]]],
) -> None:
    """Read every layer once and show it to the visitors, on as many threads as there are cores.

    Memory is that of a few layers, whatever the number of layers.

    Args:
        trace: a trace with rows.
        domain: the domain whose rows the tokens index; None for all.
        visits: for each phase its tokens and who wants to see them.
    """
    num_threads = len(physical_cores())
    num_tokens = max(tokens.num_tokens for tokens, _ in visits)
    waiting: deque[Future[None]] = deque()
    before: list[NDArray[np.uint16] | None] = [None] * len(visits)
    with ThreadPoolExecutor(num_threads) as pool:
        for row, experts in enumerate(_layers(trace, domain, num_tokens)):
            for index, (tokens, visitors) in enumerate(visits):
                layer = RoutedLayer(row, tokens.select(experts), before[index])
                before[index] = layer.experts
                waiting.extend(pool.submit(visitor.visit, layer) for visitor in visitors)
            while len(waiting) > num_threads:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def _layers(trace: Trace, domain: str | None, num_tokens: int) -> Iterator[NDArray[np.uint16]]:
    """[T, K] of every layer, a few of them read together."""
    shape = trace.shape
    together = max(1, _LAYER_BYTES // max(1, num_tokens * shape.top_k * 2))
    for row in range(0, shape.num_moe_layers, together):
        yield from trace.experts_of(shape.moe_layers[row : row + together], domain)
