"""Numbers of foreign files as a trace stores them: checked against its columns, and narrowed."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.trace.schema import NO_EXPERT

# Ids are stored as uint16, of which the last is NO_EXPERT.
MAX_EXPERTS = NO_EXPERT
MAX_LAYER = 2**16 - 2
MAX_UINT32 = 2**32 - 1
MAX_WEIGHT = 65504
# All assignments of an import together: up to here float64, in which shares are computed, is exact.
MAX_ASSIGNMENTS = 2**53
_DAMAGED = "check that the file is what it should be, and is not cut or misread"


def checked_ids(ids: NDArray[np.generic], where: str, rows: str = "row") -> NDArray[np.uint16]:
    """Expert ids as they are stored, -1 as `NO_EXPERT`.

    Args:
        ids: [..., K] integers.
        where: names the ids in errors.
        rows: what an index into the axes before the last is called in errors.

    Returns:
        The ids as uint16, of the same shape.

    Raises:
        TraceError: an id is below -1 or does not fit.
    """
    _check_integers(ids, where, "ids")
    wide = ids.astype(np.int64) if ids.dtype.kind == "i" else ids.astype(np.uint64)
    wrong = (wide >= MAX_EXPERTS) | ((wide < -1) if ids.dtype.kind == "i" else False)
    if wrong.any():
        at = np.argwhere(wrong)[0]
        raise TraceError(
            f"{where}: {_place(rows, at[:-1])}: expert id {wide[tuple(at)]}, expected 0 to "
            f"{MAX_EXPERTS - 1}, or -1 for none",
            _DAMAGED,
        )
    return np.where(wide < 0, NO_EXPERT, wide).astype(np.uint16)


def checked_uint32(
    values: NDArray[np.generic], where: str, what: str, rows: str = "row"
) -> NDArray[np.uint32]:
    """Positions or token ids as they are stored.

    Args:
        values: [T] integers.
        where: names them in errors.
        what: what one of them is called there.
        rows: what an index is called there.

    Returns:
        [T] uint32.

    Raises:
        TraceError: a value is negative or does not fit.
    """
    _check_integers(values, where, f"{what}s")
    numbers: NDArray[Any] = values
    wrong = (numbers < 0) | (numbers > MAX_UINT32)
    if wrong.any():
        at = np.argwhere(wrong)[0]
        raise TraceError(
            f"{where}: {_place(rows, at)}: {what} {values[tuple(at)]}, expected 0 to {MAX_UINT32}",
            _DAMAGED,
        )
    return values.astype(np.uint32)


def stored_weights(weights: NDArray[np.generic]) -> NDArray[np.float16]:
    """Weights as float16; those beyond `MAX_WEIGHT` become infinite, which nothing may store."""
    with np.errstate(over="ignore"):
        return weights.astype(np.float16)


def summed(parts: Iterable[NDArray[np.int64]], where: str, part: str) -> NDArray[np.int64]:
    """Counts added up.

    Args:
        parts: [L, E] int64 each, all of one shape.
        where: names them in errors.
        part: what one of them is called there.

    Returns:
        [L, E] int64; [0, 0] where there are no parts.

    Raises:
        TraceError: a count is negative, or a sum is above `MAX_ASSIGNMENTS`.
    """
    total = np.zeros((0, 0))
    for index, counts in enumerate(parts):
        total = total + counts if index else counts.astype(np.float64)
        wrong = (counts < 0) | (total > MAX_ASSIGNMENTS)
        if wrong.any():
            layer, expert = np.argwhere(wrong)[0]
            raise TraceError(
                f"{where}: {part} {index}: layer {layer}, expert {expert}: "
                f"{counts[layer, expert]}, expected a count of 0 or more, and at most "
                f"{MAX_ASSIGNMENTS} in all",
                _DAMAGED,
            )
    return total.astype(np.int64)


def _check_integers(values: NDArray[np.generic], where: str, what: str) -> None:
    if values.dtype.kind not in "iu":
        raise TraceError(
            f"{where}: {what} are {values.dtype}, expected integers",
            f"export the {what} as integers",
        )


def _place(rows: str, at: NDArray[np.int64]) -> str:
    return f"{rows} {' '.join(map(str, at.tolist()))}"
