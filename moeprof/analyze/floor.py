"""The uniform floor: what the best set covers by chance alone, at the same sample size."""

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.coverage import covered, share_of
from moeprof.analyze.hot_sets import best_first

_CELLS_SIMULATED = (
    300_000  # simulations x cells: the mean's error is far below a table's last digit
)
_FEWEST, _MOST = 40, 1000


def num_simulations(num_cells: int) -> int:
    """Simulations for a model of that size; the more cells, the less one differs from the next."""
    return min(_MOST, max(_FEWEST, _CELLS_SIMULATED // num_cells))


def uniform_counts(
    assignments: NDArray[np.int64],
    num_experts: int,
    top_k: int,
    simulations: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Counts of tokens that each choose `top_k` experts evenly, without replacement.

    Exact for any number of tokens, at a cost that does not depend on it. Experts are visited in
    turn. A token that still needs r of its experts when m are left takes the next one with
    probability r / m (selection sampling: Knuth, TAOCP 2, section 3.4.2, algorithm S). Tokens
    that need the same r are alike, so the number of them that take it is binomial.

    Args:
        assignments: [L] int64 of each layer; a remainder of the division by `top_k` is one more
            token with that many experts.
        num_experts: E.
        top_k: K, at most E.
        simulations: independent repetitions.
        rng: of the draws.

    Returns:
        [simulations, L, E] int64, whose sum over experts is `assignments`.
    """
    waiting = np.zeros((simulations, len(assignments), top_k + 1), np.int64)  # [.., L, r]
    waiting[..., top_k] = assignments // top_k
    waiting[..., np.arange(len(assignments)), assignments % top_k] += 1
    counts = np.empty((simulations, len(assignments), num_experts), np.int64)
    for expert in range(num_experts):
        chance = np.minimum(np.arange(top_k + 1) / (num_experts - expert), 1.0)
        taken = rng.binomial(waiting, chance)
        counts[..., expert] = taken.sum(axis=-1)
        waiting -= taken
        waiting[..., :-1] += taken[..., 1:]
    return counts


def floor_coverage(
    simulated: NDArray[np.int64], bytes_of: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """In-sample coverage of simulated counts: mean and the middle 95 % of the simulations.

    Args:
        simulated: [simulations, P, C] int64.
        bytes_of: [P, C] int64.
        sizes: [S] int64.

    Returns:
        [3, P, S] float64: mean, 2.5th and 97.5th percentile; NaN where nothing was routed.
    """
    order = best_first(simulated, bytes_of, stable=False)
    coverage = share_of(covered(simulated, order, sizes), simulated.sum(axis=-1))
    low, high = np.quantile(coverage, [0.025, 0.975], axis=0)
    return np.stack([coverage.mean(axis=0), low, high])
