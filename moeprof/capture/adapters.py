"""How the routing of one MoE layer is read: one way for nearly all, three for the exceptions.

A reader hooks a layer and keeps references to what the layer itself computed with; `decode` turns
them into ids and weights when the forward is over, so that the forward is left as it was.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moeprof.errors import UnsupportedModelError

Parts = tuple[Any, ...]
Keep = Callable[[Parts], None]


@dataclass(frozen=True, slots=True)
class RoutingReader:
    """The way to read one kind of MoE layer.

    Attributes:
        attach: registers hooks on the layer's module; they call `keep` once in each forward with
            references to tensors of that forward.
        decode: (module, parts) to ids [T, K] integer and weights [T, K] floating, as used.
    """

    attach: Callable[[nn.Module, Keep], list[RemovableHandle]]
    decode: Callable[[nn.Module, Parts], tuple[Tensor, Tensor]]


def routing_reader(module: nn.Module) -> RoutingReader:
    """The reader of a module that `find_moe_layers` returned.

    Raises:
        UnsupportedModelError: a block known by name has not the parts that its reader needs.
    """
    name = type(module).__name__
    if name not in _ADAPTED:
        return RoutingReader(_attach_experts, _decode_experts)
    reader, needed = _ADAPTED[name]
    missing = [part for part in needed if not hasattr(module, part)]
    if missing:
        raise UnsupportedModelError(
            f"{name}: has no {', '.join(missing)}, its routing cannot be read",
            "install a transformers version that moeprof was tested with",
        )
    return reader


def _attach_experts(module: nn.Module, keep: Keep) -> list[RemovableHandle]:
    """The ids and weights are the experts module's own second and third argument."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]

    def before(_module: nn.Module, args: Parts, kwargs: dict[str, Any]) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        keep((given[names[1]], given[names[2]]))

    return [module.register_forward_pre_hook(before, with_kwargs=True)]


def _decode_experts(_module: nn.Module, parts: Parts) -> tuple[Tensor, Tensor]:
    ids, weights = parts
    return ids.reshape(-1, ids.shape[-1]), weights.reshape(-1, ids.shape[-1])


def _attach_llama4(module: nn.Module, keep: Keep) -> list[RemovableHandle]:
    """The router's first output is what scales each expert's input: [T, E], 0 where not chosen."""

    def after(_module: nn.Module, _args: Parts, output: Parts) -> None:
        keep((output[0],))

    return [_child(module, "router").register_forward_hook(after)]


def _decode_llama4(module: nn.Module, parts: Parts) -> tuple[Tensor, Tensor]:
    (scores,) = parts
    weights, ids = scores.topk(module.top_k, dim=-1)
    return ids, weights


def _attach_jetmoe(module: nn.Module, keep: Keep) -> list[RemovableHandle]:
    """The router returns its slots sorted by expert, and on the host how many each expert has."""

    def after(_module: nn.Module, _args: Parts, output: Parts) -> None:
        slots, _, gates, expert_sizes, _ = output
        keep((slots, gates, expert_sizes))

    return [_child(module, "router").register_forward_hook(after)]


def _decode_jetmoe(module: nn.Module, parts: Parts) -> tuple[Tensor, Tensor]:
    slots, gates, expert_sizes = parts
    router: Any = _child(module, "router")
    sizes = torch.tensor(expert_sizes, device=slots.device)
    by_expert = torch.repeat_interleave(sizes, output_size=slots.numel())
    ids = torch.empty_like(slots).scatter_(0, slots, by_expert)
    weights = torch.empty_like(gates).scatter_(0, slots, gates)
    return ids.view(-1, router.top_k), weights.view(-1, router.top_k)


def _attach_doge(module: nn.Module, keep: Keep) -> list[RemovableHandle]:
    """The ids are what the expert embedding is asked for; the logits come from the router."""
    logits: list[Tensor] = []

    def after_router(_module: nn.Module, _args: Parts, output: Tensor) -> None:
        logits[:] = [output]

    def before_experts(_module: nn.Module, args: Parts) -> None:
        keep((args[0], logits.pop()))

    return [
        _child(module, "router_gate").register_forward_hook(after_router),
        _child(module, "down_embed").register_forward_pre_hook(before_experts),
    ]


def _decode_doge(module: nn.Module, parts: Parts) -> tuple[Tensor, Tensor]:
    """Weights as in `DogeCDMoE.forward`: softmax over the sums of the chosen product keys."""
    ids, logits = parts
    ids = ids.reshape(-1, ids.shape[-1])
    keys_x, keys_y = logits.reshape(2, ids.shape[0], -1)
    row, column = ids // module.num_keys, ids % module.num_keys
    weights = torch.softmax(keys_x.gather(-1, row) + keys_y.gather(-1, column), dim=-1)
    if module.norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return ids, weights


def _child(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name)


_ADAPTED: dict[str, tuple[RoutingReader, tuple[str, ...]]] = {
    "Llama4TextMoe": (RoutingReader(_attach_llama4, _decode_llama4), ("router", "top_k")),
    "JetMoeMoE": (RoutingReader(_attach_jetmoe, _decode_jetmoe), ("router",)),
    "DogeCDMoE": (
        RoutingReader(_attach_doge, _decode_doge),
        ("router_gate", "down_embed", "num_keys", "norm_topk_prob"),
    ),
}
