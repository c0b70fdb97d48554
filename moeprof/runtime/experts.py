"""Computing routed experts where they live, in place of a transformers experts module.

Registered with transformers' interface for experts implementations under the name `moeprof`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

from moeprof.errors import UnsupportedModelError
from moeprof.placement.tier import Tier
from moeprof.runtime.meter import Meter
from moeprof.runtime.stores import ExpertStore

IMPLEMENTATION = "moeprof"
_FLAGS = frozenset(
    {"has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "is_concatenated"}
)
_UNUSED_FLAGS = frozenset({"_is_expert_parallel", "_is_hf_initialized", "_is_hooked"})


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """How an experts module computes, from the flags of transformers' experts interface.

    Attributes:
        is_transposed: matrices are `[in, out]` instead of `[out, in]`.
        has_bias: each matrix has a bias.
        has_gate: the first matrix gives gate and up together.
        has_post_expert_norm: each expert's output is normalised before it is weighted.
    """

    is_transposed: bool
    has_bias: bool
    has_gate: bool
    has_post_expert_norm: bool

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The parameters of each expert."""
        matrices = ("gate_up_proj" if self.has_gate else "up_proj", "down_proj")
        biases = tuple(f"{name}_bias" for name in matrices) if self.has_bias else ()
        return matrices + biases


def read_layout(module: nn.Module) -> ExpertLayout:
    """The layout of an experts module.

    Raises:
        UnsupportedModelError: the module does not go through the experts interface, or has a flag
            that this version does not know.
    """
    name = type(module).__name__
    if not hasattr(module, "has_gate"):
        raise UnsupportedModelError(
            f"{name}: its experts do not go through transformers' experts interface",
            "this architecture can be traced and analysed, but not run under a placement yet",
        )
    flags = {
        key
        for key, value in vars(module).items()
        if isinstance(value, bool) and key.lstrip("_").startswith(("has_", "is_"))
    }
    unknown = sorted(
        flag
        for flag in flags - _FLAGS - _UNUSED_FLAGS
        if not hasattr(nn.Module(), flag) and getattr(module, flag)
    )
    if unknown or getattr(module, "_is_expert_parallel", False):
        raise UnsupportedModelError(
            f"{name}: cannot be computed with {', '.join(unknown) or 'expert parallelism'}",
            "use a version of transformers that moeprof was tested with",
        )
    return ExpertLayout(
        is_transposed=getattr(module, "is_transposed", False),
        has_bias=getattr(module, "has_bias", False),
        has_gate=getattr(module, "has_gate", True),
        has_post_expert_norm=getattr(module, "has_post_expert_norm", False),
    )


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """What one experts module needs to compute; attached to the module as `moeprof_layer`.

    Attributes:
        row: index of the layer in `moe_layers`.
        num_experts: routed experts (E).
        layout: how the module computes.
        stores: the tiers.
        tiers: for each expert the tier that owns it.
        slots: for each expert its slot there.
        meter: where assignments are counted.
    """

    row: int
    num_experts: int
    layout: ExpertLayout
    stores: Mapping[Tier, ExpertStore]
    tiers: tuple[Tier, ...]
    slots: tuple[int, ...]
    meter: Meter


@dataclass(frozen=True, slots=True)
class _Share:
    """The assignments of one expert in a forward, on the host: slot by slot, then by token."""

    tokens: Tensor
    slots: Tensor


def experts_forward(
    module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Sum of the chosen experts' outputs, each computed by the store that owns the expert.

    The order of operations is that of transformers' own `eager` experts: experts ascending, each
    on its rows at once, weighted, cast, and added. So the result does not depend on the placement
    where all stores share a device, and in float32 it is that of the unmodified model.

    Args:
        module: an experts module with `moeprof_layer`.
        hidden_states: [T, H].
        top_k_index: [T, K] integer; ids from `num_experts` on mean no expert, as do weights of 0.
        top_k_weights: [T, K] floating.

    Returns:
        [T, H] in the type and on the device of `hidden_states`.
    """
    layer: LayerExperts = module.moeprof_layer  # type: ignore[assignment]
    shares = _shares(layer, top_k_index.to("cpu"), top_k_weights.to("cpu"))
    outputs: dict[int, Tensor] = {}
    # The device is given its work first; it computes while the host works on its own.
    for tier in (Tier.VRAM, Tier.RAM):
        store = layer.stores[tier]
        owned = [e for e in shares if layer.tiers[e] is tier]
        rows = hidden_states.to(store.device) if owned else hidden_states
        for expert in owned:
            weights = store.expert(layer.row, layer.slots[expert])
            chosen = rows[shares[expert].tokens.to(store.device)]
            outputs[expert] = _compute(module, layer.layout, weights, chosen)
    total = torch.zeros_like(hidden_states)
    device = total.device
    for expert in sorted(outputs):
        tokens, slots = shares[expert].tokens.to(device), shares[expert].slots.to(device)
        output = outputs[expert].to(device)
        if layer.layout.has_post_expert_norm:
            output = module.post_expert_norm(output)  # type: ignore[operator]
        weighted = output * top_k_weights[tokens, slots, None]
        total.index_add_(0, tokens, weighted.to(total.dtype))
    return total


def _shares(layer: LayerExperts, index: Tensor, weights: Tensor) -> dict[int, _Share]:
    """Count a layer's assignments and group them by expert, experts ascending."""
    num_tokens = index.shape[0]
    used = (index < layer.num_experts) & (weights != 0)
    by_slot = torch.where(used, index, layer.num_experts).T.reshape(-1)
    order = torch.argsort(by_slot, stable=True)
    counts = torch.bincount(by_slot, minlength=layer.num_experts + 1)[: layer.num_experts]
    layer.meter.record(layer.row, counts.numpy().astype(np.int64))
    shares = {}
    end = 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            places = order[end : end + count]
            shares[expert] = _Share(places % num_tokens, places // num_tokens)
        end += count
    return shares


def _compute(
    module: nn.Module, layout: ExpertLayout, weights: Mapping[str, Tensor], rows: Tensor
) -> Tensor:
    """One expert's output, [n, H], for its rows, [n, H], before norm and router weight."""
    first, second = layout.parameter_names[:2]
    hidden = _linear(layout, weights, first, rows)
    gate: Any = module._apply_gate if layout.has_gate else module.act_fn
    return _linear(layout, weights, second, gate(hidden))


def _linear(layout: ExpertLayout, weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    matrix = weights[name]
    product = rows @ matrix if layout.is_transposed else nn.functional.linear(rows, matrix)
    return product + weights[f"{name}_bias"] if layout.has_bias else product


ExpertsInterface.register(IMPLEMENTATION, experts_forward)
