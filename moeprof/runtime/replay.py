"""Feeding a traced corpus again, token by token as it was, and comparing what is hit.

Each window of a document is fed as it was traced: without the context before it, and generated
tokens one at a time.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.checkpoint import Checkpoint
from moeprof.errors import TraceError
from moeprof.placement.tier import Tier
from moeprof.runtime.meter import hits_by_tier
from moeprof.runtime.model import LoadedModel
from moeprof.runtime.report import HitDifference, ReplayReport, RunReport
from moeprof.runtime.session import Session
from moeprof.trace.reader import Trace, open_trace
from moeprof.trace.schema import NO_EXPERT, PHASES

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Selection:
    """The documents of a trace that are to be replayed.

    Attributes:
        trace: the trace.
        sequences: their numbers, ascending.
    """

    trace: Trace
    sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """The tokens of one document, cut as they were traced.

    Attributes:
        windows: prefill tokens of each window.
        decoded: tokens generated after the last window.
    """

    windows: tuple[list[int], ...]
    decoded: list[int]


def select_documents(spec: str) -> Selection:
    """The documents that `TRACE[:DOMAIN_OR_SEQUENCE[,...]]` names; without the suffix, all.

    Args:
        spec: such as `traces/demo`, `traces/demo:python` or `traces/demo:3,17`.

    Raises:
        TraceError: no such trace, domain or sequence.
    """
    path, _, suffix = (spec, "", "") if Path(spec).exists() else spec.rpartition(":")
    trace = open_trace(path or spec)
    for what in ("rows", "order", "token_ids", "fingerprint", "assignments"):
        trace.require(what, "its documents cannot be fed to a model again")
    documents = trace.documents()
    chosen: set[int] = set()
    for name in filter(None, re.split("[,:]", suffix)):
        known = documents["domain"] == name
        if name.isdigit() and not known.any():
            known = documents["sequence"] == int(name)
        if not known.any():
            raise TraceError(
                f"{path}: has no domain or sequence {name!r}",
                f"its domains are {', '.join(trace.domains)}",
            )
        chosen.update(int(number) for number in documents["sequence"][known])
    if not suffix:
        chosen.update(int(number) for number in documents["sequence"])
    return Selection(trace, tuple(sorted(chosen)))


def read_documents(selection: Selection) -> Iterator[Document]:
    """The tokens of the selected documents, from the rows of the first MoE layer."""
    trace, capture = selection.trace, selection.trace.metadata.capture
    routing = trace.routing(trace.shape.moe_layers[0])
    order = np.lexsort((routing.position, routing.sequence))
    sequence = routing.sequence[order]
    for number in selection.sequences:
        rows = order[np.searchsorted(sequence, number) : np.searchsorted(sequence, number + 1)]
        tokens, phase = routing.token_id[rows], routing.phase[rows]
        prompt = tokens[phase == 0].tolist()
        length = len(prompt) if capture.generate else capture.sequence_length
        windows = tuple(prompt[at : at + length] for at in range(0, len(prompt), max(length, 1)))
        yield Document(windows, tokens[phase == 1].tolist())


def predicted_assignments(selection: Selection) -> NDArray[np.int64]:
    """[2, L, E] int64: assignments of the selected documents, counted from the trace's rows."""
    trace = selection.trace
    shape = trace.shape
    counts = np.zeros((len(PHASES), shape.num_moe_layers, shape.num_experts), np.int64)
    for row, layer in enumerate(shape.moe_layers):
        routing = trace.routing(layer)
        chosen = np.isin(routing.sequence, selection.sequences)
        for phase in range(len(PHASES)):
            ids = routing.experts[chosen & (routing.phase == phase)]
            ids = ids[ids != NO_EXPERT].astype(np.int64)
            counts[phase, row] = np.bincount(ids, minlength=shape.num_experts)
    return counts


def check_same_model(selection: Selection, checkpoint: Checkpoint) -> None:
    """Refuse documents that were not traced on this checkpoint.

    Raises:
        TraceError: the fingerprints differ.
    """
    traced = selection.trace.metadata.model
    if traced.fingerprint != checkpoint.fingerprint:
        raise TraceError(
            f"{selection.trace.path}: traced on {traced.name} with fingerprint "
            f"{traced.fingerprint}, but {checkpoint.name} has {checkpoint.fingerprint}",
            "replay a trace of the model that the placement is for",
        )


def replay(
    loaded: LoadedModel, selection: Selection, progress: Progress | None = None
) -> RunReport:
    """Feed the selected documents and compare the hits with those that the trace predicts.

    Args:
        loaded: a model that has not run yet, in the element type of the trace for equal routing.
        selection: from `select_documents`.
        progress: called with the documents done and to do.

    Raises:
        TraceError: the trace is of another model.
    """
    check_same_model(selection, loaded.checkpoint)
    loaded.meter.collect()
    before = loaded.meter.assignments.copy()
    session = Session(loaded)
    for done, document in enumerate(read_documents(selection), start=1):
        _feed(session, document)
        if progress is not None:
            progress(done, len(selection.sequences))
    loaded.meter.collect()
    measured = loaded.meter.assignments - before
    comparison = compare(selection, predicted_assignments(selection), measured, loaded.table.tier)
    return replace(session.report(), replay=comparison)


def _feed(session: Session, document: Document) -> None:
    cache, position = None, 0
    for index, window in enumerate(document.windows):
        keep = bool(document.decoded) and index == len(document.windows) - 1
        with session.timed(PHASES[0]):
            step = session.loaded.forward(window, PHASES[0], keep_cache=keep)
        cache, position = step.cache, len(window)
    if document.decoded:
        with session.timed(PHASES[1]):
            for token_id in document.decoded:
                step = session.loaded.forward([token_id], PHASES[1], cache, position)
                cache, position = step.cache, position + 1


def compare(
    selection: Selection,
    predicted: NDArray[np.int64],
    measured: NDArray[np.int64],
    tier_of: NDArray[np.uint8],
) -> ReplayReport:
    """Predicted beside measured, and where they differ.

    Args:
        selection: what was replayed.
        predicted: [2, L, E] int64, assignments in the trace.
        measured: [2, L, E] int64, assignments counted.
        tier_of: [L, E] uint8, the value of `Tier` of every cell.
    """
    expected, found = hits_by_tier(predicted, tier_of), hits_by_tier(measured, tier_of)
    return ReplayReport(
        trace=selection.trace.name,
        trace_dtype=selection.trace.metadata.capture.dtype,
        documents=len(selection.sequences),
        predicted_hits=_by_phase(expected),
        measured_hits=_by_phase(found),
        moved_assignments=int(np.abs(measured - predicted).sum() + 1) // 2,
        differences=tuple(
            HitDifference(
                phase=PHASES[phase],
                layer=selection.trace.shape.moe_layers[row],
                tier=Tier(tier).label,
                predicted=int(expected[phase, row, tier]),
                measured=int(found[phase, row, tier]),
            )
            for phase, row, tier in np.argwhere(expected != found)
        ),
    )


def _by_phase(hits: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    return {
        name: {tier.label: int(hits[phase, :, tier].sum()) for tier in (Tier.VRAM, Tier.RAM)}
        for phase, name in enumerate(PHASES)
        if hits[phase].any()
    }
