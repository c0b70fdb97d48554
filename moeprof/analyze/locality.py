"""How soon experts are used again: what successive tokens share, reuse distances, LRU.

Tokens are taken one at a time, in the order of their document, and never across documents: a cache
begins each document empty.
"""

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.walk import PhaseTokens, RoutedLayer
from moeprof.model_shape import ModelShape
from moeprof.native import NO_EXPERT, lag_overlap, reuse_distances

MAX_LAG = 64


class LocalityCounts:
    """What locality is computed from, gathered layer by layer; additive over documents.

    Attributes:
        shared: [G, L, MAX_LAG] int64, experts that a token and the one `lag` places later both
            chose; G document groups.
        held: [G, L, MAX_LAG] int64, experts of the earlier token of these pairs.
        reuses: [G, L, E + 1] int64, lookups by reuse distance; the last entry counts first uses
            in a document.
    """

    def __init__(self, tokens: PhaseTokens, shape: ModelShape, num_groups: int) -> None:
        self._tokens = tokens
        self._shape = shape
        self._num_groups = num_groups
        rows, num_experts = shape.num_moe_layers, shape.num_experts
        self.shared = np.zeros((num_groups, rows, MAX_LAG), np.int64)
        self.held = np.zeros((num_groups, rows, MAX_LAG), np.int64)
        self.reuses = np.zeros((num_groups, rows, num_experts + 1), np.int64)
        length = np.diff(tokens.document_start)
        self._document = np.repeat(np.arange(len(length)), length)

    def visit(self, layer: RoutedLayer) -> None:
        """Count one layer."""
        tokens, num_experts = self._tokens, self._shape.num_experts
        of_run = tokens.group[tokens.run_start[:-1]]
        groups = self._num_groups
        counted = lag_overlap(layer.experts, tokens.run_start, of_run, groups, num_experts, MAX_LAG)
        self.shared[:, layer.row], self.held[:, layer.row] = counted
        self.reuses[:, layer.row] = self._reuses(layer.experts)

    def _reuses(self, experts: NDArray[np.uint16]) -> NDArray[np.int64]:
        tokens, num_experts = self._tokens, self._shape.num_experts
        chosen = experts != NO_EXPERT
        lookups = chosen.sum(axis=1)
        batch_start = np.concatenate([[0], np.cumsum(lookups)])
        cells = experts[chosen].astype(np.uint32)
        distance = reuse_distances(batch_start, cells, num_experts)
        document = np.repeat(self._document, lookups)
        key = document * num_experts + cells
        first = np.empty((len(tokens.document_start) - 1) * num_experts, np.int64)
        first[key[::-1]] = np.arange(len(key))[::-1]  # the last write, of the first use, stays
        is_first = first[key] == np.arange(len(key))
        width = num_experts + 1
        column = np.where(is_first, num_experts, distance)
        group = np.repeat(tokens.group, lookups).astype(np.int64)
        counts = np.bincount(group * width + column, minlength=self._num_groups * width)
        return counts.reshape(self._num_groups, width)


def lru_hits(reuses: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lookups that a cache of every size would serve, if it evicts the least recently used.

    Args:
        reuses: [..., E + 1], as in `LocalityCounts`.

    Returns:
        [..., E] int64, hits of a cache that holds 1, 2, ..., E experts of the layer.
    """
    hits: NDArray[np.int64] = np.cumsum(reuses[..., :-1], axis=-1)
    return hits


def unrelated_overlap(counts: NDArray[np.int64], top_k: int) -> float:
    """Share of a token's experts that a token of another document chooses, too.

    This is what popular experts alone bring about, without any nearness of the tokens.

    Args:
        counts: [G, L, E] int64, assignments of G document groups.
        top_k: experts of a token.

    Returns:
        Mean over all pairs of tokens of different groups, in all layers; NaN with a single group.
    """
    pooled = counts.sum(axis=0)
    both = (pooled.astype(np.float64) ** 2).sum() - (counts.astype(np.float64) ** 2).sum()
    of_group = counts.sum(axis=2).astype(np.float64)  # [G, L]
    pairs = (pooled.sum(axis=1).astype(np.float64) ** 2).sum() - (of_group**2).sum()
    return float(top_k * both / pairs) if pairs > 0 else float("nan")


def reuse_quantiles(reuses: NDArray[np.int64], quantiles: tuple[float, ...]) -> NDArray[np.float64]:
    """Reuse distances below or at which a share of the lookups that reuse an expert lie.

    Args:
        reuses: [..., E + 1], as in `LocalityCounts`; first uses are left out.
        quantiles: Q of them, each in (0, 1].

    Returns:
        [..., Q] float64, distinct other experts; NaN where nothing is used again.
    """
    running = np.cumsum(reuses[..., :-1], axis=-1)
    total = running[..., -1:]
    found = [(running < quantile * total).sum(axis=-1) for quantile in quantiles]
    return np.where(total > 0, np.stack(found, axis=-1).astype(np.float64), np.nan)
