"""What an analysis could not compute, or what needs care, in sentences."""

from collections.abc import Iterator, Sequence

from moeprof.analyze.hot_sets import hot_set_size
from moeprof.analyze.sample import Sample
from moeprof.analyze.settings import BOTH_PHASES, OVERALL, AnalysisSettings
from moeprof.model_shape import ModelShape
from moeprof.trace.counts import CellCounts
from moeprof.trace.origin import UNSAID
from moeprof.trace.reader import Trace
from moeprof.trace.schema import PHASES
from moeprof.units import format_size

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
    text = f"A budget of {format_size(settings.budget_bytes)} is {cells} of {shape.num_cells} cells"
    if len(set(shape.expert_bytes)) > 1:
        text += " of the mean size; experts differ in size, so a hot set may be smaller or larger"
    yield f"{text}."


def notes_on_samples(cells: CellCounts, samples: Sequence[Sample]) -> Iterator[str]:
    """Phases that were added or are absent, and samples with too few documents."""
    if any(sample.phase == BOTH_PHASES for sample in samples):
        yield "Prefill and decode are added in every number, as asked for with --phase all."
    for phase in {sample.phase: None for sample in samples}:
        found = [sample for sample in samples if sample.phase == phase]
        yield from _notes_on_few_documents(phase, found)
    phases = {sample.phase for sample in samples}
    for phase in PHASES:
        absent = not cells.counts[:, PHASES.index(phase)].any()
        if absent and phase not in phases and samples[0].settings.phase is None:
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
