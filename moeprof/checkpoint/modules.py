"""The experts modules of a transformers model, found by their signature, not by their names."""

import inspect
import re
from dataclasses import dataclass

from torch import nn

_INDEX_PARAMETERS = frozenset({"top_k_index", "router_indices", "selected_experts"})
_LAYER_INDEX = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class ExpertsModule:
    """One module that computes the routed experts of one layer.

    Attributes:
        name: dotted name inside the model.
        layer: checkpoint layer index.
        num_experts: routed experts with weights.
        module: the module itself.
    """

    name: str
    layer: int
    num_experts: int
    module: nn.Module


def layer_index(module_name: str) -> int | None:
    """The checkpoint layer index in a dotted module name; None if it names no layer."""
    match = _LAYER_INDEX.search(module_name)
    return int(match[1]) if match else None


def takes_routing(module: nn.Module) -> bool:
    """Whether the module's forward is `(hidden_states, <expert indices>, <weights>)`."""
    parameters = list(inspect.signature(type(module).forward).parameters)
    return len(parameters) >= 4 and parameters[2] in _INDEX_PARAMETERS


def find_experts_modules(model: nn.Module) -> list[ExpertsModule]:
    """The experts modules of a model in the order of their layers; empty if it has none."""
    found = []
    for name, module in model.named_modules():
        layer = layer_index(name)
        if layer is None or not takes_routing(module):
            continue
        found.append(ExpertsModule(name, layer, num_experts(module), module))
    return sorted(found, key=lambda experts: experts.layer)


def num_experts(module: nn.Module) -> int:
    """Routed experts of an experts module, read from its own attribute or its largest tensors."""
    declared = getattr(module, "num_experts", None)
    if isinstance(declared, int):
        return declared
    return max(p.shape[0] for p in module.parameters() if p.dim() >= 2)
