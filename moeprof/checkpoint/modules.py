"""The MoE layers of a transformers model: found by the signature of their experts module.

Three architectures have no module with that signature; their blocks are found by class name.
"""

import inspect
import re
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from moeprof.errors import UnsupportedModelError

_INDEX_PARAMETERS = frozenset({"top_k_index", "router_indices", "selected_experts"})
_LAYER_INDEX = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)(?:\.|$)")
_OTHER_MODALITY = re.compile(r"(?:^|[._])(?:vision|visual|audio|speech|talker|code2wav)")

# The block computes its routing inside, so there is no call to read it from.
ADAPTED_BLOCKS = frozenset({"Llama4TextMoe", "JetMoeMoE", "DogeCDMoE"})


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
    """The checkpoint layer index in a dotted module name; None if it names no text layer."""
    match = _LAYER_INDEX.search(module_name)
    if match is None or _OTHER_MODALITY.search(module_name[: match.start()]):
        return None
    return int(match[1])


def takes_routing(module: nn.Module) -> bool:
    """Whether the module's forward is `(hidden_states, <expert indices>, <weights>)`."""
    parameters = list(inspect.signature(type(module).forward).parameters)
    return len(parameters) >= 4 and parameters[2] in _INDEX_PARAMETERS


def find_experts_modules(model: nn.Module) -> list[ExpertsModule]:
    """The experts modules of a model in the order of their layers; empty if it has none.

    Experts of vision and audio towers are left out; a layer may be there more than once.
    """
    found = []
    for name, module in model.named_modules():
        layer = layer_index(name)
        if layer is not None and takes_routing(module):
            found.append(ExpertsModule(name, layer, num_experts(module), module))
    return sorted(found, key=lambda experts: experts.layer)


def find_moe_layers(model: nn.Module) -> list[ExpertsModule]:
    """Every MoE layer of a model, in order: its experts module, or its block where it has none.

    Raises:
        UnsupportedModelError: no MoE layer, two in one layer, or layers of different sizes.
    """
    found = find_experts_modules(model) + [
        ExpertsModule(name, layer, num_experts(module), module)
        for name, module in model.named_modules()
        if type(module).__name__ in ADAPTED_BLOCKS and (layer := layer_index(name)) is not None
    ]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no MoE layer found, expected at least one",
            "use a Mixture-of-Experts model whose architecture is part of transformers",
        )
    found.sort(key=lambda experts: experts.layer)
    for before, after in pairwise(found):
        if before.layer == after.layer:
            raise UnsupportedModelError(
                f"{type(model).__name__}: layer {after.layer} has two experts modules, "
                f"{before.name} and {after.name}, expected one",
                "use a model with one set of experts in a layer",
            )
        if before.num_experts != after.num_experts:
            raise UnsupportedModelError(
                f"{type(model).__name__}: layer {after.layer} has {after.num_experts} experts, "
                f"layer {before.layer} has {before.num_experts}, expected the same number",
                "use a model whose MoE layers are alike",
            )
    return found


def num_experts(module: nn.Module) -> int:
    """Routed experts that have weights, of an experts module or of a block that holds its own.

    `num_routed_experts` goes first: longcat_flash counts its weightless identity experts apart.
    """
    for attribute in ("num_routed_experts", "num_experts"):
        declared = getattr(module, attribute, None)
        if isinstance(declared, int):
            return declared
    return max(p.shape[0] for p in module.parameters() if p.dim() >= 2)
