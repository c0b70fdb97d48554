"""Replays of caches that do not begin empty, as a hot set does not."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import cell_bytes
from moeprof.plan.greedy import solve_greedy
from moeprof.plan.routed import PREFILL, Routed
from moeprof.policies import Accesses, Policy, ReplayResult, replay


@dataclass(frozen=True, slots=True)
class Part:
    """Some documents of a trace, and what may be learned for them.

    Attributes:
        routed: their lookups.
        training: [L, E] int64, assignments of other documents.
    """

    routed: Routed
    training: NDArray[np.int64]


def replay_warm(
    part: Part,
    policy: Policy,
    room_bytes: int,
    expert_bytes: NDArray[np.int64],
    warm_up: list[NDArray[np.int64]],
) -> ReplayResult:
    """Replay a policy over documents, after steps that fill its cache and are not counted.

    Args:
        part: the documents.
        policy: what decides.
        room_bytes: bytes that the entries may take.
        expert_bytes: [L] int64, bytes of one expert of each layer.
        warm_up: of each step the cells that it looks up, ascending; from `hottest_last`.

    Returns:
        What the policy did with the lookups of `part`.
    """
    accesses = part.routed.accesses
    sizes = cell_bytes(expert_bytes.tolist(), accesses.shape.num_experts)
    found = replay(_after(warm_up, accesses), policy, room_bytes, sizes, part.training)
    batches = len(warm_up) * accesses.shape.num_moe_layers
    lookups = sum(len(cells) for cells in warm_up)
    return replace(
        found,
        accesses=accesses,
        is_hit=found.is_hit[lookups:],
        hits=found.hits[batches:],
        served=found.served[batches:],
        uploads=found.uploads[batches:],
        bytes_read=found.bytes_read[batches:],
    )


def hottest_last(
    training: NDArray[np.int64], expert_bytes: NDArray[np.int64], room_bytes: int
) -> list[NDArray[np.int64]]:
    """Steps that look up the hot set, its busiest cells last.

    One cell of a layer at a time, since policies may limit what a batch brings in.

    Args:
        training: [L, E] int64, assignments to choose by.
        expert_bytes: [L] int64, bytes of one expert of each layer.
        room_bytes: bytes that the hot set may take.

    Returns:
        Of each step the cells that it looks up, ascending.
    """
    benefit = training.astype(np.float64)
    chosen = solve_greedy(benefit, expert_bytes, room_bytes).in_vram
    order = np.argsort(np.where(chosen, benefit, np.inf), axis=1, kind="stable")
    counts = chosen.sum(axis=1)
    first = np.arange(len(order)) * training.shape[1]
    return [(first + order[:, step])[step < counts] for step in range(int(counts.max()))]


def _after(steps: list[NDArray[np.int64]], accesses: Accesses) -> Accesses:
    """Lookups after further steps; each step's cells ascend."""
    num_rows = accesses.shape.num_moe_layers
    cells = np.concatenate([*steps, accesses.cells]).astype(np.uint32)
    further = len(cells) - len(accesses.cells)
    rows = [step // accesses.shape.num_experts for step in steps]
    sizes = [np.bincount(row, minlength=num_rows) for row in rows]
    starts = np.concatenate([[0], *sizes]).cumsum()[:-1]
    ahead = np.zeros(len(steps))
    return replace(
        accesses,
        step_phase=np.concatenate([ahead + PREFILL, accesses.step_phase]).astype(np.uint8),
        step_sequence=np.concatenate([ahead, accesses.step_sequence]).astype(np.uint32),
        step_tokens=np.concatenate([ahead + 1, accesses.step_tokens]).astype(np.uint32),
        batch_start=np.concatenate([starts, accesses.batch_start + further]).astype(np.int64),
        cells=cells,
        uses=np.concatenate([np.ones(further, accesses.uses.dtype), accesses.uses]),
    )
