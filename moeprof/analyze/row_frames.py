"""Data frames of what only rows say: locality, prediction, co-activation, drift in a document."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeprof.analyze.coactivation import PairCounts
from moeprof.analyze.drift import PLACES, PlaceCounts, place_differences
from moeprof.analyze.frames import with_interval
from moeprof.analyze.locality import (
    MAX_LAG,
    LocalityCounts,
    lru_hits,
    reuse_quantiles,
    unrelated_overlap,
)
from moeprof.analyze.prediction import CANDIDATES, popularity_hits
from moeprof.analyze.sample import Sample

_QUANTILES = (0.5, 0.8, 0.95)


def lag_frame(sample: Sample, counts: LocalityCounts) -> pd.DataFrame:
    """Rows of `Analysis.lag_overlap`."""
    shared, held = counts.shared[sample.groups], counts.held[sample.groups]
    shape = sample.shape
    head = {
        "domain": sample.domain,
        "phase": sample.phase,
        "lag": np.arange(1, MAX_LAG + 1),
    }
    overlap = sample.ratio(shared.sum(axis=1), held.sum(axis=1))
    rest = {
        "uniform": shape.top_k / shape.num_experts,
        "unrelated": unrelated_overlap(sample.counts, shape.top_k),
    }
    frame = pd.DataFrame(head | with_interval("overlap", overlap) | rest)
    return frame[frame["overlap"].notna()].reset_index(drop=True)


def lru_frame(sample: Sample, counts: LocalityCounts) -> pd.DataFrame:
    """Rows of `Analysis.lru`."""
    shape = sample.shape
    reuses = counts.reuses[sample.groups].sum(axis=1)
    hits = lru_hits(reuses)[:, shape.top_k - 1 :]
    lookups = np.broadcast_to(reuses.sum(axis=1)[:, None], hits.shape)
    experts = np.arange(shape.top_k, shape.num_experts + 1)
    head = {
        "domain": sample.domain,
        "phase": sample.phase,
        "experts": experts,
        "share": experts / shape.num_experts,
        "bytes": experts * sum(shape.expert_bytes),
    }
    return pd.DataFrame(head | with_interval("hit_rate", sample.ratio(hits, lookups)))


def locality_layer_frame(sample: Sample, counts: LocalityCounts) -> pd.DataFrame:
    """Rows of `Analysis.locality_layers`."""
    shared, held = (of[sample.groups][..., 0] for of in (counts.shared, counts.held))
    reuses = counts.reuses[sample.groups].sum(axis=0)
    head = {"domain": sample.domain, "phase": sample.phase, "layer": sample.shape.moe_layers}
    quantiles = reuse_quantiles(reuses, _QUANTILES)
    expert_bytes = np.asarray(sample.shape.expert_bytes)
    rest: dict[str, NDArray[np.float64]] = {}
    for index, quantile in enumerate(_QUANTILES):
        name = f"reuse_{quantile * 100:.0f}"
        rest[name] = quantiles[:, index]
        rest[f"{name}_bytes"] = quantiles[:, index] * expert_bytes
    with np.errstate(invalid="ignore"):  # 0 / 0: nothing looked up
        rest["first_uses"] = reuses[:, -1] / reuses.sum(axis=1)
    overlap = with_interval("overlap", sample.ratio(shared, held))
    return pd.DataFrame(head | overlap | rest)


def prediction_frame(sample: Sample, ranks: NDArray[np.int64]) -> pd.DataFrame:
    """Rows of `Analysis.prediction`; none without training documents.

    Args:
        sample: the sample.
        ranks: [G, L, E] int64, as in `NextLayerRanks`.
    """
    if sample.num_groups < 2 or sample.shape.num_moe_layers < 2:
        return pd.DataFrame()
    sizes = _candidates(sample)
    found = np.cumsum(ranks[:, 1:].sum(axis=1), axis=1)  # [G, E]
    popular = popularity_hits(sample, sizes)[:, 1:].sum(axis=1)
    total = np.repeat(found[:, -1:], len(sizes), axis=1)
    every = np.repeat(sample.counts[:, 1:].sum(axis=(1, 2))[:, None], len(sizes), axis=1)
    head = {"domain": sample.domain, "phase": sample.phase, "candidates": sizes}
    hits = found[:, sizes - 1]
    return pd.DataFrame(
        head
        | with_interval("recall", sample.ratio(hits, total))
        | with_interval("popularity", sample.ratio(popular, every))
        | with_interval("gain", sample.ratio(hits - popular, total, (-1.0, 1.0)))
    )


def prediction_layer_frame(sample: Sample, ranks: NDArray[np.int64]) -> pd.DataFrame:
    """Rows of `Analysis.prediction_layers`: recall of the best top-k candidates."""
    if sample.num_groups < 2 or sample.shape.num_moe_layers < 2:
        return pd.DataFrame()
    top_k = sample.shape.top_k
    hits, total = ranks[:, 1:, :top_k].sum(axis=2), ranks[:, 1:].sum(axis=2)
    popular = popularity_hits(sample, np.array([top_k]))[:, 1:, 0]
    head = {
        "domain": sample.domain,
        "phase": sample.phase,
        "layer": sample.shape.moe_layers[1:],
        "candidates": top_k,
    }
    return pd.DataFrame(
        head
        | with_interval("recall", sample.ratio(hits, total))
        | with_interval("popularity", sample.ratio(popular, sample.counts[:, 1:].sum(axis=2)))
    )


def _candidates(sample: Sample) -> NDArray[np.int64]:
    """Numbers of candidates: multiples of top-k below the number of experts."""
    sizes = [m * sample.shape.top_k for m in CANDIDATES]
    return np.array([m for m in sizes if m < sample.shape.num_experts] or sizes[:1])


def coactivation_frame(sample: Sample, counts: PairCounts, index: int) -> pd.DataFrame:
    """Rows of `Analysis.coactivation`: each layer, then all layers together as layer None."""
    shape = sample.shape
    columns: dict[str, NDArray[np.float64]] = {}
    for name in ("in_sample", "held_out"):
        found = getattr(counts, name)[index]
        both = np.concatenate([found, found.sum(axis=1, keepdims=True)], axis=1)
        lift = sample.ratio(both[..., 0], both[..., 1], (0.0, np.inf))
        columns |= with_interval(name, lift)
    head = {
        "domain": sample.domain,
        "phase": sample.phase,
        "layer": pd.array([*shape.moe_layers, None], dtype="Int64"),
    }
    return pd.DataFrame(head | columns)


def pair_frame(sample: Sample, counts: PairCounts, index: int) -> pd.DataFrame:
    """Rows of `Analysis.pairs`."""
    layers = sample.shape.moe_layers
    rows = [
        (sample.domain, sample.phase, layers[pair.row], *pair.experts, pair.together, pair.expected)
        for pairs in counts.named[index]
        for pair in pairs
    ]
    columns = ["domain", "phase", "layer", "expert", "other", "together", "expected"]
    return pd.DataFrame(rows, columns=columns)


def place_drift_frame(sample: Sample, counts: PlaceCounts, index: int) -> pd.DataFrame:
    """Rows of `Analysis.place_drift`; none without training documents."""
    if sample.num_groups < 2:
        return pd.DataFrame()
    served, total = (part[index].sum(axis=1) for part in (counts.served, counts.total))
    reached = total.sum(axis=0) > 0
    last = [*(place - 1 for place in PLACES[1:]), None]
    differences = place_differences(served, total)
    head = {
        "domain": sample.domain,
        "phase": sample.phase,
        "first": np.array(PLACES),
        "last": pd.array(last, dtype="Int64"),
        "assignments": total.sum(axis=0),
    }
    frame = pd.DataFrame(
        head
        | with_interval("coverage", sample.ratio(served, total))
        | with_interval("difference", sample.ratio(differences, total, (-1.0, 1.0)))
    )
    kept: pd.DataFrame = frame[reached].reset_index(drop=True)
    return kept
