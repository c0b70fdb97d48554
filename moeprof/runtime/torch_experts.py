"""Computing routed experts with torch, in the element type of the model and in its own order.

The reference beside the kernels: in float32 its results are those of the unmodified model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moeprof.checkpoint.expert_layout import ExpertLayout
from moeprof.placement.tier import Tier
from moeprof.runtime.layer_times import DENSE, WAITING, LayerClock
from moeprof.runtime.meter import Meter
from moeprof.runtime.stores import ExpertStore


@dataclass(frozen=True, slots=True)
class TorchExperts:
    """One layer's experts, each computed by torch where it lives.

    Attributes:
        row: index of the layer in `moe_layers`.
        num_experts: routed experts (E).
        layout: how the module computes.
        stores: the tiers.
        tiers: for each expert the tier that owns it.
        slots: for each expert its slot there.
        meter: where assignments are counted.
        clock: where the time of decoding is added up; None where nobody asked.
    """

    row: int
    num_experts: int
    layout: ExpertLayout
    stores: Mapping[Tier, ExpertStore]
    tiers: tuple[Tier, ...]
    slots: tuple[int, ...]
    meter: Meter
    clock: LayerClock | None = None

    def forward(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        top_k_index: Tensor,
        top_k_weights: Tensor,
    ) -> Tensor:
        """Sum of the chosen experts' outputs, each computed by the store that owns the expert.

        The order of operations is that of transformers' own `eager` experts: experts ascending,
        each on its rows at once, weighted, cast, and added. So the result does not depend on the
        placement where all stores share a device, and in float32 it is that of the unmodified
        model.
        """
        if self.clock is not None:
            self.clock.lap(self.row, DENSE)
        shares = _shares(self, top_k_index.to("cpu"), top_k_weights.to("cpu"))
        if self.clock is not None:
            self.clock.lap(self.row, WAITING)
        outputs: dict[int, Tensor] = {}
        # The device is given its work first; it computes while the host works on its own.
        for tier in (Tier.VRAM, Tier.RAM):
            store = self.stores[tier]
            owned = [e for e in shares if self.tiers[e] is tier]
            rows = hidden_states.to(store.device) if owned else hidden_states
            for expert in owned:
                weights = store.expert(self.row, self.slots[expert])
                chosen = rows[shares[expert].tokens.to(store.device)]
                outputs[expert] = _compute(module, self.layout, weights, chosen)
            if self.clock is not None and owned:
                self.clock.lap_tier(self.row, tier)
        total = torch.zeros_like(hidden_states)
        device = total.device
        for expert in sorted(outputs):
            tokens, slots = shares[expert].tokens.to(device), shares[expert].slots.to(device)
            output = outputs[expert].to(device)
            if self.layout.has_post_expert_norm:
                output = module.post_expert_norm(output)  # type: ignore[operator]
            weighted = output * top_k_weights[tokens, slots, None]
            total.index_add_(0, tokens, weighted.to(total.dtype))
        if self.clock is not None:
            self.clock.lap(self.row, WAITING)
        return total


@dataclass(frozen=True, slots=True)
class _Share:
    """The assignments of one expert in a forward, on the host: slot by slot, then by token."""

    tokens: Tensor
    slots: Tensor


def _shares(layer: TorchExperts, index: Tensor, weights: Tensor) -> dict[int, _Share]:
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
