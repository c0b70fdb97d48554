"""The list of cells that a static policy keeps."""

import numpy as np
from numpy.typing import NDArray


def static_set(
    uses: NDArray[np.float64], cell_bytes: NDArray[np.int64], budget_bytes: int
) -> NDArray[np.bool_]:
    """The cells used most per byte that fit a budget, taken one by one.

    Among equals the lower index goes first; cells that were never used fill what is left. With
    cells of one size no other list serves more of `uses`.

    Args:
        uses: [C] float64, uses of each cell.
        cell_bytes: [C] int64.
        budget_bytes: bytes that the cells may take together.

    Returns:
        [C] bool.
    """
    order = np.argsort(-(uses / (cell_bytes / cell_bytes.min())), kind="stable")
    taken = np.zeros(len(uses), np.bool_)
    smallest = int(cell_bytes.min())
    if (cell_bytes == smallest).all():
        taken[order[: budget_bytes // smallest]] = True
        return taken
    room = budget_bytes
    for cell, size in zip(order.tolist(), cell_bytes[order].tolist(), strict=True):
        if room < smallest:
            break
        if size <= room:
            taken[cell] = True
            room -= size
    return taken
