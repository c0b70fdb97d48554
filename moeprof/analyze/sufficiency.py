"""Whether a trace is long enough to decide, and if not, how much longer it should be."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import best_first
from moeprof.analyze.intervals import student_quantile

_DRAWS = 24  # random choices of documents behind each point of a curve
_POINTS = 8
_MOST_DOCUMENTS = 10**9
_LIKE_NORMAL = 10_000  # degrees of freedom at which Student's quantile no longer moves


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """What a hot set chosen on fewer documents serves, and how stable it is.

    Attributes:
        documents: [N] int64, documents it is chosen on, ascending.
        coverage: [N] float64, coverage of the other documents, mean over random choices.
        jaccard: [N] float64, mean Jaccard index of sets chosen on as many documents each that
            have none in common; NaN where there are not twice as many.
    """

    documents: NDArray[np.int64]
    coverage: NDArray[np.float64]
    jaccard: NDArray[np.float64]


def learning_curve(
    counts: NDArray[np.int64],
    group_domain: NDArray[np.int64],
    bytes_of: NDArray[np.int64],
    size: int,
    rng: np.random.Generator,
) -> LearningCurve:
    """Choose hot sets on fewer and fewer documents, each domain in proportion.

    Args:
        counts: [G, C] int64, assignments of documents, at least two.
        group_domain: [G] int64.
        bytes_of: [C] int64.
        size: cells in a hot set.
        rng: of the choices.
    """
    numbers = _numbers(len(counts), len(np.unique(group_domain)))
    coverage = np.empty((_DRAWS, len(numbers)))
    jaccard = np.full((_DRAWS, len(numbers)), np.nan)
    whole = counts.sum(axis=0)
    for draw in range(_DRAWS):
        running = np.cumsum(counts[_in_proportion(group_domain, rng)], axis=0)
        chosen = running[numbers - 1]
        sets = best_first(chosen, bytes_of[None], stable=False)[:, :size]
        rest = whole - chosen
        coverage[draw] = np.take_along_axis(rest, sets, axis=1).sum(axis=1) / rest.sum(axis=1)
        twice = 2 * numbers <= len(counts)
        others = running[2 * numbers[twice] - 1] - chosen[twice]
        again = best_first(others, bytes_of[None], stable=False)[:, :size]
        jaccard[draw, twice] = [
            len(np.intersect1d(one, other)) / len(np.union1d(one, other))
            for one, other in zip(sets[twice], again, strict=True)
        ]
    return LearningCurve(numbers, coverage.mean(axis=0), jaccard.mean(axis=0))


def _numbers(documents: int, domains: int) -> NDArray[np.int64]:
    """Numbers of documents to choose on: at least one left, spaced by equal factors."""
    most = max(1, documents - max(1, documents // 5))
    spaced = np.geomspace(min(domains, most), most, _POINTS).round().astype(np.int64)
    halves = [documents // 2] if documents // 2 >= min(domains, most) else []
    return np.unique(np.append(spaced, halves)).astype(np.int64)


def _in_proportion(group_domain: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of the documents, of which every beginning has the domains in proportion."""
    key = np.empty(len(group_domain))
    for domain in np.unique(group_domain):
        (members,) = np.nonzero(group_domain == domain)
        place = rng.permutation(len(members)) + rng.random()
        key[members] = place / len(members)
    return np.argsort(key, kind="stable")


def loss_from_shortness(curve: LearningCurve, documents: int) -> float:
    """Coverage that a hot set chosen on all documents lacks against one chosen on endless text.

    Near the best set, what is lost grows with the square of the error of the counts, so coverage
    of new documents behaves as c - a / n for n documents; a is fitted by least squares, points
    weighted by n.

    Returns:
        a / `documents`, at least 0; NaN where the curve has fewer than two points.
    """
    if len(curve.documents) < 2:
        return float("nan")
    inverse = 1 / curve.documents
    slope, _ = np.polyfit(inverse, curve.coverage, 1, w=np.sqrt(curve.documents))
    return max(0.0, -float(slope)) / documents


def documents_needed(
    half_width: float, loss: float, documents: int, degrees: int, tolerance: float
) -> int:
    """Documents after which coverage is known, and as good as it gets, to within a tolerance.

    The interval's half width shrinks with the square root of the number of documents, and with
    Student's quantile; the loss with their number.

    Args:
        half_width: of the 95 % interval of held-out coverage.
        loss: from `loss_from_shortness`.
        documents: of the trace.
        degrees: degrees of freedom of the interval.
        tolerance: above 0.

    Returns:
        At least `documents`.
    """

    def suffices(number: int) -> bool:
        narrower = np.sqrt(documents / number) / student_quantile(degrees)
        later = min(degrees + number - documents, max(degrees, _LIKE_NORMAL))
        half = half_width * narrower * student_quantile(later)
        return bool(half <= tolerance and loss * documents / number <= tolerance)

    low, high = documents, documents
    while not suffices(high) and high < _MOST_DOCUMENTS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return documents if suffices(documents) else high
