"""Computing the frames of an analysis: what counts say, then one pass over the rows."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd

from moeprof.analyze import frames, length_frames, row_frames
from moeprof.analyze.coactivation import PairCounts
from moeprof.analyze.drift import AgeCounts, PlaceCounts
from moeprof.analyze.locality import LocalityCounts
from moeprof.analyze.prediction import NextLayerRanks
from moeprof.analyze.sample import Sample
from moeprof.analyze.walk import (
    PhaseTokens,
    SampleTokens,
    Visitor,
    tokens_of_phase,
    tokens_of_sample,
    visit_layers,
)
from moeprof.native.cores import physical_cores
from moeprof.trace.folds import group_of_sequence
from moeprof.trace.reader import Trace
from moeprof.trace.schema import NUM_DOCUMENT_GROUPS

Frames = dict[str, pd.DataFrame]


def gather(samples: Sequence[Sample], domains: Sequence[str], trace: Trace | None) -> Frames:
    """Every frame of `Analysis` that was asked for and can be computed, by its name.

    Args:
        samples: of every domain and phase to analyse.
        domains: of the trace.
        trace: whose rows are read; None for counts alone.
    """
    has_rows = trace is not None and trace.has_rows
    statistics = _pass_over(trace, samples) if trace is not None and has_rows else {}
    in_order = trace is None or not {"order", "documents"} & set(trace.metadata.missing)

    def of_sample(sample: Sample) -> Frames:
        found = statistics.get(sample.phase)
        made = _count_frames(sample)
        if sample.settings.has("drift") and in_order:
            ages = None if found is None else found.ages
            made["trace_drift"] = length_frames.trace_drift_frame(sample, ages, list(domains))
        if sample.settings.has("sufficiency"):
            documents = None if found is None else found.documents_of(sample)
            made |= length_frames.learning_frames(sample, documents)
        return made if found is None else made | found.frames(sample)

    settings = samples[0].settings
    with ThreadPoolExecutor(len(physical_cores())) as pool:
        made = _stacked(list(pool.map(of_sample, samples)))
        if settings.has("domains"):
            overlap = pool.submit(frames.overlap_frames, samples)
            made["merging"] = pool.submit(frames.merging_frame, samples, domains).result()
            made["jaccard"], made["transfer"] = overlap.result()
    if settings.has("skew"):
        made["concentration"] = frames.concentration_frame(samples)
    return made


def _stacked(made: Sequence[Mapping[str, pd.DataFrame]]) -> Frames:
    """Frames of the same name below each other, those without rows left out."""
    names = dict.fromkeys(name for one in made for name in one)
    return {
        name: frames.stacked([one[name] for one in made if name in one and len(one[name])])
        for name in names
    }


def _count_frames(sample: Sample) -> Frames:
    settings = sample.settings
    made: Frames = {}
    if settings.has("coverage"):
        made["curve"] = frames.curve_frame(sample)
        made["layers"] = frames.layer_frame(sample)
        made["hot_sets"] = frames.hot_set_frame(sample)
    if settings.has("skew"):
        made["skew"] = frames.skew_frame(sample)
    return made


@dataclass(slots=True)
class _PhaseStatistics:
    """What one phase's rows say; None where it was not asked for or cannot be said."""

    tokens: PhaseTokens
    places: list[SampleTokens]
    locality: LocalityCounts | None = None
    prediction: NextLayerRanks | None = None
    coactivation: PairCounts | None = None
    drift: PlaceCounts | None = None
    ages: AgeCounts | None = None

    def visitors(self) -> list[Visitor]:
        wanted = (self.locality, self.prediction, self.coactivation, self.drift, self.ages)
        return [visitor for visitor in wanted if visitor is not None]

    def documents_of(self, sample: Sample) -> int:
        span = self.places[self._index(sample)].span
        start = self.tokens.document_start[:-1]
        return int(((start >= span.start) & (start < span.stop)).sum())

    def frames(self, sample: Sample) -> Frames:
        index, made = self._index(sample), dict[str, pd.DataFrame]()
        if self.locality is not None:
            made["lag_overlap"] = row_frames.lag_frame(sample, self.locality)
            made["lru"] = row_frames.lru_frame(sample, self.locality)
            made["locality_layers"] = row_frames.locality_layer_frame(sample, self.locality)
        if self.prediction is not None:
            ranks = self.prediction.ranks[index]
            made["prediction"] = row_frames.prediction_frame(sample, ranks)
            made["prediction_layers"] = row_frames.prediction_layer_frame(sample, ranks)
        if self.coactivation is not None:
            made["coactivation"] = row_frames.coactivation_frame(sample, self.coactivation, index)
            made["pairs"] = row_frames.pair_frame(sample, self.coactivation, index)
        if self.drift is not None:
            made["place_drift"] = row_frames.place_drift_frame(sample, self.drift, index)
        return made

    def _index(self, sample: Sample) -> int:
        return [place.sample for place in self.places].index(sample)


def _pass_over(trace: Trace, samples: Sequence[Sample]) -> dict[str, _PhaseStatistics]:
    """Read the rows once and gather for each phase what was asked for."""
    settings = samples[0].settings
    tokens, group_of = trace.tokens(settings.domain), group_of_sequence(trace)
    num_groups = int(group_of.max(initial=0)) + 1
    made = {}
    for phase in dict.fromkeys(sample.phase for sample in samples):
        of_phase = tokens_of_phase(trace, tokens, group_of, phase)
        mine = [sample for sample in samples if sample.phase == phase]
        places = [tokens_of_sample(of_phase, sample, trace.domains) for sample in mine]
        made[phase] = _wanted(trace, _PhaseStatistics(of_phase, places), num_groups)
    visits = [(found.tokens, found.visitors()) for found in made.values()]
    if any(visitors for _, visitors in visits):
        visit_layers(trace, settings.domain, visits)
    return made


def _wanted(trace: Trace, found: _PhaseStatistics, num_groups: int) -> _PhaseStatistics:
    """Set up the statistics that were asked for and that the trace can support."""
    settings, shape, tokens = found.places[0].sample.settings, trace.shape, found.tokens
    in_order = "order" not in trace.metadata.missing
    if settings.has("locality") and in_order:
        found.locality = LocalityCounts(tokens, shape, num_groups)
    if settings.has("prediction"):
        found.prediction = NextLayerRanks(found.places)
    if settings.has("coactivation") and shape.top_k > 1:
        found.coactivation = PairCounts(found.places)
    if settings.has("drift") and in_order:
        found.drift = PlaceCounts(tokens, found.places, num_groups)
        if max(domain.documents for domain in trace.metadata.domains) > NUM_DOCUMENT_GROUPS:
            found.ages = AgeCounts(tokens, shape)
    return found
