"""Signs that a strided tensor was read as if it were packed.

Routers of several engines give the chosen ids as a view into a larger tensor: the first K columns
of all E experts sorted by score. Whoever copies T x K ids from its start, ignoring the stride,
gets whole permutations of the experts, so that every expert is counted equally often; whoever
reads a buffer padded with zeros gets expert 0 in place of choices that were never made.
"""

from math import exp, lgamma, log, log1p, sqrt

import numpy as np
from numpy.typing import NDArray

# How rarely an honest trace may be suspected: once in a million imports.
_ALARM = 1e-6
# Of the standard normal distribution, the quantile at `_ALARM`.
_FAR_BELOW = -4.753


def evenness(counts: NDArray[np.int64], top_k: int) -> float:
    """How much more even a histogram is than even routing would be by chance, as a normal score.

    If each of T tokens drew its K of E experts evenly and independently, a count would have the
    variance v = T (K/E) (1 - K/E), and X = (E-1)/E sum (c - mean)^2 / v would follow chi-square
    with E - 1 degrees of freedom in each layer; any preference among experts raises it. X over all
    layers is turned into a normal score after Wilson and Hilferty (1931, PNAS 17(12)).

    Args:
        counts: [L, E] int64, assignments.
        top_k: experts per token, below E.

    Returns:
        About standard normal for even routing, far above for routing with preferences, and far
        below only for counts that chance does not make so equal. NaN without assignments.
    """
    num_experts = counts.shape[1]
    used = counts[counts.sum(axis=1) > 0].astype(np.float64)
    if len(used) == 0 or top_k >= num_experts:
        return float("nan")
    mean = used.mean(axis=1, keepdims=True)
    variance = mean * (1 - top_k / num_experts)
    spread = ((used - mean) ** 2 / variance).sum() * (num_experts - 1) / num_experts
    degrees = len(used) * (num_experts - 1)
    shrink = 2 / (9 * degrees)
    return float(((spread / degrees) ** (1 / 3) - (1 - shrink)) / sqrt(shrink))


def expert_zero_chance(counts: NDArray[np.int64]) -> float:
    """Chance that expert 0 is the busiest of at least as many layers if its number means nothing.

    Each of the L layers has it as its single busiest with chance 1/E, so that their number is
    binomial.

    Args:
        counts: [L, E] int64, assignments.
    """
    num_experts = counts.shape[1]
    if num_experts == 1:
        return 1.0
    used = counts[counts.sum(axis=1) > 0]
    num_layers = len(used)
    found = int((used[:, 0] > used[:, 1:].max(axis=1)).sum())
    # In logarithms, since the binomial coefficient of many layers is beyond a float.
    hit, miss = -log(num_experts), log1p(-1 / num_experts)
    ways = lgamma(num_layers + 1)
    return sum(
        exp(ways - lgamma(n + 1) - lgamma(num_layers - n + 1) + n * hit + (num_layers - n) * miss)
        for n in range(found, num_layers + 1)
    )


def suspicions(counts: NDArray[np.int64], top_k: int) -> list[str]:
    """Sentences on what looks like a misread tensor; empty for a plausible histogram.

    Args:
        counts: [L, E] int64, assignments.
        top_k: experts per token.
    """
    found = []
    if evenness(counts, top_k) < _FAR_BELOW:
        found.append(
            "the experts of a layer are used more equally than even routing would by chance: a "
            "strided tensor read as packed memory looks like this (whole sorted rows instead of "
            "their first K ids); compare a few rows with the engine"
        )
    if expert_zero_chance(counts) < _ALARM:
        found.append(
            "expert 0 is the busiest of too many layers: padding or a strided tensor read as ids "
            "looks like this; compare a few rows with the engine"
        )
    return found
