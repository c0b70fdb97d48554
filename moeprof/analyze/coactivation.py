"""Which experts of a layer are chosen together more often than by chance.

By chance means: as often as each expert is used in the document, but in random company.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.walk import RoutedLayer, SampleTokens
from moeprof.native import chosen_pairs, pair_counts

MARKED_SHARE = 0.01  # of a layer's pairs, those that stand out most
NAMED_PAIRS = 3  # of each layer
_MOST_ROUNDS = 200
_EXACT = 1e-9


def expected_weights(counts: NDArray[np.integer], top_k: int) -> NDArray[np.float64]:
    """Weights x, such that experts e and f are expected together x_e x_f times.

    Quasi-independence in the symmetric table of pairs without its diagonal (Goodman 1968, JASA
    63(324)): x_e (sum of x - x_e) is the number of pairs that e is in, (top_k - 1) times its
    assignments. Found by proportional fitting, damped by a square root.

    Args:
        counts: [..., E], assignments of tokens that choose `top_k` experts each.
        top_k: at least 2.

    Returns:
        [..., E] float64.
    """
    pairs = (top_k - 1.0) * counts
    total = pairs.sum(axis=-1, keepdims=True)
    weights = pairs / np.sqrt(np.where(total > 0, total, 1.0))
    for _ in range(_MOST_ROUNDS):
        rest = weights.sum(axis=-1, keepdims=True) - weights
        fitted = np.sqrt(weights * pairs / np.where(rest > 0, rest, 1.0))
        change = np.abs(fitted - weights).max(initial=0.0)
        weights = fitted
        if change <= _EXACT * weights.max(initial=1.0):
            break
    return weights


def standing_out(together: NDArray[np.int64], expected: NDArray[np.float64]) -> NDArray[np.int64]:
    """The pairs that stand out most from chance.

    Args:
        together: [E, E] int64, symmetric, tokens that choose both.
        expected: [E, E] float64, symmetric, tokens that would by chance.

    Returns:
        [pairs, 2] int64, `MARKED_SHARE` of all pairs but at least one, e < f, by (found -
        expected) / sqrt(expected + 1), the largest first.
    """
    one, other = np.triu_indices(len(together), 1)
    chance = expected[one, other]
    excess = (together[one, other] - chance) / np.sqrt(chance + 1)
    number = max(1, round(MARKED_SHARE * len(one)))
    best = np.argpartition(-excess, number - 1)[:number]
    best = best[np.lexsort((best, -excess[best]))]
    return np.stack([one[best], other[best]], axis=1)


@dataclass(frozen=True, slots=True)
class NamedPair:
    """A pair that stands out: `together` tokens chose both, `expected` by chance."""

    row: int
    experts: tuple[int, int]
    together: int
    expected: float


class PairCounts:
    """How often marked pairs of every layer are chosen, and would be by chance.

    Attributes:
        in_sample: for each sample [G, L, 2] float64, marked pairs that tokens of the group chose,
            and those expected, of pairs marked on all documents.
        held_out: the same of pairs marked on training documents; NaN without any.
        named: for each sample and layer the pairs that stand out most.
    """

    def __init__(self, places: Sequence[SampleTokens]) -> None:
        self._places = places
        sizes = [(*place.sample.counts.shape[:2], 2) for place in places]
        self.in_sample = [np.full(size, np.nan) for size in sizes]
        self.held_out = [np.full(size, np.nan) for size in sizes]
        self.named: list[list[list[NamedPair]]] = [[[] for _ in range(size[1])] for size in sizes]

    def visit(self, layer: RoutedLayer) -> None:
        """Mark pairs, and count them in every group."""
        for index, place in enumerate(self._places):
            found = _LayerPairs(place, layer)
            self.in_sample[index][:, layer.row] = found.in_sample()
            if place.sample.num_groups > 1:
                self.held_out[index][:, layer.row] = found.held_out()
            self.named[index][layer.row] = found.named()


class _LayerPairs:
    """The pairs of one sample in one layer."""

    def __init__(self, place: SampleTokens, layer: RoutedLayer) -> None:
        sample = place.sample
        self.place, self.row = place, layer.row
        self.experts = layer.experts[place.span]
        num_experts = sample.shape.num_experts
        self.together = pair_counts(
            self.experts, self.experts, place.fold, max(sample.num_folds, 1), num_experts
        )
        self.weights = expected_weights(sample.counts[:, self.row], sample.shape.top_k)  # [G, E]
        self.best = standing_out(self.together.sum(axis=0), self.weights.T @ self.weights)

    def in_sample(self) -> NDArray[np.float64]:
        zeros = np.zeros(len(self.weights), np.int64)
        return self._count(_marked([self.best], self.weights.shape[1]), zeros)

    def held_out(self) -> NDArray[np.float64]:
        fold, taught_by = self.place.sample.fold, self.place.sample.one_way
        marks = []
        for teachers in taught_by:
            training = self.weights[teachers[fold] == 1]
            found = np.tensordot(teachers, self.together, axes=1)
            marks.append(standing_out(found, training.T @ training))
        return self._count(_marked(marks, self.weights.shape[1]), fold)

    def named(self) -> list[NamedPair]:
        pairs = []
        for one, other in self.best[:NAMED_PAIRS].tolist():
            together = int(self.together[:, one, other].sum())
            expected = float(self.weights[:, one] @ self.weights[:, other])
            pairs.append(NamedPair(self.row, (one, other), together, expected))
        return pairs

    def _count(self, marked: NDArray[np.uint8], table: NDArray[np.int64]) -> NDArray[np.float64]:
        """[G, 2]: marked pairs of each group and those expected; `table` [G] says which marks."""
        group, weights = self.place.group, self.weights
        of_token = table.astype(np.uint32)[group]
        found = chosen_pairs(self.experts, marked, of_token, group, len(weights))
        expected = np.empty(len(weights))
        for index, marks in enumerate(marked):
            its = weights[table == index]
            expected[table == index] = ((its @ marks) * its).sum(axis=1) / 2
        return np.stack([found, expected], axis=1)


def _marked(pairs: Sequence[NDArray[np.int64]], num_experts: int) -> NDArray[np.uint8]:
    """[N, E, E] uint8, symmetric, from N lists of pairs."""
    marked = np.zeros((len(pairs), num_experts, num_experts), np.uint8)
    for table, chosen in zip(marked, pairs, strict=True):
        table[chosen[:, 0], chosen[:, 1]] = 1
        table[chosen[:, 1], chosen[:, 0]] = 1
    return marked
