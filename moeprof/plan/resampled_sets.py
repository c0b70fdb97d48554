"""Hits of hot sets that are chosen anew in every resample of the documents.

Intervals that keep the sets as they are would be too narrow, since the folds share most of the
documents that their sets are chosen on; `moeprof.analyze.intervals` says more.
"""

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import best_first
from moeprof.plan.evaluation import Split

_CHUNK_BYTES = 64 << 20  # of resampled counts held at once


def resampled_hits(
    training: NDArray[np.int64],
    scored: NDArray[np.int64],
    bytes_of: NDArray[np.int64],
    split: Split,
) -> NDArray[np.float32]:
    """Held-out hits in every resample, for hot sets of every size.

    Args:
        training: [G, C] int64, assignments to choose cells by.
        scored: [G, P, C] int64, assignments to score.
        bytes_of: [C] int64, bytes of each cell.
        split: folds and R resamples.

    Returns:
        [R, P, C + 1] float32, hits of the 0, 1, ... C cells of the most benefit per byte; NaN, but
        for no and all cells, where a resample left a fold to score nothing to choose on.
    """
    num_resamples, (_, phases, cells) = len(split.weights), scored.shape
    hits = np.zeros((num_resamples, phases, cells + 1), np.float32)
    chunk = max(1, _CHUNK_BYTES // (8 * cells * (phases + 1)))
    flat_training = training.astype(np.float64)
    flat_scored = scored.reshape(len(scored), -1).astype(np.float64)
    for start in range(0, num_resamples, chunk):
        weights = split.weights[start : start + chunk]
        for fold in range(split.num_folds):
            inside = split.fold == fold
            by = weights[:, ~inside] @ flat_training[~inside]
            on = (weights[:, inside] @ flat_scored[inside]).reshape(-1, phases, cells)
            untrained = ~by.any(axis=1) & on.any(axis=(1, 2))
            order = best_first(by[:, None], bytes_of[None], stable=False)
            ordered = np.take_along_axis(on, order, axis=2)
            of_chunk = hits[start : start + chunk]
            of_chunk[:, :, 1:] += np.cumsum(ordered, axis=2)
            of_chunk[untrained, :, 1:-1] = np.nan
    return hits
