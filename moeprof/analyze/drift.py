"""Whether a hot set stays good: along a document, and along the trace from document to document.

Both are set beside what noise alone would show. Along a document, coverage at a place is compared
with that of the same documents at all places, with an interval. Along the trace, the set of the
earliest documents is scored on later ones, and the same is done with the documents shuffled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.coverage import share_of, training_orders
from moeprof.analyze.hot_sets import best_first, cell_bytes, hot_set_size
from moeprof.analyze.sample import Sample
from moeprof.analyze.walk import PhaseTokens, RoutedLayer, SampleTokens
from moeprof.model_shape import ModelShape
from moeprof.native import count_assignments

# Places of tokens in their document at which a new bucket begins.
PLACES = (0, 16, 64, 256, 1024, 4096, 16384)
AGES = 64  # groups into which the documents of a domain are put by age
PARTS = 4  # into which the documents of a domain are cut by age


class PlaceCounts:
    """What the held-out hot set serves at every place of a document, gathered by layer.

    Attributes:
        served: for each sample [G, L, buckets] int64, assignments that the set chosen without the
            group's fold serves.
        total: for each sample [G, L, buckets] int64, assignments.
    """

    def __init__(
        self, tokens: PhaseTokens, places: Sequence[SampleTokens], num_groups: int
    ) -> None:
        self._places = places
        self._num_groups = num_groups
        bucket = np.searchsorted(PLACES, tokens.place, side="right") - 1
        self._keys = tokens.group * np.uint32(len(PLACES)) + bucket.astype(np.uint32)
        self._hot = [held_out_sets(place.sample) for place in places]
        sizes = [(*place.sample.counts.shape[:2], len(PLACES)) for place in places]
        self.served = [np.zeros(size, np.int64) for size in sizes]
        self.total = [np.zeros(size, np.int64) for size in sizes]

    def visit(self, layer: RoutedLayer) -> None:
        """Count one layer."""
        num_experts = self._places[0].sample.shape.num_experts
        keys = self._num_groups * len(PLACES)
        counted = count_assignments(layer.experts, self._keys, keys, num_experts)
        counted = counted.reshape(self._num_groups, len(PLACES), num_experts)
        for index, place in enumerate(self._places):
            counts = counted[place.sample.groups]
            hot = self._hot[index]
            self.total[index][:, layer.row] = counts.sum(axis=2)
            if hot is not None:
                of_group = hot[place.sample.fold, layer.row]
                self.served[index][:, layer.row] = np.einsum("gbe,ge->gb", counts, of_group)


class AgeCounts:
    """Assignments of documents grouped by age, for domains with more documents than groups.

    Attributes:
        counts: [domains * AGES, L, E] int64; group AGES * d + a holds the documents of domain d
            of age a, the oldest first.
    """

    def __init__(self, tokens: PhaseTokens, shape: ModelShape) -> None:
        first, behind = np.searchsorted(tokens.document_start, tokens.domain_span).T
        keys = np.zeros(len(tokens.document_start) - 1, np.uint32)
        for domain, (start, end) in enumerate(zip(first, behind, strict=True)):
            age = np.arange(end - start) * AGES // max(end - start, 1)
            keys[start:end] = domain * AGES + age
        self._keys = np.repeat(keys, np.diff(tokens.document_start))
        num_keys = len(tokens.domain_span) * AGES
        self.counts = np.zeros((num_keys, shape.num_moe_layers, shape.num_experts), np.int64)

    def visit(self, layer: RoutedLayer) -> None:
        """Count one layer."""
        num_keys, _, num_experts = self.counts.shape
        self.counts[:, layer.row] = count_assignments(
            layer.experts, self._keys, num_keys, num_experts
        )


def held_out_sets(sample: Sample) -> NDArray[np.int64] | None:
    """[folds, L, E] int64, 1 where a cell is hot on the documents outside a fold; None of one."""
    if sample.num_groups < 2:
        return None
    shape = sample.shape
    bytes_of = cell_bytes(shape.expert_bytes, shape.num_experts).reshape(1, -1)
    counts = sample.counts.reshape(sample.num_groups, 1, -1)
    orders = training_orders(counts, bytes_of, sample.fold)[:, 0]
    size = hot_set_size(sample.settings.share, shape.num_cells)
    hot = np.zeros((len(orders), shape.num_cells), np.int64)
    np.put_along_axis(hot, orders[:, :size], 1, axis=1)
    return hot.reshape(len(orders), shape.num_moe_layers, shape.num_experts)


def place_differences(served: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    """Assignments served at each place beyond those of the same documents everywhere.

    Args:
        served: [G, buckets] int64.
        total: [G, buckets] int64.

    Returns:
        [G, buckets] float64; over the total of a bucket it is the difference in coverage.
    """
    whole = share_of(served.sum(axis=1, keepdims=True).astype(np.float64), total.sum(axis=1))
    return served - np.nan_to_num(whole) * total


@dataclass(frozen=True, slots=True)
class TraceDrift:
    """Coverage of the earliest documents' hot set on each later part, and in shuffled order.

    Attributes:
        coverage: [PARTS - 1] float64, on the second to the last part.
        shuffled: [permutations, PARTS - 1] float64, the same with the documents in random order.
        p_value: share of orders, the real one included, in which coverage falls as fast or faster
            from one part to another with the parts between them.
    """

    coverage: NDArray[np.float64]
    shuffled: NDArray[np.float64]
    p_value: float


def part_of_groups(group_domain: NDArray[np.int64], parts: int = PARTS) -> NDArray[np.int64]:
    """The part of each group by age: every domain is cut into equal parts in its own order.

    Args:
        group_domain: [G] int64; groups of a domain stand in the order of tracing.
        parts: number of parts.

    Returns:
        [G] int64 in [0, parts).
    """
    part = np.empty(len(group_domain), np.int64)
    for domain in np.unique(group_domain):
        (members,) = np.nonzero(group_domain == domain)
        part[members] = np.arange(len(members)) * parts // len(members)
    return part


def trace_drift(
    counts: NDArray[np.int64],
    group_domain: NDArray[np.int64],
    bytes_of: NDArray[np.int64],
    size: int,
    rng: np.random.Generator,
    permutations: int,
) -> TraceDrift:
    """How the coverage of an early hot set falls, against documents in random order.

    Args:
        counts: [G, C] int64, assignments of documents in the order of tracing.
        group_domain: [G] int64.
        bytes_of: [C] int64.
        size: cells in a hot set.
        rng: of the permutations, which stay inside each domain.
        permutations: random orders.
    """
    part = part_of_groups(group_domain)
    by_part = np.stack([counts[part == index].sum(axis=0) for index in range(PARTS)])
    coverage, slope = _coverage_by_part(by_part, bytes_of, size)
    shuffled, slopes = [], []
    for _ in range(permutations):
        moved = _shuffled(part, group_domain, rng)
        by_part = np.stack([counts[moved == index].sum(axis=0) for index in range(PARTS)])
        found, at_random = _coverage_by_part(by_part, bytes_of, size)
        shuffled.append(found)
        slopes.append(at_random)
    as_steep = 1 + int(np.count_nonzero(np.asarray(slopes) <= slope))
    return TraceDrift(coverage, np.stack(shuffled), as_steep / (1 + permutations))


def _shuffled(
    part: NDArray[np.int64], group_domain: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    moved = part.copy()
    for domain in np.unique(group_domain):
        (members,) = np.nonzero(group_domain == domain)
        moved[members] = part[rng.permutation(members)]
    return moved


def _coverage_by_part(
    by_part: NDArray[np.int64], bytes_of: NDArray[np.int64], size: int
) -> tuple[NDArray[np.float64], float]:
    """Coverage of the first part's set on the later ones, and the slope over distances.

    The slope is that of the least-squares line of coverage, over all ordered pairs of different
    parts and relative to the mean coverage of the part scored, on the parts' distance.
    """
    orders = best_first(by_part, bytes_of[None], stable=False)[:, :size]
    total = by_part.sum(axis=1)
    served = np.stack([by_part[:, order].sum(axis=1) for order in orders])  # [chosen on, scored on]
    coverage = share_of(served.T.astype(np.float64), total).T
    other = ~np.eye(PARTS, dtype=bool)
    mean = np.where(other, coverage, 0.0).sum(axis=0) / (PARTS - 1)
    place = np.arange(PARTS)
    distance = np.abs(place[:, None] - place[None, :])[other]
    centred = distance - distance.mean()
    slope = float((coverage - mean)[other] @ centred / (centred @ centred))
    return coverage[0, 1:], slope
