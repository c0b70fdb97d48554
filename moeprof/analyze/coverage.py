"""Coverage of hot sets: in-sample and held out (definitions: `design.md`, section 4).

Shapes as in `hot_sets`: G document groups, P pools of C cells each, S sizes of hot sets.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import best_first


def covered(
    counts: NDArray[np.generic], order: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Assignments that the first cells of an order serve, for several sizes at once.

    Args:
        counts: [..., P, C], assignments.
        order: [..., P, C], broadcast against `counts`; from `best_first`.
        sizes: [S] int64, cells in each hot set, in [1, C].

    Returns:
        [..., P, S] float64, assignments.
    """
    deepest = int(sizes.max())
    ordered = np.take_along_axis(counts, order[..., :deepest], axis=-1)
    running: NDArray[np.float64] = np.cumsum(ordered, axis=-1, dtype=np.float64)
    return running[..., sizes - 1]


def in_sample_covered(
    counts: NDArray[np.int64], bytes_of: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Assignments of each group that sets chosen on all groups serve.

    Args:
        counts: [G, P, C] int64.
        bytes_of: [P, C] int64.
        sizes: [S] int64.

    Returns:
        [G, P, S] float64; the sum over groups divided by all assignments is the coverage.
    """
    order = best_first(counts.sum(axis=0), bytes_of)
    return covered(counts, np.broadcast_to(order, counts.shape), sizes)


def training_orders(
    counts: NDArray[np.int64], bytes_of: NDArray[np.int64], fold: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For every fold the order of cells on the groups outside it.

    Args:
        counts: [G, P, C] int64.
        bytes_of: [P, C] int64.
        fold: [G] int64, from `deal_folds`.

    Returns:
        [num_folds, P, C] int64.
    """
    total = counts.sum(axis=0)
    training = [total - counts[fold == k].sum(axis=0) for k in range(int(fold.max()) + 1)]
    return best_first(np.stack(training), bytes_of)


def held_out_covered(
    counts: NDArray[np.int64],
    orders: NDArray[np.int64],
    fold: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Assignments of each group that the sets chosen without it serve.

    Args:
        counts: [G, P, C] int64.
        orders: [num_folds, P, C] int64, from `training_orders`.
        fold: [G] int64.
        sizes: [S] int64.

    Returns:
        [G, P, S] float64; the sum over groups divided by all assignments is the coverage.
    """
    return covered(counts, orders[fold], sizes)


def share_of(part: NDArray[np.float64], whole: NDArray[Any]) -> NDArray[np.float64]:
    """`part / whole` with the sizes on the last axis of `part`; NaN where `whole` is zero.

    Args:
        part: [..., S].
        whole: [...].
    """
    with np.errstate(invalid="ignore"):  # 0 / 0: nothing routed, no coverage
        ratio: NDArray[np.float64] = part / whole[..., None]
    return ratio
