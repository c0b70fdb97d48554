"""Which cells to keep first: ranking by benefit per byte.

Arrays of cells have the shape [..., P, C]: P pools that are ranked apart, C cells in each. The
whole model is one pool of L x E cells; per-layer hot sets are L pools of E cells.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import CapacityError
from moeprof.units import format_size


def hot_set_size(share: float, num_cells: int) -> int:
    """Cells in a hot set of `share` of `num_cells`: to the nearest, at least one.

    Raises:
        ValueError: `share` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    return max(1, int(share * num_cells + 0.5))


def budget_share(budget_bytes: int, expert_bytes: Sequence[int], num_experts: int) -> float:
    """Share of the cells that fit into a budget, cells taken as of the mean size.

    Args:
        budget_bytes: of the hot set.
        expert_bytes: bytes of one expert of each layer.
        num_experts: of each layer.

    Returns:
        In (0, 1], a whole number of cells.

    Raises:
        CapacityError: not one expert fits.
    """
    mean = sum(expert_bytes) / len(expert_bytes)
    if budget_bytes < mean:
        raise CapacityError(
            f"a budget of {format_size(budget_bytes)} holds no expert of {format_size(mean)}",
            "give a larger one with --budget",
        )
    num_cells = len(expert_bytes) * num_experts
    return min(num_cells, int(budget_bytes / mean)) / num_cells


def cell_bytes(expert_bytes: Sequence[int], num_experts: int) -> NDArray[np.int64]:
    """Bytes of every cell, [L, E] int64, from the bytes of one expert of each layer."""
    return np.repeat(np.asarray(expert_bytes, np.int64)[:, None], num_experts, axis=1)


def best_first(
    counts: NDArray[np.generic], bytes_of: NDArray[np.int64], stable: bool = True
) -> NDArray[np.int64]:
    """Cells in the order in which they enter a hot set: most assignments per byte first.

    For items of one size this greedy order is the optimum of the knapsack; with other sizes it
    is the optimum of its continuous relaxation (Dantzig 1957, Operations Research 5(2)).

    Args:
        counts: [..., P, C], assignments.
        bytes_of: [P, C], bytes of each cell.
        stable: among equals the lower index goes first. False takes numbers that differ by less
            than 2^-52 C of themselves for equal and those below 0 for 0, and is much faster:
            enough where the order is averaged over.

    Returns:
        [..., P, C] int64, indices along the last axis.
    """
    benefit = counts / (bytes_of / bytes_of.min())
    if not stable:
        return _largest_first(benefit)
    order: NDArray[np.int64] = np.argsort(-benefit, axis=-1, kind="stable")
    return order


def _largest_first(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """[..., C] int64: indices along the last axis, found by sorting plain numbers.

    Bits of floats that are not negative are in the order of the floats; their last ones make place
    for the index.
    """
    size = values.shape[-1]
    index_bits = np.int64((1 << max(size - 1, 1).bit_length()) - 1)
    keys = np.maximum(values, 0.0).view(np.int64)
    np.bitwise_or(keys, index_bits, out=keys)
    np.invert(keys, out=keys)
    np.bitwise_or(keys, np.arange(size), out=keys)
    keys.sort(axis=-1)
    return np.bitwise_and(keys, index_bits, out=keys)


def hot_set(
    counts: NDArray[np.int64], expert_bytes: Sequence[int], share: float
) -> NDArray[np.int64]:
    """The hot set of the whole model, by benefit per byte.

    Args:
        counts: [L, E] int64, assignments.
        expert_bytes: bytes of one expert of each layer, L of them.
        share: share of the model's cells, in (0, 1].

    Returns:
        [num_hot_cells, 2] int64, (row of the layer, expert), most benefit per byte first.

    Raises:
        ValueError: `share` is outside (0, 1].
    """
    num_experts = counts.shape[1]
    bytes_of = cell_bytes(expert_bytes, num_experts).reshape(1, -1)
    order = best_first(counts.reshape(1, -1), bytes_of)[0]
    chosen = order[: hot_set_size(share, counts.size)]
    return np.stack(np.divmod(chosen, num_experts), axis=1)
