"""The whole analysis of a trace, as data frames and as one JSON document."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import hot_set, hot_set_size
from moeprof.analyze.overlap import hot_cells, jaccard, transfer
from moeprof.analyze.sample import CoverageLines, Sample
from moeprof.analyze.settings import BOTH_PHASES, OVERALL, SHARES, AnalysisSettings
from moeprof.errors import TraceError
from moeprof.model_shape import ModelShape
from moeprof.trace.counts import CellCounts
from moeprof.trace.origin import UNSAID
from moeprof.trace.reader import Trace
from moeprof.trace.schema import PHASES

FORMAT_VERSION = 1
_INTERVALS = ("", "_low", "_high")


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a trace says about its hot sets; shares and coverages are in [0, 1].

    Columns `in_sample`, `held_out` and `floor` come with `_low` and `_high`, the ends of a 95 %
    interval over documents (of the floor: over simulations). NaN is what cannot be said, and
    `notes` says why.

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
        transfer: phase, trained_on, scored_on, coverage, coverage_low, coverage_high.
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
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON document, as `analysis.schema.json` describes it; NaN is null.

        The curve is left out: it holds the coverage table at more shares.
        """
        model = {
            "model_type": self.shape.model_type,
            "moe_layers": list(self.shape.moe_layers),
            "num_experts": self.shape.num_experts,
            "top_k": self.shape.top_k,
            "expert_bytes": list(self.shape.expert_bytes),
        }
        document: dict[str, Any] = {
            "format": "moeprof-analysis",
            "format_version": FORMAT_VERSION,
            "trace": self.name,
            "model": model,
            "settings": asdict(self.settings),
            "samples": _records(self.samples),
            "coverage": _records(self.coverage),
            "layers": _records(self.layers),
            "hot_sets": list(self._hot_set_documents()),
            "jaccard": _records(self.jaccard),
            "transfer": _records(self.transfer),
            "notes": list(self.notes),
        }
        return json.dumps(document, allow_nan=False, ensure_ascii=False)

    def _hot_set_documents(self) -> Iterator[dict[str, Any]]:
        by_sample = self.hot_sets.groupby(["domain", "phase"], sort=False)
        for (domain, phase), cells in by_sample:
            pairs = cells[["layer", "expert"]].to_numpy().tolist()
            yield {"domain": domain, "phase": phase, "cells": pairs}


def analyze(trace: Trace | CellCounts, settings: AnalysisSettings | None = None) -> Analysis:
    """Coverage, hot sets and overlap of the domains of a trace.

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
    curve = pd.concat([_curve_frame(sample) for sample in samples], ignore_index=True)
    layers = [_layer_frame(sample) for sample in samples]
    chosen = [_hot_set_frame(sample) for sample in samples]
    index, moved = _overlap_frames(samples)
    return Analysis(
        name=name,
        shape=cells.shape,
        settings=settings,
        samples=_sample_frame(samples),
        coverage=curve[curve["share"].isin({*SHARES, settings.share})].reset_index(drop=True),
        curve=curve,
        layers=pd.concat(layers, ignore_index=True),
        hot_sets=pd.concat(chosen, ignore_index=True),
        jaccard=index,
        transfer=moved,
        notes=(*_notes_on_origin(trace), *_notes(cells, samples)),
    )


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


def _curve_frame(sample: Sample) -> pd.DataFrame:
    cells = sample.shape.num_cells
    shares = sample.curve_shares
    head = {
        "domain": sample.domain,
        "phase": sample.phase,
        "share": shares,
        "cells": [hot_set_size(share, cells) for share in shares],
    }
    return pd.DataFrame(head | _line_columns(sample.curve, np.s_[0, :]))


def _layer_frame(sample: Sample) -> pd.DataFrame:
    share = sample.settings.share
    head = {
        "domain": sample.domain,
        "phase": sample.phase,
        "layer": sample.shape.moe_layers,
        "share": share,
        "experts": hot_set_size(share, sample.shape.num_experts),
    }
    return pd.DataFrame(head | _line_columns(sample.layer_coverage(share), np.s_[:, 0]))


def _line_columns(lines: CoverageLines, where: Any) -> dict[str, NDArray[np.float64]]:  # noqa: ANN401
    return {
        f"{name}{ending}": getattr(lines, name)[index][where]
        for name in ("in_sample", "held_out", "floor")
        for index, ending in enumerate(_INTERVALS)
    }


def _hot_set_frame(sample: Sample) -> pd.DataFrame:
    pooled = sample.counts.sum(axis=0)
    row, expert = hot_set(pooled, sample.shape.expert_bytes, sample.settings.share).T
    return pd.DataFrame(
        {
            "domain": sample.domain,
            "phase": sample.phase,
            "rank": np.arange(len(row)),
            "layer": np.asarray(sample.shape.moe_layers)[row],
            "expert": expert,
            "assignments": pooled[row, expert],
        }
    )


def _overlap_frames(samples: list[Sample]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames `Analysis.jaccard` and `Analysis.transfer`; empty with a single domain."""
    indices, moves = [], []
    for phase in (*PHASES, BOTH_PHASES):
        found = [one for one in samples if one.phase == phase and one.domain != OVERALL]
        if len(found) < 2:
            continue
        index = jaccard(np.stack([hot_cells(sample) for sample in found]))
        moved = transfer(found)
        for row, one in enumerate(found):
            for column, other in enumerate(found):
                indices.append((phase, one.domain, other.domain, index[row, column]))
                moves.append((phase, one.domain, other.domain, *moved[:, row, column]))
    ends = [f"coverage{ending}" for ending in _INTERVALS]
    return (
        pd.DataFrame(indices, columns=["phase", "domain", "other", "jaccard"]),
        pd.DataFrame(moves, columns=["phase", "trained_on", "scored_on", *ends]),
    )


def _sample_frame(samples: list[Sample]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "domain": [sample.domain for sample in samples],
            "phase": [sample.phase for sample in samples],
            "document_groups": [sample.num_groups for sample in samples],
            "folds": [sample.num_folds for sample in samples],
            "assignments": [sample.assignments for sample in samples],
        }
    )


def _notes_on_origin(trace: Trace | CellCounts) -> Iterator[str]:
    """What the source of an imported trace does not say and these numbers depend on."""
    origin = trace.metadata.origin if isinstance(trace, Trace) else None
    if origin is None:
        return
    for word in ("phase", "documents", "assignments"):
        if word in origin.missing:
            yield f"Imported from {origin.format}, which does not say {UNSAID[word]}."


def _notes(cells: CellCounts, samples: list[Sample]) -> Iterator[str]:
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


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values: floats to six decimals, NaN as None."""
    columns = {}
    for name in frame.columns:
        values = frame[name].tolist()
        if frame[name].dtype.kind == "f":
            values = [None if np.isnan(value) else round(value, 6) for value in values]
        columns[name] = values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
