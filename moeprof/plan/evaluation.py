"""Held-out figures of a way to place, with 95 % intervals as `analyze` gives them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.intervals import (
    degrees_of_freedom,
    interval,
    resampling_weights,
    student_quantile,
)
from moeprof.placement import Estimate
from moeprof.trace.folds import deal_folds

NUM_RESAMPLES = 200

# Chooses the cells to keep in VRAM, [L, E] bool, by the assignments of each cell, [L, E].
PlaceRule = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Split:
    """Documents dealt to folds and drawn in resamples.

    Attributes:
        num_folds: F; 0 where nothing can be held out.
        fold: [G] int64, of each document group.
        weights: [R, G] float64, how often each group counts in each resample.
        degrees: degrees of freedom of the intervals; 0 where none can be given.
    """

    num_folds: int
    fold: NDArray[np.int64]
    weights: NDArray[np.float64]
    degrees: int


def split_documents(
    group_domain: NDArray[np.int64], is_training: NDArray[np.bool_], folds: int, seed: int
) -> Split:
    """Deal document groups to folds, and draw resamples of them.

    Args:
        group_domain: [G] int64, domain of each document group.
        is_training: [G] bool, whether the group has assignments to choose a placement by; only
            these take turns in the dealing, and fewer than two of them cannot be held out.
        folds: folds wished for, at least 2.
        seed: of the shuffle and the draws.
    """
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(group_domain), np.int64)
    fold[is_training] = deal_folds(group_domain[is_training], folds, rng)
    usable = int(is_training.sum())
    return Split(
        num_folds=min(folds, usable) if usable > 1 else 0,
        fold=fold,
        weights=resampling_weights(group_domain, NUM_RESAMPLES, rng),
        degrees=degrees_of_freedom(group_domain),
    )


def held_out_sets(place: PlaceRule, training: NDArray[np.int64], split: Split) -> NDArray[np.bool_]:
    """For the documents of each fold, the cells that the rule chooses on the other documents.

    Args:
        place: the rule.
        training: [G, L, E] int64, assignments to choose by.
        split: F folds.

    Returns:
        [F, L, E] bool.
    """
    sets = np.zeros((split.num_folds, *training.shape[1:]), np.bool_)
    for fold in range(split.num_folds):
        sets[fold] = place(training[split.fold != fold].sum(axis=0, dtype=np.float64))
    return sets


def held_out_coverage(
    place: PlaceRule, training: NDArray[np.int64], scored: NDArray[np.int64], split: Split
) -> list[Estimate | None]:
    """Held-out coverage, phase by phase; the intervals choose every set anew in each resample.

    Args:
        place: the rule.
        training: [G, L, E] int64, assignments to choose by.
        scored: [G, P, L, E] int64, assignments to score, in each of P phases.
        split: F folds, at least 2.

    Returns:
        P estimates; None for a phase without assignments.
    """
    once = np.ones((1, len(training)))
    weights = np.concatenate([once, split.weights])
    hits = np.zeros((len(weights), scored.shape[1]))
    flat_training = training.reshape(len(training), -1).astype(np.float64)
    flat_scored = scored.reshape(len(scored), -1).astype(np.float64)
    for fold in range(split.num_folds):
        inside = split.fold == fold
        by = (weights[:, ~inside] @ flat_training[~inside]).reshape(-1, *training.shape[1:])
        on = (weights[:, inside] @ flat_scored[inside]).reshape(-1, *scored.shape[1:])
        for resample, benefit in enumerate(by):
            # A resample may leave a fold nothing to choose by, which says nothing on the rule.
            untrained = not benefit.any() and on[resample].any()
            hits[resample] += np.nan if untrained else on[resample][:, place(benefit)].sum(axis=1)
    totals = weights @ scored.sum(axis=(2, 3))
    return [
        _share(hits[:, phase], totals[:, phase], split.degrees) if totals[0, phase] else None
        for phase in range(scored.shape[1])
    ]


def _share(hits: NDArray[np.float64], totals: NDArray[np.float64], degrees: int) -> Estimate | None:
    """First entries: the estimate; the others: resamples. None if the estimate is unknown."""
    with np.errstate(invalid="ignore"):  # a resample without assignments says nothing
        shares = hits / totals
    if np.isnan(shares[0]):
        return None
    value, low, high = interval(shares[0], shares[1:], degrees).tolist()
    if np.isnan(low):
        return Estimate(_rounded(value), None, None)
    return Estimate(_rounded(value), _rounded(low), _rounded(high))


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over documents, and the same sum in each resample of them.

    Attributes:
        value: of the documents as they are.
        resampled: [R] float64.
    """

    value: float
    resampled: NDArray[np.float64]


def total(of_group: NDArray[np.float64], split: Split) -> Total:
    """The sum of figures of each document group, [G]; whatever they depend on is kept as it is."""
    return Total(float(of_group.sum()), split.weights @ of_group)


def ratio(part: Total, whole: Total, degrees: int) -> Estimate:
    """`part / whole` with a 95 % interval over documents.

    Both are resampled together, so that what makes a document heavy in both does not widen it.

    Args:
        part: numerator.
        whole: denominator; its value is above 0.
        degrees: of freedom; below 1 there is no interval, nor where fewer than two resamples say
            anything.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample without any of the whole
        drawn = part.resampled / whole.resampled
    return _spread(part.value / whole.value, drawn[np.isfinite(drawn)], degrees)


def within(found: Estimate, least: float, most: float) -> Estimate:
    """The estimate with its interval cut to what the figure can be."""
    if found.low is None or found.high is None:
        return found
    return Estimate(found.value, max(found.low, least), min(found.high, most))


def gain(base: Total, own: Total, degrees: int) -> Estimate:
    """How much less `own` is than `base`: `base / own - 1`, as `ratio` with its interval."""
    found = ratio(base, own, degrees)
    low, high = (None if end is None else _rounded(end - 1) for end in (found.low, found.high))
    return Estimate(_rounded(found.value - 1), low, high)


def speed(tokens: NDArray[np.float64], seconds: NDArray[np.float64], split: Split) -> Estimate:
    """Tokens per second, with a 95 % interval over documents; the sets are kept as they are.

    Args:
        tokens: [G] float64, of each document group.
        seconds: [G] float64, what these tokens take; not all 0.
        split: its resamples are used.
    """
    found = ratio(total(tokens, split), total(seconds, split), split.degrees)
    return within(found, 0.0, np.inf)


def hit_share(
    hits: NDArray[np.float64], assignments: NDArray[np.float64], split: Split
) -> Estimate:
    """Share of assignments that hit, with a 95 % interval over documents; sets stay as they are.

    Args:
        hits: [G] float64, of each document group.
        assignments: [G] float64; not all 0.
        split: its resamples are used.
    """
    found = ratio(total(hits, split), total(assignments, split), split.degrees)
    return within(found, 0.0, 1.0)


def is_clear(found: Estimate, least: float) -> bool:
    """Whether a gain is at least so large, and its interval excludes none."""
    return found.low is not None and found.low > 0 and found.value >= least


def _spread(value: float, resampled: NDArray[np.float64], degrees: int) -> Estimate:
    """A figure with the interval that its resamples make."""
    if degrees < 1 or len(resampled) < 2:
        return Estimate(_rounded(value), None, None)
    half = student_quantile(degrees) * float(resampled.std())
    return Estimate(_rounded(value), _rounded(value - half), _rounded(value + half))


def _rounded(value: float) -> float:
    """Six significant digits: more would only make manifests differ."""
    return float(f"{value:.6g}")
