"""What one hot set for all domains loses against a set of its own for each of them."""

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import best_first, cell_bytes, hot_set_size
from moeprof.analyze.intervals import interval
from moeprof.analyze.sample import Sample


def merging(overall: Sample, num_domains: int) -> NDArray[np.float64]:
    """Held-out coverage of specialists and of the merged set on every domain, and the loss.

    All are scored on the same documents: folds are those of `overall`, a specialist is chosen on
    the training documents of its domain, the merged set on those of all domains, which weigh as
    much as they have assignments. Intervals repeat choice and scoring on the same resampled
    documents, so that the loss is that of pairs.

    Args:
        overall: the sample of all domains; its settings give the share of cells in a hot set.
        num_domains: D, domains of the trace.

    Returns:
        [3, 3, D + 1] float64: specialist, merged, specialist less merged; estimate, low, high;
        domain, the last entry all domains together. NaN where a domain has too few documents.
    """
    once = np.ones((1, overall.num_groups))
    estimate = _coverages(overall, once, num_domains)[:, 0]
    resampled = _coverages(overall, overall.weights, num_domains)
    bounds = ((0.0, 1.0), (0.0, 1.0), (-1.0, 1.0))
    found = [
        interval(of, again, overall.degrees, limits)
        for of, again, limits in zip(estimate, resampled, bounds, strict=True)
    ]
    return np.stack(found)


def _coverages(
    sample: Sample, weights: NDArray[np.float64], num_domains: int
) -> NDArray[np.float64]:
    """[3, R, D + 1]: specialist, merged, difference, in every resample."""
    shape = sample.shape
    bytes_of = cell_bytes(shape.expert_bytes, shape.num_experts).reshape(1, -1)
    size = hot_set_size(sample.settings.share, shape.num_cells)
    counts = sample.counts.reshape(sample.num_groups, -1).astype(np.float64)
    served = np.zeros((2, len(weights), num_domains))
    total = np.zeros((len(weights), num_domains))
    for fold in range(sample.num_folds):
        training, scored = (
            _by_domain(sample, weights, counts, members, num_domains)
            for members in (sample.fold != fold, sample.fold == fold)
        )
        merged = _sets(training.sum(axis=1), bytes_of, size)
        for domain in range(num_domains):
            own = _sets(training[:, domain], bytes_of, size)
            to_score = scored[:, domain].sum(axis=1)
            untrained = (to_score > 0) & ~training[:, domain].any(axis=1)
            for index, chosen in enumerate((own, merged)):
                hits = np.take_along_axis(scored[:, domain], chosen, axis=1).sum(axis=1)
                served[index, :, domain] += np.where(untrained & (index == 0), np.nan, hits)
            total[:, domain] += to_score
    served, total = _with_all(served), _with_all(total[None])[0]
    with np.errstate(invalid="ignore"):  # 0 / 0: a domain that is silent in this phase
        specialist, merged = served / total
    return np.stack([specialist, merged, specialist - merged])


def _by_domain(
    sample: Sample,
    weights: NDArray[np.float64],
    counts: NDArray[np.float64],
    members: NDArray[np.bool_],
    num_domains: int,
) -> NDArray[np.float64]:
    """[R, D, C]: resampled assignments of the members of each domain."""
    drawn = [members & (sample.group_domain == domain) for domain in range(num_domains)]
    return np.stack([weights[:, these] @ counts[these] for these in drawn], axis=1)


def _sets(counts: NDArray[np.float64], bytes_of: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return best_first(counts, bytes_of, stable=len(counts) == 1)[:, :size]


def _with_all(by_domain: NDArray[np.float64]) -> NDArray[np.float64]:
    """The domains' sums with that of all domains behind them; silent domains add nothing."""
    return np.concatenate([by_domain, by_domain.sum(axis=-1, keepdims=True)], axis=-1)
