"""The solver: fill the budget with the cells of the most benefit per byte."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import best_first, cell_bytes
from moeprof.policies.static_set import static_set


@dataclass(frozen=True, slots=True)
class Solution:
    """Which cells to keep in VRAM.

    Attributes:
        in_vram: [L, E] bool.
        benefit: sum of the benefits of these cells.
        bound: no choice within the budget has more benefit than this.
    """

    in_vram: NDArray[np.bool_]
    benefit: float
    bound: float

    @property
    def optimality_gap(self) -> float:
        """`1 - benefit / bound`: the share of the best conceivable benefit that may be missing.

        0 proves the solution optimal; it is 0 too where there is nothing to gain.
        """
        return 1 - self.benefit / self.bound if self.bound > self.benefit else 0.0


def solve_greedy(
    benefit: NDArray[np.float64], expert_bytes: NDArray[np.int64], budget_bytes: int
) -> Solution:
    """The cells of the most benefit per byte that fit, taken one by one.

    Optimal where all experts have the same size. Where they have not, the problem is a 0/1
    knapsack, and its fractional relaxation bounds what any choice can reach (G. B. Dantzig,
    "Discrete-variable extremum problems", Operations Research 5, 1957). Cells of equal benefit
    per byte are taken by ascending layer, then expert; cells without benefit fill what is left.

    Args:
        benefit: [L, E] float64, not negative; assignments of each cell.
        expert_bytes: [L] int64, positive; bytes of one expert of each layer.
        budget_bytes: bytes that the chosen cells may take together.
    """
    sizes = cell_bytes(expert_bytes.tolist(), benefit.shape[1]).ravel()
    gains = benefit.ravel()
    taken = static_set(gains, sizes, budget_bytes)
    bound = float(gains[taken].sum())
    if (expert_bytes != expert_bytes[0]).any():
        order = best_first(gains[None], sizes[None])[0]
        bound = _fractional_bound(gains[order], sizes[order], budget_bytes)
    return Solution(taken.reshape(benefit.shape), float(gains[taken].sum()), bound)


def _fractional_bound(gains: NDArray[np.float64], sizes: NDArray[np.int64], room: int) -> float:
    """Best benefit when the last cell may be cut; both arrays by falling benefit per byte."""
    filled = np.cumsum(sizes)
    whole = int(np.searchsorted(filled, room, side="right"))
    bound = float(gains[:whole].sum())
    if whole < gains.size:
        left = room - (int(filled[whole - 1]) if whole else 0)
        bound += float(gains[whole]) * left / float(sizes[whole])
    return bound
