"""Whether the documents of two collections could be exchanged: a permutation test of routing.

A document's *profile* is the share of its assignments that each expert of a layer receives. If two
collections were drawn alike, any split of their documents into two of the same sizes is as likely
as the one at hand (Fisher 1935, The Design of Experiments; Phipson & Smyth 2010, Stat. Appl. Genet.
Mol. Biol. 9(1), article 39, for counting the split at hand).

The statistic is the squared distance between the mean profiles, estimated without bias: products of
a document with itself, which carry its noise, are left out (Gretton et al. 2012, JMLR 13, equation
3, with the linear kernel). So documents of different length in the two collections do not look like
a difference.
"""

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ExchangeTest:
    """What a permutation test found.

    Attributes:
        p_value: how likely a distance as large is if the documents are exchangeable.
        smallest_p: the least that so few documents can give.
        layer_p: [L] float64, the same for each layer, adjusted for looking at all of them by the
            largest of their standardised distances (Westfall & Young 1993, single step).
        chance_divergence: [L] float64, mean Jensen-Shannon divergence of the permuted splits.
    """

    p_value: float
    smallest_p: float
    layer_p: NDArray[np.float64]
    chance_divergence: NDArray[np.float64]


def exchange_test(
    counts: NDArray[np.int64],
    second: NDArray[np.bool_],
    permutations: int,
    rng: np.random.Generator,
) -> ExchangeTest | None:
    """Compare two collections of documents.

    Args:
        counts: [G, L, E] int64, assignments of each document; documents that lack a layer are
            left out.
        second: [G] bool, whether a document is of the second collection.
        permutations: random splits, beside the one at hand.
        rng: of the splits.

    Returns:
        None where either collection has fewer than two documents, which leaves no distance to
        estimate.
    """
    whole = (counts.sum(axis=2) > 0).all(axis=1)
    counts, second = counts[whole], second[whole]
    num_documents, num_second = len(second), int(second.sum())
    if min(num_second, num_documents - num_second) < 2:
        return None
    profiles = counts / counts.sum(axis=2, keepdims=True)
    splits = np.zeros((permutations + 1, num_documents), bool)
    splits[0] = second
    for row in splits[1:]:
        row[rng.permutation(num_documents)[:num_second]] = True
    distance = np.stack([_distances(layer, splits) for layer in profiles.transpose(1, 0, 2)])
    total = distance.sum(axis=0)
    spread = distance.std(axis=1, keepdims=True)
    middle = distance.mean(axis=1, keepdims=True)
    standard = (distance - middle) / np.where(spread > 0, spread, 1.0)
    largest = standard.max(axis=0)
    # Of collections of one size, a split and its mirror image are the same distance apart.
    alike = 2 if 2 * num_second == num_documents else 1
    return ExchangeTest(
        p_value=_share_as_large(total, total[0]),
        smallest_p=max(1 / (permutations + 1), alike / comb(num_documents, num_second)),
        layer_p=np.array([_share_as_large(largest, one) for one in standard[:, 0]]),
        chance_divergence=_divergences(counts, splits[1:]).mean(axis=0),
    )


def _share_as_large(values: NDArray[np.float64], found: float) -> float:
    """Share of values that are at least the one found, or equal it but for rounding."""
    rounding = 1e-12 * float(np.abs(values).max())
    return float((values >= found - rounding).mean())


def _distances(profiles: NDArray[np.float64], splits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[R] float64: squared distance of the mean profiles in each split, without bias.

    Args:
        profiles: [G, E] float64.
        splits: [R, G] bool, documents of the second collection.
    """
    gram = profiles @ profiles.T
    own = np.diag(gram)
    second = splits.astype(np.float64)
    first = 1.0 - second
    inside = [
        (np.einsum("rg,rg->r", side @ gram, side) - side @ own) / _pairs(side)
        for side in (first, second)
    ]
    sizes = first.sum(axis=1) * second.sum(axis=1)
    across = np.einsum("rg,rg->r", first @ gram, second) / sizes
    distance: NDArray[np.float64] = inside[0] + inside[1] - 2 * across
    return distance


def _pairs(side: NDArray[np.float64]) -> NDArray[np.float64]:
    size: NDArray[np.float64] = side.sum(axis=1)
    return size * (size - 1)


def _divergences(counts: NDArray[np.int64], splits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[R, L] float64: Jensen-Shannon divergence of the pooled collections of each split."""
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    total = flat.sum(axis=0)
    result = np.empty((len(splits), counts.shape[1]))
    for row, split in enumerate(splits):
        second = (split @ flat).reshape(counts.shape[1:])
        result[row] = divergence(total.reshape(second.shape) - second, second)
    return result


def divergence(first: NDArray[np.generic], second: NDArray[np.generic]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence of histograms, in bits (Lin 1991, IEEE Trans. Inf. Theory 37(1)).

    Args:
        first: [..., E], counts.
        second: [..., E], counts.

    Returns:
        [...] float64 in [0, 1]: 0 for equal shares, 1 for disjoint experts; NaN where either
        counts nothing.
    """
    with np.errstate(invalid="ignore"):  # 0 / 0: nothing counted
        p = first / first.sum(axis=-1, keepdims=True)
        q = second / second.sum(axis=-1, keepdims=True)
    bits: NDArray[np.float64] = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.clip(bits, 0.0, 1.0)


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    logs = np.log2(np.where(shares > 0, shares, 1.0))
    entropy: NDArray[np.float64] = -(shares * logs).sum(axis=-1)
    return entropy
