"""The clock: what one decoded token takes on a machine, replayed over a trace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.hardware import HardwareProfile
from moeprof.model_shape import ModelShape
from moeprof.native import NO_EXPERT
from moeprof.trace import PHASES, Trace

_DECODE = PHASES.index("decode")


@dataclass(frozen=True, slots=True)
class DecodeClock:
    """Time of one decoded token of a single sequence: `design.md`, section 5.

    Each layer takes `max(vram part, round trip + ram part)`, where a part is the time of its
    experts one after the other, and the round trip is paid only where an expert is in RAM; where
    the tiers do not compute at the same time it is their sum. The time outside the experts does
    not depend on the placement and is one sum.

    Attributes:
        dense_s: seconds outside the experts, all layers together.
        round_trip_s: seconds of one host-device round trip.
        vram_expert_s: [L] float64, seconds of one expert in VRAM.
        ram_expert_s: [L] float64, seconds of one expert in RAM.
        tiers_overlap: whether both parts run at the same time.
    """

    dense_s: float
    round_trip_s: float
    vram_expert_s: NDArray[np.float64]
    ram_expert_s: NDArray[np.float64]
    tiers_overlap: bool = True

    def layer_seconds(
        self, row: int, num_vram: NDArray[np.int64], num_ram: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Seconds of the experts of one layer, for each token.

        Args:
            row: index of the layer among the MoE layers.
            num_vram: [T] int64, experts of the token that are in VRAM.
            num_ram: [T] int64, experts of the token that are in RAM.

        Returns:
            [T] float64.
        """
        vram = num_vram * self.vram_expert_s[row]
        ram = num_ram * self.ram_expert_s[row] + (num_ram > 0) * self.round_trip_s
        seconds: NDArray[np.float64] = np.maximum(vram, ram) if self.tiers_overlap else vram + ram
        return seconds


@dataclass(frozen=True, slots=True)
class Replay:
    """What several placements do with the decoded tokens of a trace.

    Attributes:
        tokens: [G] float64, decoded tokens of each document group.
        hits: [C, G] float64, assignments whose expert is in VRAM, for each placement.
        seconds: [C, G] float64, time of these tokens, for each placement.
    """

    tokens: NDArray[np.float64]
    hits: NDArray[np.float64]
    seconds: NDArray[np.float64]


def decode_clock(
    profile: HardwareProfile, shape: ModelShape, weight_format: str, expert_bytes: Sequence[int]
) -> DecodeClock:
    """The clock of a model on a machine.

    The weights outside the experts are read whole for each token, the embedding included: of it
    only one row is needed where it is not the output matrix too, so that the time errs upwards.

    Args:
        profile: of the machine.
        shape: the model's numbers.
        weight_format: of its experts, as the profile names it.
        expert_bytes: for each MoE layer the bytes of one expert in that format.

    Raises:
        CapacityError: the profile does not know the format.
    """
    vram = profile.expert_time("vram", weight_format)
    ram = profile.expert_time("ram", weight_format)
    dense = profile.dense_time
    return DecodeClock(
        dense_s=dense.fixed_s * shape.num_layers + dense.s_per_byte * shape.dense_bytes,
        round_trip_s=profile.round_trip_s,
        vram_expert_s=np.array([vram(size) for size in expert_bytes]),
        ram_expert_s=np.array([ram(size) for size in expert_bytes]),
        tiers_overlap=profile.tiers_overlap,
    )


def replay_decode(
    trace: Trace,
    clock: DecodeClock,
    placements: Sequence[NDArray[np.bool_]],
    fold: NDArray[np.int64],
) -> Replay:
    """Replay every decoded token of a trace against placements.

    Args:
        trace: whose rows are read, one layer at a time.
        clock: prices a token.
        placements: C arrays [F, L, E] bool, the cells in VRAM for the documents of each fold.
        fold: [G] int64, of each document group of the trace.
    """
    group_of = _group_of_sequence(trace)
    shape = (len(placements), len(fold))
    replay = Replay(np.zeros(shape[1]), np.zeros(shape), np.zeros(shape))
    for domain in trace.domains:
        for row, layer in enumerate(trace.shape.moe_layers):
            routing = trace.routing(layer, domain)
            decoded = routing.phase == _DECODE
            group = group_of[routing.sequence[decoded]]
            if row == 0:
                replay.tokens[:] += np.bincount(group, minlength=shape[1])
            _replay_layer(replay, clock, row, (group, routing.experts[decoded]), placements, fold)
    replay.seconds[:] += replay.tokens * clock.dense_s
    return replay


def _replay_layer(
    replay: Replay,
    clock: DecodeClock,
    row: int,
    tokens: tuple[NDArray[np.int64], NDArray[np.uint16]],
    placements: Sequence[NDArray[np.bool_]],
    fold: NDArray[np.int64],
) -> None:
    """Add one layer's hits and seconds; `tokens` holds group [T] and experts [T, K]."""
    group, experts = tokens
    chosen = experts != NO_EXPERT
    expert_ids = np.where(chosen, experts, 0)
    fold_of_token = fold[group][:, None]
    for index, in_vram in enumerate(placements):
        num_vram = (in_vram[fold_of_token, row, expert_ids] & chosen).sum(axis=1)
        seconds = clock.layer_seconds(row, num_vram, chosen.sum(axis=1) - num_vram)
        replay.hits[index] += np.bincount(group, num_vram, len(fold))
        replay.seconds[index] += np.bincount(group, seconds, len(fold))


def _group_of_sequence(trace: Trace) -> NDArray[np.int64]:
    """Index into the groups of `Trace.cell_counts` for every sequence number."""
    documents = trace.documents()
    documents["domain"] = documents["domain"].map(trace.domains.index)
    counted = trace.counts()[["domain", "document_group"]].drop_duplicates()
    counted["domain"] = counted["domain"].astype(object).map(trace.domains.index)
    counted = counted.astype(np.int64).sort_values(["domain", "document_group"])
    counted["group"] = np.arange(len(counted))
    known = documents.merge(counted, on=["domain", "document_group"])
    group_of = np.zeros(int(documents["sequence"].max()) + 1, np.int64)
    group_of[known["sequence"].to_numpy(np.int64)] = known["group"].to_numpy(np.int64)
    return group_of
