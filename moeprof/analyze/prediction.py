"""How well the experts of the next layer can be told from those of this layer, held out.

Candidates are ranked by naive Bayes over the experts that the token chose in this layer, with
probabilities from how often experts of the two layers went together on training documents (Maron
1961, J. ACM 8(3)). The rival is popularity alone: the next layer's busiest experts on the same
training documents, whatever the token.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.coverage import held_out_covered, training_orders
from moeprof.analyze.sample import Sample
from moeprof.analyze.walk import RoutedLayer, SampleTokens
from moeprof.native import candidate_ranks, pair_counts

# Assignments added to the counts of every expert as if seen at the average rate.
_PRIOR_ASSIGNMENTS = 1.0
CANDIDATES = (1, 2, 3, 4)  # times top-k


def evidence(
    together: NDArray[np.int64], given: NDArray[np.int64], chosen: NDArray[np.int64], top_k: int
) -> NDArray[np.float32]:
    """Scores by which candidates are ranked: logarithms of naive Bayes' factors.

    With n tokens, of which n_e choose e in this layer, n_f choose f in the next and n_ef both,
    expert e speaks for candidate f with log((n_ef n / n_e + a) / (n_f + a)), where a draws what
    was rarely seen to zero. From the outset speaks log(n_f + a).

    Args:
        together: [..., E, E] int64, n_ef.
        given: [..., E] int64, n_e.
        chosen: [..., E] int64, n_f.
        top_k: experts of a token, which gives n.

    Returns:
        [..., E + 1, E] float32; the last row is what speaks from the outset. An expert that was
        never seen speaks for nothing.
    """
    tokens = given.sum(axis=-1)[..., None, None] / top_k
    seen = given[..., :, None] > 0
    expected = together * tokens / np.where(seen, given[..., :, None], 1)
    base = chosen[..., None, :] + _PRIOR_ASSIGNMENTS
    speaks = np.where(seen, np.log((expected + _PRIOR_ASSIGNMENTS) / base), 0.0)
    made: NDArray[np.float32] = np.concatenate([speaks, np.log(base)], axis=-2).astype(np.float32)
    return made


class NextLayerRanks:
    """Ranks at which the chosen experts of every layer but the first stand, held out.

    Attributes:
        ranks: for each sample [G, L, E] int64, assignments by the rank of their expert among the
            candidates; zero in the first layer, and where there are no training documents.
    """

    def __init__(self, places: Sequence[SampleTokens]) -> None:
        self._places = places
        self.ranks = [np.zeros(place.sample.counts.shape, np.int64) for place in places]

    def visit(self, layer: RoutedLayer) -> None:
        """Learn on the training documents of each fold, and rank on the others."""
        if layer.before is None:
            return
        for place, ranks in zip(self._places, self.ranks, strict=True):
            if place.sample.num_groups < 2:
                continue
            before, now = layer.before[place.span], layer.experts[place.span]
            scores = _training_scores(place, layer.row, before, now)
            ranks[:, layer.row] = candidate_ranks(
                before, now, scores, place.fold, place.group, place.sample.num_groups
            )


def _training_scores(
    place: SampleTokens, row: int, before: NDArray[np.uint16], now: NDArray[np.uint16]
) -> NDArray[np.float32]:
    """[folds, E + 1, E] float32, learned on the documents outside each fold."""
    sample = place.sample
    folds, shape = range(sample.num_folds), sample.shape
    together = pair_counts(before, now, place.fold, len(folds), shape.num_experts)
    of_fold = np.stack([sample.counts[sample.fold == k].sum(axis=0) for k in folds])
    given, chosen = of_fold[:, row - 1], of_fold[:, row]
    together, given, chosen = (part.sum(axis=0) - part for part in (together, given, chosen))
    return evidence(together, given, chosen, shape.top_k)


def popularity_hits(sample: Sample, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Assignments that the busiest experts of each layer on training documents serve.

    Args:
        sample: with two groups or more.
        sizes: [S] int64, experts of each layer.

    Returns:
        [G, L, S] float64.
    """
    of_one_size = np.ones(sample.counts.shape[1:], np.int64)
    orders = training_orders(sample.counts, of_one_size, sample.fold)
    return held_out_covered(sample.counts, orders, sample.fold, sizes)
