"""A cache of experts, its policies, and reuse distances: plain loops over plain lists."""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_NEVER = np.inf


def reuse_distances(
    batch_start: NDArray[np.int64],
    cells: NDArray[np.uint32],
    num_cells: int,
    cell_bytes: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """What was looked up between the last use of each cell and its batch.

    Args:
        batch_start: [B + 1] int64, where each batch begins in `cells`.
        cells: [N] uint32, distinct within a batch.
        num_cells: C, every cell is below.
        cell_bytes: [C] int64; None to count cells.

    Returns:
        [N] int64, the bytes (or number) of the distinct other cells; -1 for a first use.
    """
    sizes = np.ones(num_cells, np.int64) if cell_bytes is None else cell_bytes
    distances = np.full(len(cells), -1, np.int64)
    for first, end in pairwise(batch_start):
        for lookup in range(first, end):
            before = np.flatnonzero(cells[:first] == cells[lookup])
            if len(before):
                since = np.unique(cells[before[-1] + 1 : first])
                distances[lookup] = sizes[since].sum()
    return distances


class ReferenceCache:
    """The definition of a cache of experts; one batch after the other.

    A batch looks up its cells against what is present. Then room is made for each missed cell in
    turn, without giving up a cell that the batch uses, and the cell is brought in; then the batch
    counts as the latest use of its cells. Where the budget is hard (with a limit of uploads, with
    hysteresis, with a budget for each layer) a cell that finds no room stays outside; otherwise
    the cache may exceed its budget, and the next batch begins by trimming it.

    Args:
        order: `lru`, `lfu`, `lfru` or `belady`.
        cell_bytes: [C] int64.
        pinned: [C] bool, cells that are always present and count for no budget.
        budgets: [P] int64, of P runs of C / P cells.
        future: for every lookup of the replay the batch that uses the cell next, `inf` for none.
        options: `decay`, `recent_share`, `max_uploads`, `hysteresis`.
    """

    def __init__(
        self,
        order: str,
        cell_bytes: NDArray[np.int64],
        pinned: NDArray[np.bool_],
        budgets: NDArray[np.int64],
        future: NDArray[np.float64],
        **options: float | None,
    ) -> None:
        self.order = order
        self.sizes = cell_bytes.tolist()
        self.pinned = set(np.flatnonzero(pinned).tolist())
        self.budgets = budgets.tolist()
        self.future = future
        self.growth = 1 / (options.get("decay") or 1.0)
        self.recent_share = options.get("recent_share")
        self.max_uploads = options.get("max_uploads")
        self.hysteresis = options.get("hysteresis")
        limited = self.max_uploads is not None or self.hysteresis is not None
        self.is_hard = limited or len(self.budgets) > 1
        self.clear()

    def clear(self) -> None:
        """Forget everything but what is pinned."""
        self.present: set[int] = set()
        self.recent: list[int] = []  # of lfru, the oldest first
        self.last_tick: dict[int, int] = {}
        self.next_use: dict[int, float] = {}
        self.score: dict[int, float] = {}
        self.increment = 1.0

    def step(self) -> None:
        """A token has passed: what was counted is worth less beside what will be."""
        self.increment *= self.growth

    def batch(self, cells: list[int], tick: int) -> tuple[list[bool], list[int]]:
        """Which of a batch's cells hit, and which were brought in."""
        if not cells:
            return [], []
        pool = cells[0] * len(self.budgets) // len(self.sizes)
        self._make_room(pool, [], None)
        for cell in cells:
            self.score[cell] = self.score.get(cell, 0.0) + self.increment
        hits = [cell in self.present or cell in self.pinned for cell in cells]
        uploads: list[int] = []
        for cell, hit in zip(cells, hits, strict=True):
            if hit or len(uploads) == self.max_uploads:
                continue
            if self._make_room(pool, cells, cell) or not self.is_hard:
                self.present.add(cell)
                uploads.append(cell)
        for place, cell in enumerate(cells):
            if cell in self.present:
                self._use(cell, tick + place, pool)
        return hits, uploads

    def _use(self, cell: int, tick: int, pool: int) -> None:
        self.last_tick[cell] = tick
        self.next_use[cell] = self.future[tick]
        if self.order != "lfru":
            return
        own = [other for other in self.recent if other != cell and self._pool(other) == pool]
        room = int((self.recent_share or 0.0) * self.budgets[pool])
        own.append(cell)
        while sum(self.sizes[other] for other in own) > room:
            own.pop(0)
        self.recent = [other for other in self.recent if self._pool(other) != pool] + own

    def _pool(self, cell: int) -> int:
        return cell * len(self.budgets) // len(self.sizes)

    def _make_room(self, pool: int, in_use: list[int], wanted: int | None) -> bool:
        """Give up entries of a pool until `wanted` fits; whether it does."""
        entries = {cell for cell in self.present if self._pool(cell) == pool}
        need = 0 if wanted is None else self.sizes[wanted]
        victims: list[int] = []
        while sum(self.sizes[cell] for cell in entries) + need > self.budgets[pool]:
            candidates = sorted(entries - set(in_use), key=self._key())
            stays = not candidates or not self._is_worth(wanted, candidates[0])
            if stays:
                if wanted is None or not self.is_hard:
                    self._give_up(victims)
                return False
            victims.append(candidates[0])
            entries.remove(candidates[0])
        self._give_up(victims)
        return True

    def _give_up(self, victims: list[int]) -> None:
        self.present -= set(victims)
        self.recent = [cell for cell in self.recent if cell not in victims]

    def _is_worth(self, wanted: int | None, victim: int) -> bool:
        if wanted is None or self.hysteresis is None:
            return True
        return self.score[wanted] > (1 + self.hysteresis) * self.score[victim]

    def _key(self) -> Callable[[int], tuple[float, ...]]:
        """What goes first, by the least key."""
        if self.order == "lru":
            return lambda cell: (self.last_tick[cell],)
        if self.order == "belady":
            return lambda cell: (-self.next_use[cell], self.last_tick[cell])
        if self.order == "lfu":
            return lambda cell: (self.score[cell], self.last_tick[cell])

        def safe_last(cell: int) -> tuple[float, ...]:
            if cell in self.recent:
                return (1, self.last_tick[cell], 0)
            return (0, self.score[cell], self.last_tick[cell])

        return safe_last


_Served: TypeAlias = tuple[
    NDArray[np.uint8],
    NDArray[np.uint16],
    NDArray[np.uint32],
    NDArray[np.uint16],
    NDArray[np.int64],
]


def replay_lookups(
    batch_start: NDArray[np.int64],
    cells: NDArray[np.uint32],
    uses: NDArray[np.unsignedinteger],
    batches_per_step: int,
    restarts: NDArray[np.int64],
    *cache: object,
    **options: float | None,
) -> _Served:
    """Replay a policy; see `ReferenceCache`.

    Args:
        batch_start: [B + 1] int64.
        cells: [N] uint32.
        uses: [N], assignments behind each lookup.
        batches_per_step: batches of one token or window.
        restarts: batches before which the cache is emptied.
        cache: order, cell_bytes, pinned and budgets of the cache.
        options: of the cache.

    Returns:
        Whether each lookup hit; of each batch the hits, the assignments behind them, the cells
        brought in, their bytes.
    """
    future = _next_uses(batch_start, cells, set(restarts.tolist()))
    order, cell_bytes, pinned, budgets = cache
    held = ReferenceCache(order, cell_bytes, pinned, budgets, future, **options)  # type: ignore[arg-type]
    is_hit: list[bool] = []
    rows = []
    for batch, (first, end) in enumerate(pairwise(batch_start)):
        if batch in restarts:
            held.clear()
        hits, uploads = held.batch(cells[first:end].tolist(), int(first))
        is_hit += hits
        served = int(uses[first:end][np.asarray(hits, np.bool_)].sum())
        rows.append((sum(hits), served, len(uploads), sum(held.sizes[cell] for cell in uploads)))
        if (batch + 1) % batches_per_step == 0:
            held.step()
    table = np.asarray(rows, np.int64).reshape(-1, 4)
    return (
        np.asarray(is_hit, np.uint8),
        table[:, 0].astype(np.uint16),
        table[:, 1].astype(np.uint32),
        table[:, 2].astype(np.uint16),
        table[:, 3],
    )


def look_up_sets(
    batch_start: NDArray[np.int64],
    cells: NDArray[np.uint32],
    uses: NDArray[np.unsignedinteger],
    is_member: NDArray[np.uint8],
    set_of_batch: NDArray[np.uint32],
) -> _Served:
    """Look cells up in lists that never change.

    Args:
        batch_start: [B + 1] int64.
        cells: [N] uint32.
        uses: [N], assignments behind each lookup.
        is_member: [S, C], whether each list holds each cell.
        set_of_batch: [B] uint32, below S.

    Returns:
        As `replay_lookups`; nothing is brought in.
    """
    is_hit: list[bool] = []
    rows = []
    for chosen, (first, end) in zip(set_of_batch, pairwise(batch_start), strict=True):
        hits = [bool(is_member[chosen, cell]) for cell in cells[first:end]]
        is_hit += hits
        rows.append((sum(hits), int(uses[first:end][np.asarray(hits, np.bool_)].sum())))
    table = np.asarray(rows, np.int64).reshape(-1, 2)
    return (
        np.asarray(is_hit, np.uint8),
        table[:, 0].astype(np.uint16),
        table[:, 1].astype(np.uint32),
        np.zeros(len(rows), np.uint16),
        np.zeros(len(rows), np.int64),
    )


def _next_uses(
    batch_start: NDArray[np.int64], cells: NDArray[np.uint32], restarts: set[int]
) -> NDArray[np.float64]:
    """For every lookup the batch that uses its cell next; nothing counts beyond a restart."""
    found = np.full(len(cells), _NEVER)
    batch_of = np.repeat(np.arange(len(batch_start) - 1), np.diff(batch_start))
    for lookup, cell in enumerate(cells):
        for later in range(lookup + 1, len(cells)):
            if any(batch_of[lookup] < restart <= batch_of[later] for restart in restarts):
                break
            if cells[later] == cell:
                found[lookup] = batch_of[later]
                break
    return found
