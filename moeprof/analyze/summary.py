"""The whole analysis of a trace, as data frames and as one JSON document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from moeprof.analyze import frames
from moeprof.analyze.document import to_json
from moeprof.analyze.notes import notes_on_origin, notes_on_samples
from moeprof.analyze.sample import Sample
from moeprof.analyze.settings import OVERALL, SHARES, AnalysisSettings
from moeprof.errors import TraceError
from moeprof.model_shape import ModelShape
from moeprof.trace.counts import CellCounts
from moeprof.trace.reader import Trace
from moeprof.trace.schema import PHASES


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a trace says about its hot sets; shares and coverages are in [0, 1].

    Columns `x_low` and `x_high` beside a column `x` are the ends of a 95 % interval over documents
    (of the floor: over simulations). NaN is what cannot be said, and `notes` says why. A frame of
    a section that was not asked for, or cannot be computed, is empty.

    Attributes:
        name: of the trace; empty when it was made from counts alone.
        shape: the model's numbers.
        settings: what was asked for.
        samples: one row per domain and phase: domain, phase, document_groups, folds, assignments.
        coverage: domain, phase, share, cells and the three coverages, for every share of
            `SHARES` and for `settings.share`; hot sets over the whole model.
        curve: the same for shares close together, to draw.
        layers: domain, phase, layer, share, experts and the three coverages of a hot set of
            `settings.share` chosen in that layer.
        hot_sets: domain, phase, rank, layer, expert, assignments: the hot set of
            `settings.share`, chosen on all documents, most benefit per byte first.
        jaccard: phase, domain, other, jaccard.
        transfer: phase, trained_on, scored_on, coverage.
        concentration: domain, phase, used, cells_50, cells_80, cells_90, cells_95: share of the
            model's cells that were ever chosen, and that carry 50 % ... of the assignments.
        skew: domain, phase, layer, gini, entropy, each with its `_floor` (the mean under even
            routing at the same number of assignments), used, experts_50 ... experts_95.
        notes: sentences on what could not be computed or needs care.
    """

    name: str
    shape: ModelShape
    settings: AnalysisSettings
    samples: pd.DataFrame
    coverage: pd.DataFrame
    curve: pd.DataFrame
    layers: pd.DataFrame
    hot_sets: pd.DataFrame
    jaccard: pd.DataFrame
    transfer: pd.DataFrame
    concentration: pd.DataFrame
    skew: pd.DataFrame
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON document, as `analysis.schema.json` describes it; NaN is null."""
        return to_json(self)


def analyze(trace: Trace | CellCounts, settings: AnalysisSettings | None = None) -> Analysis:
    """Everything that a trace says about where its assignments fall.

    Args:
        trace: an open trace, or its counts.
        settings: what to analyse; the defaults if None.

    Returns:
        Data frames for every domain with assignments, and for all of them together, by phase.

    Raises:
        TraceError: the trace has no assignment, or none in the domain or phase asked for.
    """
    settings = settings or AnalysisSettings()
    name = trace.name if isinstance(trace, Trace) else ""
    cells = trace.cell_counts() if isinstance(trace, Trace) else trace
    samples = _samples(cells, settings, name)
    curve = _stacked(frames.curve_frame, samples)
    index, moved = frames.overlap_frames(samples)
    return Analysis(
        name=name,
        shape=cells.shape,
        settings=settings,
        samples=frames.sample_frame(samples),
        coverage=curve[curve["share"].isin({*SHARES, settings.share})].reset_index(drop=True),
        curve=curve,
        layers=_stacked(frames.layer_frame, samples),
        hot_sets=_stacked(frames.hot_set_frame, samples),
        jaccard=index,
        transfer=moved,
        concentration=frames.concentration_frame(samples),
        skew=_stacked(frames.skew_frame, samples),
        notes=(*notes_on_origin(trace), *notes_on_samples(cells, samples)),
    )


def _stacked(frame: Callable[[Sample], pd.DataFrame], samples: Sequence[Sample]) -> pd.DataFrame:
    return pd.concat([frame(sample) for sample in samples], ignore_index=True)


def _samples(cells: CellCounts, settings: AnalysisSettings, name: str) -> list[Sample]:
    """Everything to analyse, phase by phase, all domains together first."""
    where = f"trace {name}" if name else "trace"
    if not cells.counts.any():
        raise TraceError(f"{where}: no assignments were recorded", "trace at least one document")
    if settings.domain is not None and settings.domain not in cells.domains:
        known = ", ".join(cells.domains)
        raise TraceError(f"{where}: no domain {settings.domain!r}", f"its domains are {known}")
    domains = list(cells.domains) if settings.domain is None else [settings.domain]
    phases = PHASES if settings.phase is None else (settings.phase,)
    samples = []
    for phase in phases:
        every = [Sample(cells, domain, phase, settings) for domain in domains]
        found = [sample for sample in every if sample.num_groups > 0]
        if len(found) > 1:
            samples.append(Sample(cells, OVERALL, phase, settings))
        samples += found
    if not samples:
        wanted = "" if settings.domain is None else f" in domain {settings.domain}"
        raise TraceError(
            f"{where}: no {settings.phase or ''} assignments{wanted}".replace("  ", " "),
            "decode is recorded with: moeprof trace --generate N"
            if settings.phase == "decode"
            else "ask for another domain or phase",
        )
    return samples
