"""Linear layers that multiply a single row by a kernel that runs at the speed of memory."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass

from moeprof.runtime.dense_ops import HAS_KERNELS, row_products
from moeprof.runtime.kernel_call import ELEMENT_NAMES

_MOST_PRODUCTS = 4
_CHUNK_BYTES = 16
_PRODUCTS = (
    torch.ops.moeprof.row_products.default,
    torch.ops.moeprof.q8_row_products.default,
)


class RowLinear(nn.Linear):
    """A linear layer with `row_products` for single rows; other inputs go torch's way."""

    def forward(self, input: Tensor) -> Tensor:
        """The layer's product, as `nn.Linear` defines it."""
        if input.numel() != self.in_features or input.dtype != self.weight.dtype:
            return super().forward(input)
        product: Tensor = row_products(input.contiguous(), [self.weight], [self.bias])[0]
        return product


def use_row_products(model: nn.Module) -> int:
    """Turn a model's linear layers into `RowLinear` where the kernel takes their shape.

    Returns:
        How many were turned.
    """
    turned = 0
    for module in model.modules():
        if type(module) is nn.Linear and _is_suitable(module):
            module.__class__ = RowLinear
            turned += 1
    return turned


def _is_suitable(module: nn.Linear) -> bool:
    weight = module.weight
    return (
        weight.dtype in ELEMENT_NAMES
        and weight.is_contiguous()
        and weight.shape[1] * weight.itemsize % _CHUNK_BYTES == 0
        and (module.bias is None or module.bias.dtype == weight.dtype)
        and (not weight.is_cuda or HAS_KERNELS)
    )


class MergeProducts(CustomGraphPass):
    """Joins products with the same row in a graph of torch.compile into one operation."""

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite a graph in place."""
        alike: dict[Any, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.target in _PRODUCTS:
                alike.setdefault((node.target, node.args[0]), []).append(node)
        for nodes in alike.values():
            for begin in range(0, len(nodes), _MOST_PRODUCTS):
                _merge(graph, nodes[begin : begin + _MOST_PRODUCTS])

    def uuid(self) -> str:
        """The key under which torch keeps compiled graphs that went through this pass."""
        return "moeprof merge products 2"


def _merge(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    """Join calls that have an operation and their row in common; the rest of each is lists."""
    lists: list[Any] = [node.args[1:] for node in nodes]
    if len(nodes) < 2 or any(len(own) != 1 for parts in lists for own in parts):
        return
    joined = [[own[0] for own in parts] for parts in zip(*lists, strict=True)]
    given = [part for parts in joined for part in parts]
    if any(isinstance(part, fx.Node) and part.op != "placeholder" for part in given):
        return
    operation: Any = nodes[0].target
    with graph.inserting_before(nodes[0]):
        merged = graph.call_function(operation, (nodes[0].args[0], *joined))
        parts = [graph.call_function(operator.getitem, (merged, i)) for i in range(len(nodes))]
    merged.meta["val"] = [node.meta["val"][0] for node in nodes]
    for node, part in zip(nodes, parts, strict=True):
        part.meta["val"] = node.meta["val"][0]
        for user in list(node.users):
            user.replace_all_uses_with(part)
            graph.erase_node(user)
        graph.erase_node(node)
