"""The clock of prefill: what a batch of prompt tokens takes, given where its experts are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.hardware import HardwareProfile, Time
from moeprof.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class PrefillClock:
    """Time of a batch of prompt tokens: `design.md`, section 5.

    An expert in VRAM is computed there. For any other the cheaper is taken: computing it in RAM,
    or copying it over the link and computing it in VRAM. A layer takes
    `max(vram part, round trip + ram part)`, where copies belong to the vram part, and the sum
    where the tiers do not compute at the same time.

    Attributes:
        dense_s: seconds of a batch outside the experts, all layers together.
        dense_token_s: seconds that each of its tokens adds to that.
        round_trip_s: seconds of one host-device round trip.
        vram: of one expert in VRAM that many tokens chose.
        ram: the same in RAM.
        copy: of copying one expert into VRAM; None where there is no link.
        expert_bytes: [L] int64, bytes of one expert of each layer.
        tiers_overlap: whether both parts run at the same time.
    """

    dense_s: float
    dense_token_s: float
    round_trip_s: float
    vram: Time
    ram: Time
    copy: Time | None
    expert_bytes: NDArray[np.int64]
    tiers_overlap: bool = True

    def batch_seconds(
        self,
        row: NDArray[np.integer],
        start: NDArray[np.integer],
        num_tokens: NDArray[np.integer],
        in_vram: NDArray[np.bool_],
        copied_bytes: NDArray[np.integer] | None = None,
    ) -> NDArray[np.float64]:
        """Seconds of the experts of each batch of a layer.

        Args:
            row: [B] index of its layer among the MoE layers.
            start: [B + 1] where its experts begin among all [N].
            num_tokens: [N] tokens that chose each expert, at least 1.
            in_vram: [N] whether it is in VRAM.
            copied_bytes: [B] bytes that a cache brings into VRAM, of which those that are copied
                anyway cost nothing more; None for none.

        Returns:
            [B] float64.
        """
        batch = np.repeat(np.arange(len(row)), np.diff(start))
        size = self.expert_bytes[row[batch]]
        device, host = _seconds(self.vram, size, num_tokens), _seconds(self.ram, size, num_tokens)
        streamed = np.zeros(len(batch), np.bool_)
        if self.copy is not None:
            with_copy = device + _seconds(self.copy, size, 0)
            streamed = ~in_vram & (with_copy < host)
            device = np.where(streamed, with_copy, device)
        on_device = in_vram | streamed
        vram_s = np.bincount(batch, np.where(on_device, device, 0.0), len(row)).astype(np.float64)
        ram_s = np.bincount(batch, np.where(on_device, 0.0, host), len(row)).astype(np.float64)
        if copied_bytes is not None and self.copy is not None:
            anyway = np.bincount(batch, np.where(streamed, size, 0), len(row))
            vram_s += np.maximum(copied_bytes - anyway, 0) * self.copy.s_per_byte
        ram_s += (ram_s > 0) * self.round_trip_s
        seconds: NDArray[np.float64] = (
            np.maximum(vram_s, ram_s) if self.tiers_overlap else vram_s + ram_s
        )
        return seconds


def _seconds(
    time: Time, num_bytes: NDArray[np.int64], num_tokens: NDArray[np.integer] | int
) -> NDArray[np.float64]:
    """[N] float64, a time of many pieces of work."""
    size = num_bytes.astype(np.float64)
    per_token = time.s_per_token + time.s_per_byte_token * size
    seconds: NDArray[np.float64] = time.fixed_s + time.s_per_byte * size + per_token * num_tokens
    return seconds


def prefill_clock(
    profile: HardwareProfile, shape: ModelShape, weight_format: str, expert_bytes: Sequence[int]
) -> PrefillClock | None:
    """The clock of a model's prefill on a machine; None where the profile does not price it.

    Args:
        profile: of the machine.
        shape: the model's numbers.
        weight_format: of its experts, as the profile names it.
        expert_bytes: for each MoE layer the bytes of one expert in that format.
    """
    vram = profile.batch_time("vram", weight_format)
    ram = profile.batch_time("ram", weight_format)
    if vram is None or ram is None:
        return None
    dense = profile.dense_batch_time or profile.dense_time
    link = profile.links.get("ram-vram")
    return PrefillClock(
        dense_s=dense.fixed_s * shape.num_layers + dense.s_per_byte * shape.dense_bytes,
        dense_token_s=dense.s_per_token + dense.s_per_byte_token * shape.dense_bytes,
        round_trip_s=profile.round_trip_s,
        vram=vram,
        ram=ram,
        copy=None if link is None else Time(link.latency_s, 1 / link.bytes_per_s),
        expert_bytes=np.asarray(expert_bytes, np.int64),
        tiers_overlap=profile.tiers_overlap,
    )
