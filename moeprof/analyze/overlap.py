"""How much two domains share: Jaccard index of their hot sets, and coverage transfer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.coverage import share_of, training_orders
from moeprof.analyze.hot_sets import best_first, cell_bytes, hot_set_size
from moeprof.analyze.intervals import interval
from moeprof.analyze.sample import Sample


def jaccard(hot: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cells in both hot sets over cells in either (Jaccard 1901).

    Args:
        hot: [D, num_cells] bool, the hot set of each domain.

    Returns:
        [D, D] float64, symmetric, 1 on the diagonal; NaN where both sets are empty.
    """
    sets = hot.astype(np.float64)
    both = sets @ sets.T
    sizes = np.diag(both)
    with np.errstate(invalid="ignore"):  # 0 / 0: two empty sets
        index: NDArray[np.float64] = both / (sizes[:, None] + sizes[None, :] - both)
    return index


def hot_cells(sample: Sample) -> NDArray[np.bool_]:
    """[num_cells] bool: whether a cell is in the hot set chosen on all documents of `sample`."""
    bytes_of = _flat_bytes(sample)
    order = best_first(sample.counts.sum(axis=0).reshape(1, -1), bytes_of)
    hot: NDArray[np.bool_] = _members(order, _size(sample))[0]
    return hot


def resampled_hot_cells(sample: Sample) -> NDArray[np.float32]:
    """[R, num_cells] float32: 1 where a cell is in the hot set of all documents of a resample."""
    flat = sample.counts.reshape(sample.num_groups, -1).astype(np.float64)
    order = best_first(sample.weights @ flat, _flat_bytes(sample), stable=False)
    return _members(order, _size(sample)).astype(np.float32)


def transfer(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Coverage of each domain's hot set on each domain's documents, never on its own training.

    Row A holds the sets chosen on A's training folds; every other domain is scored whole by the
    mean over A's folds, A itself fold by fold on the documents left out. So the entries of a row
    come from training sets of one size. A domain with a single document group trains on it and
    has no diagonal. The intervals repeat choice and scoring on the same resampled documents.

    Args:
        samples: of D domains in one phase, each with at least one group; their settings give
            the share of cells in a hot set.

    Returns:
        [3, D, D] float64: estimate, low, high; first domain axis trained on, second scored on.
    """
    num_domains = len(samples)
    result = np.full((3, num_domains, num_domains), np.nan)
    for row, source in enumerate(samples):
        chosen = training_sets(source)
        resampled = resampled_sets(source)
        for column, target in enumerate(samples):
            if row == column:
                at = target.curve_shares.index(target.settings.share)
                result[:, row, column] = target.curve.held_out[:, 0, at]
                continue
            flat = target.counts.reshape(target.num_groups, -1)
            total = flat.sum(axis=1)
            estimate = share_of((flat @ chosen).sum(keepdims=True), total.sum())
            served = np.einsum("rg,gr->r", target.weights, flat @ resampled.T)
            spread = share_of(served[:, None], target.weights @ total)
            degrees = min(source.degrees, target.degrees)
            result[:, row, column] = interval(estimate, spread, degrees)[:, 0]
    return result


def training_sets(sample: Sample) -> NDArray[np.float64]:
    """[num_cells] float64: in what part of the folds' training sets a cell is hot."""
    bytes_of = _flat_bytes(sample)
    size = _size(sample)
    counts = sample.counts.reshape(sample.num_groups, 1, -1)
    if sample.num_groups < 2:
        alone: NDArray[np.float64] = _members(best_first(counts[0], bytes_of), size)[0] * 1.0
        return alone
    orders = training_orders(counts, bytes_of, sample.fold)
    mean: NDArray[np.float64] = _members(orders[:, 0], size).mean(axis=0)
    return mean


def resampled_sets(sample: Sample) -> NDArray[np.float32]:
    """[R, num_cells] float32: as `training_sets`, in every resample."""
    bytes_of = _flat_bytes(sample)
    size = _size(sample)
    flat = sample.counts.reshape(sample.num_groups, -1).astype(np.float64)
    part = np.zeros((len(sample.weights), flat.shape[1]), np.float32)
    folds = range(sample.num_folds) if sample.num_groups > 1 else [-1]
    for k in folds:
        training = sample.fold != k
        drawn = sample.weights[:, training] @ flat[training]
        part += _members(best_first(drawn, bytes_of, stable=False), size)
    part /= len(folds)
    return part


def _size(sample: Sample) -> int:
    return hot_set_size(sample.settings.share, sample.shape.num_cells)


def _flat_bytes(sample: Sample) -> NDArray[np.int64]:
    return cell_bytes(sample.shape.expert_bytes, sample.shape.num_experts).reshape(1, -1)


def _members(order: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """[N, num_cells] bool: the first `size` cells of each of N orders."""
    hot = np.zeros(order.shape, bool)
    np.put_along_axis(hot, order[:, :size], True, axis=1)
    return hot
