"""95 % intervals over documents.

Every interval is *estimate* ± t x s, where s is the standard deviation over bootstrap resamples
of whole document groups, drawn inside each domain, and t is Student's 0.975 quantile with
(groups - domains) degrees of freedom. What a resample repeats differs:

- In-sample coverage keeps the hot set. The best set's coverage is a maximum over sets, whose
  first-order change with the documents' weights is that at the fixed maximiser (Danskin 1966,
  SIAM J. Appl. Math. 14(4)); choosing anew would add the optimism of the resample on top.
- Held-out coverage repeats everything: each fold's set is chosen anew on the resampled training
  documents and scored on the resampled documents of the fold. Folds are dealt once, before
  resampling, so copies of a document are never on both sides (Jiang, Varma & Simon 2008, Stat.
  Appl. Genet. Mol. Biol. 7(1), article 8). Keeping the sets would ignore that folds share their
  training documents (Bates, Hastie & Tibshirani 2024, JASA 119(546)); `test_intervals.py` checks
  how often the interval holds the truth.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.coverage import covered, share_of
from moeprof.analyze.hot_sets import best_first

_CHUNK_BYTES = 8 << 20  # of resampled counts held at once; a chunk should stay in the cache


def resampling_weights(
    group_domain: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """How often each group counts in each resample.

    Of the n groups of a domain, n - 1 are drawn with replacement and weighted by n / (n - 1),
    which makes the variance unbiased (Rao & Wu 1988, JASA 83(401), section 2). The only group
    of a domain always counts once.

    Args:
        group_domain: [G] int64.
        resamples: R.
        rng: of the draws.

    Returns:
        [R, G] float64; the sum over the groups of a domain is their number.
    """
    weights = np.ones((resamples, len(group_domain)))
    for domain in np.unique(group_domain):
        (members,) = np.nonzero(group_domain == domain)
        size = len(members)
        if size > 1:
            drawn = rng.multinomial(size - 1, np.full(size, 1 / size), size=resamples)
            weights[:, members] = drawn * (size / (size - 1))
    return weights


def degrees_of_freedom(group_domain: NDArray[np.int64]) -> int:
    """Document groups less one for each domain; 0 where no interval can be given."""
    return len(group_domain) - len(np.unique(group_domain))


@cache
def student_quantile(degrees: int, outside: float = 0.05) -> float:
    """The quantile of Student's t beyond whose two ends lies `outside`; NaN without degrees.

    Computed from the density with t = sqrt(degrees) tan(angle), under which it is proportional
    to cos(angle) ** (degrees - 1) (Abramowitz & Stegun, 26.7.3 and 26.7.4).
    """
    if degrees < 1:
        return float("nan")
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    at = np.interp(1 - outside, mass / mass[-1], angle)
    return float(np.sqrt(degrees) * np.tan(at))


def interval(
    estimate: NDArray[np.float64],
    resampled: NDArray[np.float64],
    degrees: int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> NDArray[np.float64]:
    """Estimate with its 95 % interval, inside `bounds`.

    Args:
        estimate: [...], inside `bounds`.
        resampled: [R, ...]; NaN where a resample could not be scored.
        degrees: from `degrees_of_freedom`.
        bounds: least and greatest value that is possible.

    Returns:
        [3, ...] float64: estimate, low, high; low and high are NaN without degrees of freedom, and
        where fewer than two resamples could be scored.
    """
    scored = np.isfinite(resampled)
    used = np.maximum(scored.sum(axis=0), 1)
    clean = np.where(scored, resampled, 0.0)
    mean = clean.sum(axis=0) / used
    spread = np.where(scored, resampled - mean, 0.0)
    variance = np.where(scored.sum(axis=0) < 2, np.nan, (spread**2).sum(axis=0) / used)
    half = student_quantile(degrees) * np.sqrt(variance)
    low, high = np.clip(estimate - half, *bounds), np.clip(estimate + half, *bounds)
    return np.stack([estimate, low, high])


def ratio(
    weights: NDArray[np.float64],
    part: NDArray[Any],
    whole: NDArray[Any],
    degrees: int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> NDArray[np.float64]:
    """A ratio of two sums over documents with its 95 % interval.

    Args:
        weights: [R, G], from `resampling_weights`.
        part: [G, ...].
        whole: [G, ...], of the same shape.
        degrees: from `degrees_of_freedom`.
        bounds: as in `interval`.

    Returns:
        [3, ...] float64: estimate, low, high; NaN where `whole` is zero.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0: nothing to divide
        estimate = part.sum(axis=0) / whole.sum(axis=0)
        resampled = np.tensordot(weights, part, axes=1) / np.tensordot(weights, whole, axes=1)
    return interval(estimate, resampled, degrees, bounds)


def resampled_share(
    weights: NDArray[np.float64], served: NDArray[np.float64], total: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Coverage in every resample, with the sets kept.

    Args:
        weights: [R, G], from `resampling_weights`.
        served: [G, P, S], assignments that the sets serve.
        total: [G, P], assignments.

    Returns:
        [R, P, S] float64.
    """
    part = np.tensordot(weights, served, axes=1)
    return share_of(part, weights @ total)


def resampled_held_out(
    weights: NDArray[np.float64],
    counts: NDArray[np.int64],
    bytes_of: NDArray[np.int64],
    fold: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Held-out coverage in every resample, with the sets chosen anew.

    Args:
        weights: [R, G], from `resampling_weights`.
        counts: [G, P, C] int64.
        bytes_of: [P, C] int64.
        fold: [G] int64.
        sizes: [S] int64.

    Returns:
        [R, P, S] float64; NaN where a resample left a fold to score without training documents.
    """
    num_groups, pools, cells = counts.shape
    flat = counts.reshape(num_groups, -1).astype(np.float64)
    per_pool = counts.sum(axis=-1)
    chunk = max(1, _CHUNK_BYTES // flat[0].nbytes)
    served = np.zeros((len(weights), pools, len(sizes)))
    for k in range(int(fold.max()) + 1):
        inside = fold == k
        held_out, others = flat[inside], flat[~inside]
        for start in range(0, len(weights), chunk):
            drawn = weights[start : start + chunk]
            scored = (drawn[:, inside] @ held_out).reshape(-1, pools, cells)
            training = (drawn[:, ~inside] @ others).reshape(-1, pools, cells)
            order = best_first(training, bytes_of, stable=False)
            served[start : start + chunk] += covered(scored, order, sizes)
        untrained = weights[:, ~inside] @ per_pool[~inside] == 0
        served[untrained & (weights[:, inside] @ per_pool[inside] > 0)] = np.nan
    return share_of(served, weights @ per_pool)
