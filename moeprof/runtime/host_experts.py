"""Computing routed experts with the CPU kernels, from packed weights in host memory."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moeprof.errors import UnsupportedModelError
from moeprof.native import ExpertLayer, Workers
from moeprof.runtime.meter import Meter

ELEMENT_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


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
        rows = hidden_states.contiguous()
        ids = top_k_index.to(torch.int64).contiguous()
        weights = top_k_weights.contiguous()
        output = torch.empty_like(rows)
        assignments, reads = self.meter.addresses(self.row)
        try:
            self.kernel.forward(
                self.workers,
                rows.data_ptr(),
                ELEMENT_NAMES[rows.dtype],
                ids.data_ptr(),
                weights.data_ptr(),
                ELEMENT_NAMES[weights.dtype],
                len(rows),
                output.data_ptr(),
                assignments,
                reads,
            )
        except ValueError as error:
            raise not_finite(type(module).__name__, self.row, error) from error
        return output


def not_finite(name: str, row: int, error: object) -> UnsupportedModelError:
    """The error of a layer whose values overflowed."""
    return UnsupportedModelError(
        f"{name}: MoE layer {row} cannot be computed ({error})",
        "values that overflow point to a damaged checkpoint, or to a --dtype that is too narrow",
    )
