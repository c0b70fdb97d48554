"""The whole analysis of a trace, as data frames and as one JSON document."""

from dataclasses import dataclass, field, replace

import pandas as pd

from moeprof.analyze import frames
from moeprof.analyze.document import to_json
from moeprof.analyze.gathering import gather
from moeprof.analyze.hot_sets import budget_share
from moeprof.analyze.notes import notes_on_budget, notes_on_origin, notes_on_samples
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
        samples: one row per domain and phase: domain, phase, document_groups, folds, tokens,
            assignments.
        coverage: domain, phase, share, cells and the three coverages, for every share of
            `SHARES` and for `settings.share`; hot sets over the whole model.
        curve: the same for shares close together, to draw.
        layers: domain, phase, layer, share, experts and the three coverages of a hot set of
            `settings.share` chosen in that layer.
        hot_sets: domain, phase, rank, layer, expert, assignments: the hot set of
            `settings.share`, chosen on all documents, most benefit per byte first.
        jaccard: phase, domain, other, jaccard.
        transfer: phase, trained_on, scored_on, coverage.
        merging: phase, domain, specialist, merged, loss: held-out coverage of a set of the domain's
            own and of one set for all domains, on the same documents, and the difference.
        concentration: domain, phase, used, cells_50, cells_80, cells_90, cells_95: share of the
            model's cells that were ever chosen, and that carry 50 % ... of the assignments.
        skew: domain, phase, layer, gini, entropy, each with its `_floor` (the mean under even
            routing at the same number of assignments), used, experts_50 ... experts_95.
        lag_overlap: domain, phase, lag, overlap, uniform, unrelated: share of a token's experts
            that the token `lag` places later chooses, too; what even routing would give, and
            tokens of different documents.
        lru: domain, phase, experts, share, bytes, hit_rate: of a cache of so many experts in each
            layer that evicts the least recently used, tokens taken one at a time, empty at the
            beginning of each document.
        locality_layers: domain, phase, layer, overlap (at lag 1), reuse_50, reuse_80, reuse_95
            (quantiles of the reuse distance in distinct other experts) and the same in `_bytes`,
            first_uses (share of the lookups that are the first in their document).
        prediction: domain, phase, candidates, recall, popularity, gain: share of the next layer's
            experts among as many candidates, told from this layer's experts and from popularity,
            both learned on other documents, and the difference.
        prediction_layers: the same for top-k candidates by layer, which is the layer predicted.
        coactivation: domain, phase, layer, in_sample, held_out: how much more often than by
            chance the pairs that stand out most are chosen together, on the documents that they
            were found on and on others; layer is missing in the row of all layers.
        pairs: domain, phase, layer, expert, other, together, expected: the pairs that stand out
            most in each layer, tokens that chose both and would by chance.
        place_drift: domain, phase, first, last, assignments, coverage, difference: held-out
            coverage at places in a document, and its distance from that of the same documents
            everywhere; places count from the document's first token in that phase.
        trace_drift: domain, phase, part, parts, coverage, shuffled, p_value: coverage of the hot
            set of the first part of the documents on a later part, and the mean over shuffled
            documents with the middle 95 %; `p_value` is that of a fall with distance in time.
        learning: domain, phase, documents, coverage, jaccard: held-out coverage of a hot set
            chosen on fewer documents, and how alike two such sets are.
        sufficiency: domain, phase, documents, tokens, enough, half_width (of the interval of
            held-out coverage), loss (what the set lacks for want of text), jaccard (of sets
            chosen on two halves), more_documents, more_tokens (needed for `settings.tolerance`).
        notes: sentences on what could not be computed or needs care.
    """

    name: str
    shape: ModelShape
    settings: AnalysisSettings
    samples: pd.DataFrame
    coverage: pd.DataFrame = field(default_factory=pd.DataFrame)
    curve: pd.DataFrame = field(default_factory=pd.DataFrame)
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    hot_sets: pd.DataFrame = field(default_factory=pd.DataFrame)
    jaccard: pd.DataFrame = field(default_factory=pd.DataFrame)
    transfer: pd.DataFrame = field(default_factory=pd.DataFrame)
    merging: pd.DataFrame = field(default_factory=pd.DataFrame)
    concentration: pd.DataFrame = field(default_factory=pd.DataFrame)
    skew: pd.DataFrame = field(default_factory=pd.DataFrame)
    lag_overlap: pd.DataFrame = field(default_factory=pd.DataFrame)
    lru: pd.DataFrame = field(default_factory=pd.DataFrame)
    locality_layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    prediction: pd.DataFrame = field(default_factory=pd.DataFrame)
    prediction_layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    coactivation: pd.DataFrame = field(default_factory=pd.DataFrame)
    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
    place_drift: pd.DataFrame = field(default_factory=pd.DataFrame)
    trace_drift: pd.DataFrame = field(default_factory=pd.DataFrame)
    learning: pd.DataFrame = field(default_factory=pd.DataFrame)
    sufficiency: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One JSON document, as `analysis.schema.json` describes it; NaN is null."""
        return to_json(self)


def analyze(trace: Trace | CellCounts, settings: AnalysisSettings | None = None) -> Analysis:
    """Everything that a trace says about where its assignments fall.

    Args:
        trace: an open trace, or its counts; without rows there are only the statistics that
            counts support.
        settings: what to analyse; the defaults if None.

    Returns:
        Data frames for every domain with assignments, and for all of them together, by phase.

    Raises:
        TraceError: the trace has no assignment, or none in the domain or phase asked for, or a
            budget is asked for and it does not say how large experts are.
        CapacityError: the budget holds no expert.
    """
    settings = settings or AnalysisSettings()
    name = trace.name if isinstance(trace, Trace) else ""
    unsaid = trace.metadata.missing if isinstance(trace, Trace) else ()
    cells = trace.cell_counts() if isinstance(trace, Trace) else trace
    if settings.budget_bytes is not None:
        if isinstance(trace, Trace):
            trace.require("expert_bytes", "what fits into a budget cannot be told")
        shape = cells.shape
        share = budget_share(settings.budget_bytes, shape.expert_bytes, shape.num_experts)
        settings = replace(settings, share=share)
    samples = _samples(cells, settings, name)
    made = gather(samples, cells.domains, trace if isinstance(trace, Trace) else None)
    if "curve" in made:
        kept = made["curve"]["share"].isin({*SHARES, settings.share})
        made["coverage"] = made["curve"][kept].reset_index(drop=True)
    return Analysis(
        name=name,
        shape=cells.shape,
        settings=settings,
        samples=frames.sample_frame(samples),
        notes=(
            *notes_on_origin(trace, settings),
            *notes_on_budget(settings, cells.shape),
            *notes_on_samples(cells, samples, unsaid),
        ),
        **made,
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
