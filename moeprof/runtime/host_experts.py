"""Computing routed experts with the CPU kernels, from packed weights in host memory."""

from dataclasses import dataclass

from torch import Tensor, nn

from moeprof.errors import UnsupportedModelError
from moeprof.native import ExpertLayer, Workers
from moeprof.runtime.kernel_call import KernelCall
from moeprof.runtime.meter import Meter


@dataclass(frozen=True, slots=True)
class HostExperts:
    """One layer's experts, all of them in host memory.

    Attributes:
        row: index of the layer in `moe_layers`.
        kernel: the layer's experts, packed.
        workers: threads that compute.
        meter: where assignments are counted.
    """

    row: int
    kernel: ExpertLayer
    workers: Workers
    meter: Meter

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
        try:
            self.kernel.forward(self.workers, *call.arguments(), *counts)
        except ValueError as error:
            raise not_finite(type(module).__name__, self.row, error) from error
        return call.output


def not_finite(name: str, row: int, error: object) -> UnsupportedModelError:
    """The error of a layer whose values overflowed."""
    return UnsupportedModelError(
        f"{name}: MoE layer {row} cannot be computed ({error})",
        "values that overflow point to a damaged checkpoint, or to a --dtype that is too narrow",
    )
