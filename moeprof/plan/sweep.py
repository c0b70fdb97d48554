"""The budgets of a sweep, from the text that names them."""

import re

import numpy as np

from moeprof.errors import CapacityError
from moeprof.units import parse_size

_POINTS = 13
_SWEEP = re.compile(r"\s*vram\s*=(?P<low>.+?)\.\.(?P<high>.+?)(:(?P<points>\d+))?\s*")
_REMEDY = "write it as vram=4GB..96GB, or vram=4GB..96GB:25 for 25 budgets"


def sweep_budgets(text: str) -> tuple[int, ...]:
    """Budgets in bytes, each larger than the one before by the same factor.

    Args:
        text: `vram=LOW..HIGH` for 13 budgets, or `vram=LOW..HIGH:POINTS`.

    Raises:
        CapacityError: it is not such a text, or its sizes do not ascend.
    """
    match = _SWEEP.fullmatch(text)
    if match is None:
        raise CapacityError(f"sweep: {text!r} is no range of VRAM", _REMEDY)
    low, high = parse_size(match["low"]), parse_size(match["high"])
    points = int(match["points"] or _POINTS)
    if not 0 < low < high:
        raise CapacityError(f"sweep: {text!r} does not ascend from above 0", _REMEDY)
    if not 2 <= points <= 1000:
        raise CapacityError(f"sweep: {text!r} has {points} budgets, expected 2 to 1000", _REMEDY)
    return tuple(sorted({round(float(one)) for one in np.geomspace(low, high, points)}))
