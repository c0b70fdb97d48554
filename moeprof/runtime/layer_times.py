"""Where the time of decoded tokens goes, layer by layer; only for runs that ask for it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moeprof.placement.tier import Tier
from moeprof.runtime.meter import Meter

DENSE, VRAM, RAM, WAITING = range(4)
_ON_DEVICE = [DENSE, VRAM, WAITING]  # in the order of DeviceTime in native/cuda/layer.hpp
_PART_OF_TIER = {Tier.VRAM: VRAM, Tier.RAM: RAM}


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Mean seconds of one decoded token in one layer.

    Attributes:
        layer: its index in the checkpoint.
        dense_s: from the experts of the MoE layer before, or from the step's start, to these.
        vram_s: computing experts in VRAM.
        ram_s: computing experts in RAM.
        waiting_s: what is left of the time in the experts: starting and joining what computes
            them; on a device, waiting for the host's share after its own.
    """

    layer: int
    dense_s: float
    vram_s: float
    ram_s: float
    waiting_s: float


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Where the time of a decoded token went.

    Attributes:
        layers: one for each MoE layer; none where nothing was decoded.
        rest_s: after the last layer's experts: the output, choosing the token, starting the step.
        tiers_overlap: whether experts in RAM were computed while the device computed and waited,
            so that `ram_s` is no part of the sum.
        note: how the asking itself slowed the run down, or why there are no times; None where
            there is nothing to say.
    """

    layers: tuple[LayerTime, ...]
    rest_s: float
    tiers_overlap: bool
    note: str | None


class LayerClock:
    """Adds up the time of decoded tokens; prompts are not timed.

    Attributes:
        spent_ns: [L, 4] int64 nanoseconds: `DENSE`, `VRAM`, `RAM`, `WAITING`.

    Args:
        num_layers: MoE layers.
        meter: knows the phase.
        device: where the experts in VRAM are computed.
    """

    tiers_overlap = False

    def __init__(self, num_layers: int, meter: Meter, device: torch.device) -> None:
        self.spent_ns: NDArray[np.int64] = np.zeros((num_layers, 4), np.int64)
        self._meter = meter
        self._device = device
        self._mark = 0

    @property
    def is_running(self) -> bool:
        """Whether the current forward decodes."""
        return self._meter.is_decoding

    @property
    def note(self) -> str | None:
        """See `LayerTimes.note`."""
        if self._device.type != "cuda":
            return None
        return "torch's experts are waited for tier by tier to be timed, so decoding was slower"

    def begin_step(self) -> None:
        """Note that a forward starts."""
        self._mark = self._now()

    def lap(self, row: int, part: int) -> None:
        """Add the time since the last lap, or the step's beginning, to a part of a layer."""
        if not self.is_running:
            return
        now = self._now()
        self.spent_ns[row, part] += now - self._mark
        self._mark = now

    def lap_tier(self, row: int, tier: Tier) -> None:
        """As `lap`, for the experts of a tier."""
        self.lap(row, _PART_OF_TIER[tier])

    def move_to_tier(self, row: int, tier: Tier, nanoseconds: int) -> None:
        """Count some of the time that a layer waited as that of a tier's experts."""
        self.spent_ns[row, _PART_OF_TIER[tier]] += nanoseconds
        self.spent_ns[row, WAITING] -= nanoseconds

    def reset(self) -> None:
        """Forget what was added up."""
        self.collect()
        self.spent_ns[:] = 0

    def collect(self) -> None:
        """Bring in what was timed elsewhere; waits for the device."""

    def times(self, moe_layers: tuple[int, ...], seconds: float) -> LayerTimes:
        """The means of the tokens decoded so far.

        Args:
            moe_layers: checkpoint indices of the layers.
            seconds: spent decoding, all together.
        """
        self.collect()
        num_tokens = self._meter.num_decoded
        if num_tokens == 0:
            nothing = "no token was decoded, so there are no layer times"
            return LayerTimes((), math.nan, self.tiers_overlap, nothing)
        mean = self.spent_ns / (1e9 * num_tokens)
        in_sum = _ON_DEVICE if self.tiers_overlap else [DENSE, VRAM, RAM, WAITING]
        return LayerTimes(
            layers=tuple(
                LayerTime(layer, *(float(part) for part in row))
                for layer, row in zip(moe_layers, mean, strict=True)
            ),
            rest_s=seconds / num_tokens - math.fsum(mean[:, in_sum].ravel()),
            tiers_overlap=self.tiers_overlap,
            note=self.note,
        )

    def _now(self) -> int:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter_ns()


class DeviceClock(LayerClock):
    """As `LayerClock`, stamped on the device, inside captured graphs too; nothing waits.

    Args:
        num_layers: MoE layers.
        meter: knows the phase.
        device: where the experts in VRAM are computed.
    """

    tiers_overlap = True

    def __init__(self, num_layers: int, meter: Meter, device: torch.device) -> None:
        super().__init__(num_layers, meter, device)
        size = (num_layers, len(_ON_DEVICE))
        self._on_device = torch.zeros(size, dtype=torch.int64, device=device)
        self._mark_begin: Callable[[], None] | None = None
        self._take_answer_ns: Callable[[], list[int]] | None = None

    @property
    def note(self) -> str | None:
        """See `LayerTimes.note`."""
        return None

    def stamp_with(
        self, mark_begin: Callable[[], None], take_answer_ns: Callable[[], list[int]]
    ) -> None:
        """Say what stamps.

        Args:
            mark_begin: marks on the device, in stream order, that a step begins.
            take_answer_ns: gives the nanoseconds of the host's answers for each layer since the
                last call.
        """
        self._mark_begin = mark_begin
        self._take_answer_ns = take_answer_ns

    def begin_step(self) -> None:
        """See `LayerClock.begin_step`."""
        if self._mark_begin is not None and self.is_running:
            self._mark_begin()

    def address(self, row: int) -> int:
        """Where the kernel adds up the times of a layer; 0 where it is not timed."""
        return self._on_device[row].data_ptr() if self.is_running else 0

    def collect(self) -> None:
        """See `LayerClock.collect`."""
        self.spent_ns[:, _ON_DEVICE] += self._on_device.cpu().numpy()
        self._on_device.zero_()
        if self._take_answer_ns is not None:
            self.spent_ns[:, RAM] += self._take_answer_ns()
