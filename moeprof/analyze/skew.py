"""How unevenly assignments fall on experts: Gini index, entropy, how few carry how much.

These are in-sample figures: they describe the trace, not what a hot set serves on new text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Shares of the assignments for which the number of cells that carry them is given.
CARRIED = (0.5, 0.8, 0.9, 0.95)


def gini(counts: NDArray[np.generic]) -> NDArray[np.float64]:
    """Gini index of assignments over experts (Gini 1912; Dixon et al. 1987, Ecology 68(5)).

    Args:
        counts: [..., E], assignments.

    Returns:
        [...] float64: 0 where all experts are used alike, 1 - 1 / E where one takes all; NaN
        where nothing was routed.
    """
    ascending = np.sort(counts, axis=-1).astype(np.float64)
    num_experts = counts.shape[-1]
    rank = 2.0 * np.arange(1, num_experts + 1) - num_experts - 1
    with np.errstate(invalid="ignore"):  # 0 / 0: nothing routed
        index: NDArray[np.float64] = (ascending @ rank) / (num_experts * ascending.sum(axis=-1))
    return index


def normalised_entropy(counts: NDArray[np.generic]) -> NDArray[np.float64]:
    """Shannon entropy of the experts' shares over that of even use.

    Args:
        counts: [..., E], assignments.

    Returns:
        [...] float64: 1 where all experts are used alike, 0 where one takes all; NaN where
        nothing was routed, or there is a single expert.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / counts.sum(axis=-1, keepdims=True)
        terms = np.where(share == 0, 0.0, -share * np.log(share))  # NaN stays NaN
        entropy: NDArray[np.float64] = terms.sum(axis=-1) / np.log(counts.shape[-1])
    return entropy


def used_share(counts: NDArray[np.generic]) -> NDArray[np.float64]:
    """[...] float64, share of the cells on the last axis of `counts` that were ever chosen."""
    used: NDArray[np.float64] = np.count_nonzero(counts, axis=-1) / counts.shape[-1]
    return used


def cells_carrying(
    counts: NDArray[np.integer], shares: Sequence[float] = CARRIED
) -> NDArray[np.float64]:
    """Fewest cells that carry at least a share of the assignments, for several shares.

    Args:
        counts: [..., C], assignments.
        shares: S of them, each in (0, 1].

    Returns:
        [..., S] float64, whole numbers; NaN where nothing was routed.
    """
    running = np.cumsum(-np.sort(-counts, axis=-1), axis=-1)
    total = running[..., -1:]
    fewest = [1 + (running < share * total).sum(axis=-1) for share in shares]
    return np.where(total > 0, np.stack(fewest, axis=-1).astype(np.float64), np.nan)
