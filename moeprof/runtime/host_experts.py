"""Computing routed experts with the CPU kernels, from packed weights in host memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from moeprof.errors import UnsupportedModelError
from moeprof.native import ExpertLayer, Workers
from moeprof.placement.tier import Tier
from moeprof.runtime.kernel_call import OVERFLOWED, KernelCall
from moeprof.runtime.layer_times import DENSE, WAITING, LayerClock
from moeprof.runtime.meter import Meter


class TierTimes:
    """Where the kernel of a layer adds up the time of its workers in each tier.

    Attributes:
        clock: adds up the whole.
        tier_of: [E] uint8, the value of `Tier` of every expert.
        worker_ns: [tiers] uint64 nanoseconds, summed over workers.

    Args:
        clock: as above.
        tier_of: as above.
    """

    def __init__(self, clock: LayerClock, tier_of: NDArray[np.uint8]) -> None:
        self.clock = clock
        self.tier_of = np.ascontiguousarray(tier_of)
        self.worker_ns = np.zeros(len(Tier), np.uint64)

    def add(self, row: int, num_workers: int) -> None:
        """Count a layer that was computed, its workers' time spread over all of them."""
        self.clock.lap(row, WAITING)
        for tier in (Tier.VRAM, Tier.RAM):
            self.clock.move_to_tier(row, tier, int(self.worker_ns[tier]) // num_workers)
        self.worker_ns[:] = 0


@dataclass(frozen=True, slots=True)
class HostExperts:
    """One layer's experts, all of them in host memory.

    Attributes:
        row: index of the layer in `moe_layers`.
        kernel: the layer's experts, packed.
        workers: threads that compute.
        meter: where assignments are counted.
        times: where the time of decoding is added up; None where nobody asked.
    """

    row: int
    kernel: ExpertLayer
    workers: Workers
    meter: Meter
    times: TierTimes | None = None

    def forward(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        top_k_index: Tensor,
        top_k_weights: Tensor,
    ) -> Tensor:
        """Sum of the chosen experts' outputs, in slot order and in float32, rounded at the end.

        Raises:
            UnsupportedModelError: activations overflowed.
        """
        call = KernelCall.of(hidden_states, top_k_index, top_k_weights)
        counts = self.meter.addresses(self.row)
        times = self.times if self.times is not None and self.times.clock.is_running else None
        stamps = (0, 0)
        if times is not None:
            stamps = times.tier_of.ctypes.data, times.worker_ns.ctypes.data
            times.clock.lap(self.row, DENSE)
        try:
            self.kernel.forward(self.workers, *call.arguments(), *counts, *stamps)
        except ValueError as error:
            raise not_finite(type(module).__name__, self.row, error) from error
        if times is not None:
            times.add(self.row, self.workers.num_threads)
        return call.output


def not_finite(name: str, row: int, error: object) -> UnsupportedModelError:
    """The error of a layer whose values overflowed."""
    return UnsupportedModelError(
        f"{name}: MoE layer {row} cannot be computed ({error})",
        OVERFLOWED,
    )
