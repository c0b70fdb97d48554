"""The clock of decoding: what one token takes on a machine, given where its experts are."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.hardware import HardwareProfile, Time
from moeprof.model_shape import ModelShape

_NOTHING = Time(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class DecodeClock:
    """Time of one decoded token of a single sequence: `design.md`, section 5.

    Each layer takes `max(vram part, round trip + ram part)`, where a part is the time of its
    experts one after the other, and the round trip is paid only where an expert is in RAM; where
    the tiers do not compute at the same time it is their sum. What a cache copies into VRAM is
    copied meanwhile: a layer takes no less than its copies, and these also take their share of
    RAM's bandwidth from the experts computed there. The time outside the experts does not depend
    on the placement and is one sum.

    Attributes:
        dense_s: seconds outside the experts, all layers together.
        round_trip_s: seconds of one host-device round trip.
        vram_expert_s: [L] float64, seconds of one expert in VRAM.
        ram_expert_s: [L] float64, seconds of one expert in RAM.
        tiers_overlap: whether both parts run at the same time.
        copy: the time of a layer's copies over the link.
        ram_s_per_byte: seconds that reading a byte takes of RAM.
    """

    dense_s: float
    round_trip_s: float
    vram_expert_s: NDArray[np.float64]
    ram_expert_s: NDArray[np.float64]
    tiers_overlap: bool = True
    copy: Time = _NOTHING
    ram_s_per_byte: float = 0.0

    def layer_seconds(
        self,
        row: int | NDArray[np.integer],
        num_vram: NDArray[Any],
        num_ram: NDArray[Any],
        copied_bytes: NDArray[Any] | None = None,
    ) -> NDArray[np.float64]:
        """Seconds of the experts of a layer, for each (token, layer).

        Args:
            row: index of the layer among the MoE layers, one for all or [B].
            num_vram: [B], experts of the token that are in VRAM.
            num_ram: [B], experts of the token that are in RAM.
            copied_bytes: [B], bytes that a cache copies into VRAM; None for none.

        Returns:
            [B] float64.
        """
        vram = num_vram * self.vram_expert_s[row]
        ram = num_ram * self.ram_expert_s[row] + (num_ram > 0) * self.round_trip_s
        if copied_bytes is None:
            both = np.maximum(vram, ram) if self.tiers_overlap else vram + ram
            return np.asarray(both, np.float64)
        copies = copied_bytes * self.copy.s_per_byte + (copied_bytes > 0) * self.copy.fixed_s
        if not self.tiers_overlap:
            return np.asarray(vram + ram + copies, np.float64)
        ram = ram + copied_bytes * self.ram_s_per_byte
        return np.asarray(np.maximum(np.maximum(vram, ram), copies), np.float64)

    def seconds_by_hits(
        self, row: int, top_k: int, copied_bytes: float = 0.0
    ) -> NDArray[np.float64]:
        """Seconds of the experts of a layer with 0, 1, ... `top_k` of a token's in VRAM.

        Args:
            row: index of the layer among the MoE layers.
            top_k: experts of each token.
            copied_bytes: bytes copied into VRAM for each expert that is not there.

        Returns:
            [top_k + 1] float64.
        """
        hits = np.arange(top_k + 1)
        copied = (top_k - hits) * copied_bytes if copied_bytes else None
        return self.layer_seconds(row, hits, top_k - hits, copied)

    def expected_seconds(
        self, row: int, top_k: int, hit_rate: NDArray[np.float64], copied_bytes: float = 0.0
    ) -> NDArray[np.float64]:
        """Mean seconds of the experts of a layer whose experts are in VRAM independently.

        The number of a token's experts that are in VRAM is then binomial. Where experts are
        chosen together it is not, which only a replay can tell.

        Args:
            row: index of the layer among the MoE layers.
            top_k: experts of each token.
            hit_rate: [...] float64, share of its assignments whose expert is in VRAM.
            copied_bytes: bytes copied into VRAM for each expert that is not there.

        Returns:
            [...] float64.
        """
        hits = np.arange(top_k + 1)
        ways = np.array([comb(top_k, int(one)) for one in hits])
        rate = np.asarray(hit_rate)[..., None]
        odds: NDArray[np.float64] = ways * rate**hits * (1 - rate) ** (top_k - hits)
        seconds: NDArray[np.float64] = odds @ self.seconds_by_hits(row, top_k, copied_bytes)
        return seconds


def decode_clock(
    profile: HardwareProfile, shape: ModelShape, weight_format: str, expert_bytes: Sequence[int]
) -> DecodeClock:
    """The clock of a model on a machine.

    The weights outside the experts are read whole for each token, the embedding included: of it
    only one row is needed where it is not the output matrix too, so that the time errs upwards.
    Without a link between the tiers both are memory of the host, and copies are priced as reads.

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
    read_s = 1 / profile.tiers["ram"].read_bytes_per_s
    link = profile.links.get("ram-vram")
    return DecodeClock(
        dense_s=dense.fixed_s * shape.num_layers + dense.s_per_byte * shape.dense_bytes,
        round_trip_s=profile.round_trip_s,
        vram_expert_s=np.array([vram(size) for size in expert_bytes]),
        ram_expert_s=np.array([ram(size) for size in expert_bytes]),
        tiers_overlap=profile.tiers_overlap,
        copy=Time(0.0, read_s) if link is None else Time(link.latency_s, 1 / link.bytes_per_s),
        ram_s_per_byte=read_s,
    )
