"""Two traces, or a placement and a trace: does what was learned on one hold on the other?"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeprof.analyze import intervals
from moeprof.analyze.coverage import share_of
from moeprof.analyze.exchange import divergence, exchange_test
from moeprof.analyze.hot_sets import cell_bytes, hot_set_size
from moeprof.analyze.notes import notes_on_comparison, notes_on_placement
from moeprof.analyze.overlap import hot_cells, resampled_hot_cells
from moeprof.analyze.sample import Sample
from moeprof.analyze.settings import AnalysisSettings
from moeprof.errors import TraceError
from moeprof.placement import Placement, Tier
from moeprof.trace import PHASES, CellCounts, Trace

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval over documents; NaN is what cannot be said."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PhaseComparison:
    """The comparison in one phase; *second* is the trace that was scored.

    Attributes:
        phase: `prefill`, `decode` or `all`.
        documents: document groups of the first and of the second; the first is 0 for a placement.
        cells: cells in a hot set.
        coverage: of the second by the set of the first, chosen on all of the first's documents;
            and by its own, held out fold by fold, since its documents are both chosen on and
            scored. Of two traces also the first by both. Keys are `first_on_second` and the like.
        retained: `first_on_second` over `second_on_second`: what is left of the coverage that a
            set made for the second would have. Above 1 where a set of the whole first is better
            than one of the second's training folds.
        kept: [n, 2] int64, (layer, expert) of cells hot in both.
        left: [n, 2] int64, cells hot in the first only.
        entered: [n, 2] int64, cells hot in the second only.
        p_value: of the documents being exchangeable; NaN where that cannot be tested.
        smallest_p: the least that so few documents can give; NaN likewise.
        layers: layer, distance (square root of the Jensen-Shannon divergence in bits, in [0, 1]),
            distance_by_chance, p_value (adjusted for all layers), jaccard.
    """

    phase: str
    documents: tuple[int, int]
    cells: int
    coverage: dict[str, Interval]
    retained: Interval
    kept: NDArray[np.int64]
    left: NDArray[np.int64]
    entered: NDArray[np.int64]
    p_value: float
    smallest_p: float
    layers: pd.DataFrame

    @property
    def jaccard(self) -> float:
        """Cells hot in both over cells hot in either."""
        return len(self.kept) / (len(self.kept) + len(self.left) + len(self.entered))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two traces, or a placement and a trace, have in common.

    Attributes:
        first: name of the trace or placement that comes first.
        second: name of the trace that is scored.
        is_placement: whether the first is a placement.
        settings: share, folds, resamples and seed.
        permutations: splits behind the p-values.
        phases: one entry for each phase that both have.
        notes: sentences on what could not be computed or needs care.
    """

    first: str
    second: str
    is_placement: bool
    settings: AnalysisSettings
    permutations: int
    phases: tuple[PhaseComparison, ...]
    notes: tuple[str, ...]

    @property
    def least_retained(self) -> float:
        """The least share of coverage that is retained in any phase; NaN where none can be said."""
        shares = [one.retained.value for one in self.phases if np.isfinite(one.retained.value)]
        return min(shares, default=float("nan"))

    def to_json(self) -> str:
        """One JSON document; NaN is null."""
        document = {
            "format": "moeprof-comparison",
            "format_version": FORMAT_VERSION,
            "first": {"name": self.first, "kind": "placement" if self.is_placement else "trace"},
            "second": {"name": self.second, "kind": "trace"},
            "settings": asdict(self.settings) | {"permutations": self.permutations},
            "least_retained": self.least_retained,
            "phases": [_document(one) for one in self.phases],
            "notes": list(self.notes),
        }
        return json.dumps(_without_nan(document), allow_nan=False, ensure_ascii=False)


def compare_traces(
    first: Trace, second: Trace, settings: AnalysisSettings, permutations: int = 999
) -> Comparison:
    """What is learned on one trace, scored on another.

    The set that is scored on a trace has seen none of its documents: that of the other trace is
    chosen on the whole of the other, as a plan is; its own is held out, fold by fold. Intervals
    draw the documents of both traces anew and choose on those that were drawn.

    Args:
        first: where hot sets are chosen.
        second: where they are scored.
        settings: domain and phase (None for all documents, and for each phase that both have),
            share of cells in a hot set, folds, resamples and seed.
        permutations: random splits of the documents behind the p-values.

    Raises:
        TraceError: the traces are of models of other shapes, or have no phase in common.
    """
    cells = _joint(first, second, settings.domain)
    plain = replace(settings, domain=None)
    phases = []
    for phase in _phases(settings.phase):
        samples = [Sample(cells, name, phase, plain) for name in cells.domains]
        if all(sample.num_groups for sample in samples):
            phases.append(_compare(samples[0], samples[1], permutations))
    if not phases:
        raise TraceError(
            f"{first.path} and {second.path}: no phase with assignments in both",
            "compare traces that were made alike, or name another --phase",
        )
    names = _names(first.name, second.name)
    notes = notes_on_comparison((first, second), names, phases)
    return Comparison(*names, False, settings, permutations, tuple(phases), tuple(notes))


def compare_placement(
    name: str, placement: Placement, trace: Trace, settings: AnalysisSettings
) -> Comparison:
    """What a placement's experts in VRAM serve of a trace, beside as many chosen on the trace.

    Args:
        name: of the placement.
        placement: whose experts in VRAM are the hot set.
        trace: what it is scored on.
        settings: as of `compare_traces`; the share follows from the placement.

    Raises:
        TraceError: the trace is of a model of another shape, has no assignments in the phase, or
            the placement keeps nothing in VRAM.
    """
    hot = placement.tier_of == Tier.VRAM
    shape = trace.shape
    if (placement.model.moe_layers, placement.model.num_experts) != (
        shape.moe_layers,
        shape.num_experts,
    ):
        raise TraceError(
            f"{trace.path}: has other layers or experts than the model of placement {name}",
            "compare a placement and a trace of one model",
        )
    if not hot.any():
        raise TraceError(f"{name}: keeps no expert in VRAM", "plan with a larger --vram")
    plain = replace(settings, domain=None, share=float(hot.mean()))
    cells = _selected(trace, settings.domain)
    joint = CellCounts(shape, ("second",), np.zeros(len(cells), np.int64), cells)
    phases = []
    for phase in _phases(settings.phase):
        sample = Sample(joint, "second", phase, plain)
        if sample.num_groups:
            phases.append(_score(hot.reshape(-1), sample))
    if not phases:
        raise TraceError(
            f"{trace.path}: no assignments to score", "name another --phase or --domain"
        )
    notes = notes_on_placement(placement, trace, phases)
    return Comparison(*_names(name, trace.name), True, plain, 0, tuple(phases), tuple(notes))


def _names(first: str, second: str) -> tuple[str, str]:
    """What the two are called: their own names, told apart where those are the same."""
    return (first, second) if first != second else (f"{first} (A)", f"{second} (B)")


def _phases(phase: str | None) -> Sequence[str]:
    return PHASES if phase is None else (phase,)


def _selected(trace: Trace, domain: str | None) -> NDArray[np.int64]:
    """[G, 2, L, E] int64: counts of the document groups of a domain, or of all."""
    cells = trace.cell_counts()
    if domain is None:
        return cells.counts
    if domain not in cells.domains:
        raise TraceError(
            f"{trace.path}: no domain {domain!r}", f"its domains are {', '.join(cells.domains)}"
        )
    chosen: NDArray[np.int64] = cells.counts[cells.group_domain == cells.domains.index(domain)]
    return chosen


def _joint(first: Trace, second: Trace, domain: str | None) -> CellCounts:
    """The counts of both, as two domains."""
    ours, theirs = first.shape, second.shape
    if (ours.moe_layers, ours.num_experts) != (theirs.moe_layers, theirs.num_experts):
        raise TraceError(
            f"{first.path} has {ours.num_moe_layers} MoE layers of {ours.num_experts} experts, "
            f"{second.path} {theirs.num_moe_layers} of {theirs.num_experts}, or other layers",
            "compare traces of one model",
        )
    parts = [_selected(trace, domain) for trace in (first, second)]
    group_domain = np.repeat([0, 1], [len(part) for part in parts])
    return CellCounts(ours, ("first", "second"), group_domain, np.concatenate(parts))


def _compare(first: Sample, second: Sample, permutations: int) -> PhaseComparison:
    on_second, resampled = _on_other(first, second)
    on_first, _ = _on_other(second, first)
    coverage = {
        "first_on_first": _on_itself(first),
        "first_on_second": on_second,
        "second_on_first": on_first,
        "second_on_second": _on_itself(second),
    }
    counts = np.concatenate([first.counts, second.counts])
    is_second = np.repeat([False, True], [first.num_groups, second.num_groups])
    rng = np.random.default_rng([first.settings.seed, *map(ord, first.phase)])
    test = exchange_test(counts, is_second, permutations, rng)
    pooled = first.counts.sum(axis=0), second.counts.sum(axis=0)
    hot = hot_cells(first), hot_cells(second)
    layers = _layer_frame(first, hot)
    layers.insert(1, "distance", np.sqrt(divergence(*pooled)))
    layers.insert(2, "distance_by_chance", np.nan)
    layers.insert(3, "p_value", np.nan)
    if test is not None:
        layers["distance_by_chance"] = np.sqrt(test.chance_divergence)
        layers["p_value"] = test.layer_p
    return PhaseComparison(
        phase=first.phase,
        documents=(first.num_groups, second.num_groups),
        cells=int(hot[0].sum()),
        coverage=coverage,
        retained=_retained(coverage, resampled, second, min(first.degrees, second.degrees)),
        kept=_cells(hot[0] & hot[1], first),
        left=_cells(hot[0] & ~hot[1], first),
        entered=_cells(hot[1] & ~hot[0], first),
        p_value=float("nan") if test is None else test.p_value,
        smallest_p=float("nan") if test is None else test.smallest_p,
        layers=layers,
    )


def _score(hot: NDArray[np.bool_], sample: Sample) -> PhaseComparison:
    """A fixed set of cells [num_cells] on a trace."""
    on_second, resampled = _served(hot, hot[None].astype(np.float32), sample, sample.degrees)
    coverage = {"first_on_second": on_second, "second_on_second": _on_itself(sample)}
    mine = hot_cells(sample)
    return PhaseComparison(
        phase=sample.phase,
        documents=(0, sample.num_groups),
        cells=int(hot.sum()),
        coverage=coverage,
        retained=_retained(coverage, resampled, sample, sample.degrees),
        kept=_cells(hot & mine, sample),
        left=_cells(hot & ~mine, sample),
        entered=_cells(mine & ~hot, sample),
        p_value=float("nan"),
        smallest_p=float("nan"),
        layers=_layer_frame(sample, (hot, mine)),
    )


def _on_itself(sample: Sample) -> Interval:
    """Coverage of a trace by its own hot sets, held out."""
    at = sample.curve_shares.index(sample.settings.share)
    return Interval(*sample.curve.held_out[:, 0, at].tolist())


def _on_other(chosen: Sample, scored: Sample) -> tuple[Interval, NDArray[np.float64]]:
    """Coverage of a trace by the hot set of another, whole one, and in every resample of both."""
    degrees = min(chosen.degrees, scored.degrees)
    return _served(hot_cells(chosen), resampled_hot_cells(chosen), scored, degrees)


def _served(
    hot: NDArray[np.bool_], redrawn: NDArray[np.float32], sample: Sample, degrees: int
) -> tuple[Interval, NDArray[np.float64]]:
    """Coverage of a trace by a set of cells, and in every resample.

    Args:
        hot: [num_cells], the set.
        redrawn: [R, num_cells], the set in every resample, or [1, num_cells] for one that stays.
        sample: the trace's documents and their R resamples.
        degrees: of freedom of the interval.
    """
    flat = sample.counts.reshape(sample.num_groups, -1)
    total = flat.sum(axis=1)
    served = (sample.weights * (flat @ redrawn.T).T).sum(axis=1)
    resampled = share_of(served[:, None], sample.weights @ total)
    estimate = share_of((flat @ hot).sum(keepdims=True).astype(np.float64), total.sum())
    found = intervals.interval(estimate, resampled, degrees)[:, 0]
    return Interval(*found.tolist()), resampled[:, 0]


def _retained(
    coverage: dict[str, Interval], resampled: NDArray[np.float64], second: Sample, degrees: int
) -> Interval:
    """The ratio with its interval; numerator and denominator share the resamples."""
    value, own = coverage["first_on_second"].value, coverage["second_on_second"].value
    if not own > 0:
        return Interval(*[float("nan")] * 3)
    shape = second.shape
    bytes_of = cell_bytes(shape.expert_bytes, shape.num_experts).reshape(1, -1)
    sizes = np.array([hot_set_size(second.settings.share, shape.num_cells)])
    counts = second.counts.reshape(second.num_groups, 1, -1)
    drawn = intervals.resampled_held_out(second.weights, counts, bytes_of, second.fold, sizes)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample that serves nothing
        ratios = resampled / drawn[:, 0, 0]
    ratio = np.array(value / own)
    return Interval(*intervals.interval(ratio, ratios, degrees, (0.0, np.inf)).tolist())


def _layer_frame(sample: Sample, hot: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> pd.DataFrame:
    ours, theirs = (one.reshape(sample.shape.num_moe_layers, -1) for one in hot)
    with np.errstate(invalid="ignore"):  # 0 / 0: no hot cell in the layer
        shared = (ours & theirs).sum(axis=1) / (ours | theirs).sum(axis=1)
    return pd.DataFrame({"layer": sample.shape.moe_layers, "jaccard": shared})


def _cells(hot: NDArray[np.bool_], sample: Sample) -> NDArray[np.int64]:
    """[n, 2] int64: checkpoint layer and expert of the cells."""
    row, expert = np.divmod(np.flatnonzero(hot), sample.shape.num_experts)
    return np.stack([np.asarray(sample.shape.moe_layers)[row], expert], axis=1)


def _document(one: PhaseComparison) -> dict[str, Any]:
    return {
        "phase": one.phase,
        "documents": list(one.documents),
        "cells": one.cells,
        "coverage": {name: asdict(value) for name, value in one.coverage.items()},
        "retained": asdict(one.retained),
        "hot_sets": {
            "jaccard": one.jaccard,
            "kept": one.kept.tolist(),
            "left": one.left.tolist(),
            "entered": one.entered.tolist(),
        },
        "p_value": one.p_value,
        "smallest_p": one.smallest_p,
        "layers": one.layers.to_dict(orient="records"),
    }


def _without_nan(value: Any) -> Any:  # noqa: ANN401
    """The same JSON value with floats to six decimals and null for NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 6)
    return value
