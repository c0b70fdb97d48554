"""The linear layers outside the experts that can be kept in `q8_0`."""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from moeprof.checkpoint.modules import ExpertsModule, layer_index, takes_routing
from moeprof.checkpoint.skeleton import text_config
from moeprof.native.reference import BLOCK_BYTES, BLOCK_SIZE
from moeprof.placement import DENSE_AS_STORED

DENSE_FORMATS = (DENSE_AS_STORED, "q8_0")

# Weights that are made float again at a time, to multiply many rows on a device.
DEQUANTIZED_VALUES = 2**22
_DEQUANTIZING_BYTES = 8  # of one: an integer as float32, and its product with the scale


def quantizable_linears(
    model: PreTrainedModel, modules: list[ExpertsModule]
) -> dict[str, nn.Linear]:
    """The layers that `q8_0` outside the experts means, by their dotted name.

    They are the plain linear layers of the text decoder's layers (attention, shared experts, dense
    feed-forward, linear mixers) and the output matrix, where both sizes are multiples of 32. Left
    as they are: embeddings, an output matrix that is the embedding's own, routers and whatever
    else decides in a MoE block, norms, convolutions, and towers of other modalities.

    Args:
        model: with or without weights.
        modules: its experts modules.
    """
    outside = [f"{_block_of(experts)}." for experts in modules]
    output = model.get_output_embeddings()
    config = text_config(model.config)
    hidden_size: int = config.hidden_size
    is_tied = getattr(config, "tie_word_embeddings", False) or (
        output is not None and output.weight is model.get_input_embeddings().weight
    )
    found = {}
    for name, module in model.named_modules():
        if type(module) is not nn.Linear or module.weight.shape[0] % BLOCK_SIZE:
            continue
        if module.weight.shape[1] % BLOCK_SIZE:
            continue
        if module is output:
            if not is_tied:
                found[name] = module
            continue
        in_block = name.startswith(tuple(outside))
        if layer_index(name) is not None and (
            not in_block or _is_of_network(model, name, hidden_size)
        ):
            found[name] = module
    return found


def quantized_bytes(linear: nn.Linear) -> int:
    """Bytes of a layer's matrix in `q8_0`."""
    rows, columns = linear.weight.shape
    return int(rows * columns // BLOCK_SIZE * BLOCK_BYTES["q8_0"])


def dequantizing_bytes(linears: Mapping[str, nn.Linear]) -> int:
    """Bytes that a device works in while it makes weights float again."""
    largest = max((linear.weight.numel() for linear in linears.values()), default=0)
    return _DEQUANTIZING_BYTES * min(DEQUANTIZED_VALUES, largest)


def _block_of(experts: ExpertsModule) -> str:
    """The MoE block of an experts module."""
    is_inside = takes_routing(experts.module)
    return experts.name.rpartition(".")[0] if is_inside else experts.name


def _is_of_network(model: nn.Module, name: str, hidden_size: int) -> bool:
    """Whether a layer inside a MoE block belongs to a network that adds to the residual stream.

    What decides there, a router or the gate of shared experts, leads to experts or a number.
    """
    parent = model.get_submodule(name.rpartition(".")[0])
    siblings = [child for child in parent.children() if isinstance(child, nn.Linear)]
    return any(sibling.out_features == hidden_size for sibling in siblings)
