"""The place where a transformers model hands routed experts over to us.

Registered with transformers' interface for experts implementations under the name `moeprof`.
"""

from typing import Protocol

from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

from moeprof.runtime.device_experts import DeviceExperts, experts_op

IMPLEMENTATION = "moeprof"


class LayerExperts(Protocol):
    """What computes one layer's experts; attached to the experts module as `moeprof_layer`."""

    def forward(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        top_k_index: Tensor,
        top_k_weights: Tensor,
    ) -> Tensor:
        """Sum of the chosen experts' outputs, weighted by the router; see `experts_forward`."""


def experts_forward(
    module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Sum of the chosen experts' outputs, weighted by the router.

    Args:
        module: an experts module with `moeprof_layer`.
        hidden_states: [T, H].
        top_k_index: [T, K] integer; ids from `num_experts` on mean no expert, as do weights of 0.
        top_k_weights: [T, K] floating.

    A layer with a `moeprof_handle` is computed on its device as one operation.

    Returns:
        [T, H] in the type and on the device of `hidden_states`.
    """
    handle = getattr(module, "moeprof_handle", None)
    if handle is not None:
        output: Tensor = experts_op(hidden_states, top_k_index, top_k_weights, handle)
        return output
    layer: LayerExperts = module.moeprof_layer  # type: ignore[assignment]
    return layer.forward(module, hidden_states, top_k_index, top_k_weights)


def attach(module: nn.Module, layer: LayerExperts) -> None:
    """Let a layer's experts be computed by `layer`."""
    module.moeprof_layer = layer  # type: ignore[assignment]
    if isinstance(layer, DeviceExperts):
        module.moeprof_handle = layer.handle


ExpertsInterface.register(IMPLEMENTATION, experts_forward)
