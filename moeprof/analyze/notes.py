"""What an analysis or a comparison could not compute, or what needs care, in sentences."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeprof.analyze.hot_sets import hot_set_size
from moeprof.analyze.sample import Sample
from moeprof.analyze.settings import BOTH_PHASES, OVERALL, AnalysisSettings
from moeprof.model_shape import ModelShape
from moeprof.placement import Placement
from moeprof.trace.counts import CellCounts
from moeprof.trace.origin import UNSAID
from moeprof.trace.reader import Trace
from moeprof.trace.schema import PHASES
from moeprof.units import format_size

if TYPE_CHECKING:
    from moeprof.analyze.comparison import PhaseComparison

# What each section needs of a source, beside counts.
_NEEDS = {
    "locality": "order",
    "prediction": "rows",
    "coactivation": "rows",
    "drift": "order",
}


def notes_on_origin(trace: Trace | CellCounts, settings: AnalysisSettings) -> Iterator[str]:
    """What the source of an imported trace does not say and these numbers depend on."""
    origin = trace.metadata.origin if isinstance(trace, Trace) else None
    if origin is None:
        return
    for word in ("phase", "documents", "assignments"):
        if word in origin.missing:
            yield f"Imported from {origin.format}, which does not say {UNSAID[word]}."
    for word in ("rows", "order"):
        lost = [name for name, need in _NEEDS.items() if need == word and settings.has(name)]
        if word in origin.missing and lost:
            yield (
                f"Imported from {origin.format}, which does not say {UNSAID[word]}: there is no "
                f"section {' or '.join(lost)}."
            )


def notes_on_budget(settings: AnalysisSettings, shape: ModelShape) -> Iterator[str]:
    """How a budget in bytes was read."""
    if settings.budget_bytes is None:
        return
    cells = hot_set_size(settings.share, shape.num_cells)
    budget, total = format_size(settings.budget_bytes), shape.total_expert_bytes
    if settings.budget_bytes >= total:
        yield f"A budget of {budget} holds all {cells} cells, which take {format_size(total)}."
        return
    text = f"A budget of {budget} is {cells} of {shape.num_cells} cells"
    if len(set(shape.expert_bytes)) > 1:
        text += " of the mean size; experts differ in size, so a hot set may be smaller or larger"
    yield f"{text}."


def notes_on_samples(
    cells: CellCounts, samples: Sequence[Sample], unsaid: Sequence[str]
) -> Iterator[str]:
    """Phases that were added or are absent, and samples with too few documents.

    Args:
        cells: counts of the trace.
        samples: what was analysed.
        unsaid: what the trace does not say, of `UNSAID`; an unknown phase is not an absent one.
    """
    if any(sample.phase == BOTH_PHASES for sample in samples):
        yield "Prefill and decode are added in every number, as asked for with --phase all."
    for phase in {sample.phase: None for sample in samples}:
        found = [sample for sample in samples if sample.phase == phase]
        yield from _notes_on_few_documents(phase, found)
    phases = {sample.phase for sample in samples}
    for phase in PHASES:
        absent = not cells.counts[:, PHASES.index(phase)].any()
        asked = samples[0].settings.phase is None and "phase" not in unsaid
        if absent and asked and phase not in phases:
            yield f"{phase}: the trace has no assignments in this phase."


def _notes_on_few_documents(phase: str, found: list[Sample]) -> Iterator[str]:
    pairs = [one.domain for one in found if one.num_groups == 2]
    if pairs:
        yield (
            f"{phase}: only two documents in {', '.join(pairs)}: held-out coverage has no "
            "interval, since leaving one out leaves nothing to choose on."
        )
    single = [one.domain for one in found if one.num_groups == 1]
    if not single:
        return
    yield (
        f"{phase}: a single document in {', '.join(single)}: held-out coverage needs a "
        "second one to be scored on, and intervals need two to differ."
    )
    if found[0].domain == OVERALL:
        yield (
            f"{phase}: in {OVERALL}, a document that is alone in its domain is scored "
            "with sets from the other domains, and the interval leaves it as it is."
        )


def notes_on_comparison(
    traces: tuple[Trace, Trace], names: tuple[str, str], phases: Sequence["PhaseComparison"]
) -> Iterator[str]:
    """In what two traces differ beside their routing, and what so few documents cannot tell.

    Args:
        traces: where sets are chosen, and where they are scored.
        names: what the two are called.
        phases: what was compared.
    """
    first, second = traces
    if first.digest == second.digest:
        yield "Both are one trace: what the hot set of one serves of the other is in-sample."
    if len({one.metadata.model.fingerprint for one in traces}) > 1:
        yield "The traces are of checkpoints with other fingerprints, or one of them has none."
    if first.shape.top_k != second.shape.top_k:
        yield f"Top-k differs: {first.shape.top_k} and {second.shape.top_k} experts per token."
    if first.shape.expert_bytes != second.shape.expert_bytes:
        yield f"Experts are stored in other sizes; those of {names[0]} stand for both."
    for trace, name in zip(traces, names, strict=True):
        yield from _note_on_phase(trace, name)
    for one in phases:
        yield from _notes_on_tested(one)
        yield from _notes_on_held_out(one, names[1])
        if one.documents[0] == 1:
            yield (
                f"{one.phase}: {names[0]} has one document, so its hot set has no interval, nor "
                "has what is kept."
            )


def notes_on_placement(
    placement: Placement, trace: Trace, phases: Sequence["PhaseComparison"]
) -> Iterator[str]:
    """What needs care where a placement is scored on a trace."""
    if placement.model.fingerprint != trace.metadata.model.fingerprint:
        yield "Placement and trace are of checkpoints with other fingerprints, or one has none."
    if placement.trace.digest == trace.digest:
        yield "The placement was made from this very trace: its coverage here is in-sample."
    yield from _note_on_phase(trace, trace.name)
    for one in phases:
        yield from _notes_on_held_out(one, trace.name)


def _note_on_phase(trace: Trace, name: str) -> Iterator[str]:
    if "phase" in trace.metadata.missing:
        yield f"{name} does not say {UNSAID['phase']}."


def _notes_on_tested(one: "PhaseComparison") -> Iterator[str]:
    if np.isnan(one.p_value):
        first, second = one.documents
        yield (
            f"{one.phase}: {first} and {second} documents are too few to test whether the routing "
            "differs; it takes two in each."
        )
    elif one.smallest_p > 0.05:
        yield f"{one.phase}: so few documents cannot give a p-value below {one.smallest_p:.2g}."


def _notes_on_held_out(one: "PhaseComparison", name: str) -> Iterator[str]:
    if one.documents[1] == 1:
        yield f"{one.phase}: {name} has one document, so nothing can be held out of it."
    elif one.documents[1] == 2:
        yield (
            f"{one.phase}: {name} has two documents: neither its own coverage nor what is kept of "
            "it has an interval, since leaving one out leaves nothing to choose on."
        )
