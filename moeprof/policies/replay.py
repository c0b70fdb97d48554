"""Replaying policies over the lookups of a trace."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moeprof.native import look_up_sets, replay_lookups, replay_optimum
from moeprof.policies.accesses import Accesses
from moeprof.policies.held_out import HeldOut
from moeprof.policies.policy import Policy
from moeprof.policies.static_set import static_set
from moeprof.policies.user_policy import CacheFacts, Guarded
from moeprof.trace import PHASES


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a policy did with every batch of some accesses.

    Attributes:
        accesses: that were replayed.
        policy: that was replayed.
        budget_bytes: bytes that the entries might take.
        is_hit: [N] bool, whether the cell of each lookup was present.
        hits: [B] uint16, lookups whose cell was present.
        served: [B] uint32, assignments behind these.
        uploads: [B] uint16, cells brought in.
        bytes_read: [B] int64, their bytes.
    """

    accesses: Accesses
    policy: Policy
    budget_bytes: int
    is_hit: NDArray[np.bool_]
    hits: NDArray[np.uint16]
    served: NDArray[np.uint32]
    uploads: NDArray[np.uint16]
    bytes_read: NDArray[np.int64]

    @property
    def misses(self) -> NDArray[np.int64]:
        """[B] int64, lookups whose cell was absent."""
        return self.accesses.lookups - self.hits

    def hit_rate(self, phase: str) -> float:
        """Share of the lookups of a phase that hit; NaN without lookups.

        In decode a lookup is an assignment. In prefill it is not: an expert is looked up once for
        all tokens of a prompt; `coverage` counts these.
        """
        accesses = self.accesses
        num_rows = accesses.shape.num_moe_layers
        hits = self.hits.reshape(-1, num_rows).sum(axis=1, dtype=np.int64)
        lookups = np.diff(accesses.batch_start[::num_rows])
        chosen = accesses.step_phase == PHASES.index(phase)
        return _ratio(hits[chosen].sum(), lookups[chosen].sum())

    def coverage(self, phase: str) -> float:
        """Share of the assignments of a phase whose expert was present; NaN without any."""
        accesses = self.accesses
        chosen = accesses.phase == PHASES.index(phase)
        behind = np.add.reduceat(
            np.append(accesses.uses, 0), accesses.batch_start[:-1], dtype=np.int64
        )
        behind[accesses.lookups == 0] = 0
        return _ratio(self.served[chosen].sum(dtype=np.int64), behind[chosen].sum())

    def total_bytes_read(self, phase: str) -> int:
        """Bytes brought into the cache in a phase."""
        return int(self.bytes_read[self.accesses.phase == PHASES.index(phase)].sum())


def _ratio(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else float("nan")


def replay(
    accesses: Accesses,
    policy: Policy,
    budget_bytes: int,
    cell_bytes: NDArray[np.int64],
    training: NDArray[np.generic] | None = None,
    restart: bool = False,
) -> ReplayResult:
    """Replay one policy under one budget.

    A batch looks up each of its cells once. Then the missed cells that the policy admits are
    brought in and others are given up until all fit the budget, but none that the batch itself
    used. The cache starts empty, but for what is pinned, and goes on from prefill to decode and,
    without `restart`, from document to document.

    `belady` gives up the entry whose next use lies farthest ahead. With entries of one size no
    policy that brings in every missed cell has fewer misses; with several sizes, for which the
    best choice is NP-hard, it is a good one but not the best. `optimum` may leave a missed cell
    outside, begins with what it will need, and takes every entry for as small as the smallest: an
    upper bound of the hits of any policy, reached where entries have one size. It is found for
    each phase apart.

    Args:
        accesses: what is looked up.
        policy: what decides.
        budget_bytes: bytes that the entries may take.
        cell_bytes: [L, E] or [L * E] int64, bytes of each cell.
        training: [L, E] or [L * E], uses of each cell that the policy learns from.
        restart: whether the cache, and what it has counted, starts anew with each document.

    Raises:
        MoeprofError: a policy of a user failed.
        ValueError: the policy learns, and there is no `training`.
    """
    sizes = np.ascontiguousarray(cell_bytes, np.int64).reshape(-1)
    pools = _pool_budgets(accesses, policy, budget_bytes, sizes)
    pinned = np.zeros(len(sizes), np.bool_)
    if policy.learns:
        if training is None:
            raise ValueError(f"policy {policy.name} learns: training is needed")
        pinned = _pinned(policy, sizes, pools, training)
    if policy.order == "static":
        everywhere = np.zeros(accesses.num_batches, np.uint32)
        arrays = _looked_up(accesses, pinned[None], everywhere)
    else:
        pools = pools - np.where(pinned, sizes, 0).reshape(len(pools), -1).sum(axis=1)
        arrays = _replayed(accesses, policy, (sizes, pinned, pools), _restarts(accesses, restart))
    return ReplayResult(accesses, policy, budget_bytes, *arrays)


def replay_held_out(
    accesses: Accesses,
    policy: Policy,
    budget_bytes: int,
    cell_bytes: NDArray[np.int64],
    held_out: HeldOut,
    restart: bool = False,
) -> ReplayResult:
    """Replay a policy over documents that it has not learned from.

    A policy that learns is replayed over the documents of each fold with what was learned on the
    others; its cache starts anew with each fold. One that does not is replayed over all.

    Args:
        accesses: what is looked up.
        policy: what decides.
        budget_bytes: bytes that the entries may take.
        cell_bytes: [L, E] or [L * E] int64, bytes of each cell.
        held_out: folds of documents.
        restart: as in `replay`.

    Raises:
        MoeprofError: a policy of a user failed.
    """
    if not policy.learns:
        return replay(accesses, policy, budget_bytes, cell_bytes, restart=restart)
    fold_of_step = held_out.fold_of_sequence[accesses.step_sequence]
    if policy.order == "static":
        sizes = np.ascontiguousarray(cell_bytes, np.int64).reshape(-1)
        pools = _pool_budgets(accesses, policy, budget_bytes, sizes)
        sets = np.stack([_pinned(policy, sizes, pools, learned) for learned in held_out.training])
        set_of_batch = np.repeat(fold_of_step.astype(np.uint32), accesses.shape.num_moe_layers)
        found = _looked_up(accesses, sets, set_of_batch)
        return ReplayResult(accesses, policy, budget_bytes, *found)
    merged = _nothing(accesses)
    for fold, training in enumerate(held_out.training):
        steps = fold_of_step == fold
        part = replay(accesses.select(steps), policy, budget_bytes, cell_bytes, training, restart)
        batches = np.repeat(steps, accesses.shape.num_moe_layers)
        found = (part.is_hit, part.hits, part.served, part.uploads, part.bytes_read)
        _put(merged, accesses, batches, found)
    return ReplayResult(accesses, policy, budget_bytes, *merged)


def _pinned(
    policy: Policy,
    sizes: NDArray[np.int64],
    pools: NDArray[np.int64],
    training: NDArray[np.generic],
) -> NDArray[np.bool_]:
    """[C] bool: the cells that a policy that learns keeps in its part of each pool."""
    share = 1.0 if policy.order == "static" else policy.pinned
    learned = np.asarray(training, np.float64).reshape(len(pools), -1)
    of_pool = sizes.reshape(len(pools), -1)
    rooms = (share * pools).astype(np.int64).tolist()
    return np.concatenate([static_set(*own) for own in zip(learned, of_pool, rooms, strict=True)])


def _pool_budgets(
    accesses: Accesses, policy: Policy, budget_bytes: int, sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[P] int64: the budget, or each layer's part of it."""
    if policy.scope == "global":
        return np.array([budget_bytes], np.int64)
    of_layer = sizes.reshape(accesses.shape.num_moe_layers, -1).sum(axis=1)
    total = int(of_layer.sum())
    return np.array([budget_bytes * int(part) // total for part in of_layer], np.int64)


def _restarts(accesses: Accesses, restart: bool) -> NDArray[np.int64]:
    """Batches before which the cache is emptied."""
    if not restart:
        return np.empty(0, np.int64)
    return accesses.document_starts * accesses.shape.num_moe_layers


_Arrays = tuple[
    NDArray[np.bool_],
    NDArray[np.uint16],
    NDArray[np.uint32],
    NDArray[np.uint16],
    NDArray[np.int64],
]


def _nothing(accesses: Accesses) -> _Arrays:
    """What hits; hits, assignments served, uploads and bytes read of batches, all 0."""
    num_batches = accesses.num_batches
    return (
        np.zeros(len(accesses.cells), np.bool_),
        np.zeros(num_batches, np.uint16),
        np.zeros(num_batches, np.uint32),
        np.zeros(num_batches, np.uint16),
        np.zeros(num_batches, np.int64),
    )


def _put(into: _Arrays, accesses: Accesses, batches: NDArray[np.bool_], found: _Arrays) -> None:
    """Set the marked batches and their lookups; `found` holds these alone."""
    into[0][np.repeat(batches, accesses.lookups)] = found[0]
    into[1][batches] = found[1]
    into[2][batches] = found[2]
    into[3][batches] = found[3]
    into[4][batches] = found[4]


def _looked_up(
    accesses: Accesses, sets: NDArray[np.bool_], set_of_batch: NDArray[np.uint32]
) -> _Arrays:
    """What lists of cells hold: `sets` [S, C], and which of them is that of each batch."""
    lookups = (accesses.batch_start, accesses.cells, accesses.uses)
    found = look_up_sets(*lookups, sets.view(np.uint8), set_of_batch)
    return found[0].view(np.bool_), *found[1:]


def _replayed(
    accesses: Accesses,
    policy: Policy,
    room: tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]],
    restarts: NDArray[np.int64],
) -> _Arrays:
    """`room` holds bytes and pins of each cell and the budget of each pool."""
    sizes, pinned, pools = room
    lookups = (accesses.batch_start, accesses.cells, accesses.uses)
    num_rows = accesses.shape.num_moe_layers
    if policy.order == "optimum":
        return _optimum(accesses, restarts, sizes, pools // sizes.min())
    make = None
    if policy.make is not None:
        given = sizes.copy()
        given.flags.writeable = False
        facts = CacheFacts(accesses.shape, given, int(pools[0]))
        make = partial(Guarded, policy.make, policy.label, facts)
    is_hit, hits, served, uploads, bytes_read = replay_lookups(
        *lookups,
        num_rows,
        restarts,
        policy.order,
        sizes,
        pinned.view(np.uint8),
        pools,
        decay=policy.decay,
        recent_share=policy.recent,
        max_uploads=policy.uploads,
        hysteresis=policy.hysteresis,
        make_policy=make,
    )
    return is_hit.view(np.bool_), hits, served, uploads, bytes_read


def _optimum(
    accesses: Accesses,
    restarts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    capacities: NDArray[np.int64],
) -> _Arrays:
    """Each phase's own optimum, in the batches of that phase."""
    phase = accesses.phase
    merged = _nothing(accesses)
    for index in np.unique(phase):
        scored = phase == index
        is_hit, hits, served, uploads, bytes_read = replay_optimum(
            accesses.batch_start,
            accesses.cells,
            accesses.uses,
            accesses.shape.num_moe_layers,
            restarts,
            sizes,
            capacities,
            scored.view(np.uint8),
        )
        of_lookup = np.repeat(scored, accesses.lookups)
        hit = is_hit.view(np.bool_)[of_lookup]
        moved = (served[scored], uploads[scored], bytes_read[scored])
        _put(merged, accesses, scored, (hit, hits[scored], *moved))
    return merged
