"""The routing of the forward that just ran: which experts each token used, with which weights."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from moeprof.capture.adapters import Parts, RoutingReader, routing_reader
from moeprof.checkpoint.modules import ExpertsModule, find_moe_layers
from moeprof.errors import UnsupportedModelError
from moeprof.native import NO_EXPERT


@dataclass(frozen=True, slots=True)
class Routed:
    """What one forward routed; row `b * S + s` is token `s` of sequence `b`, padding included.

    Attributes:
        ids: [num_moe_layers, num_tokens, top_k] int64, in the router's rank order; `NO_EXPERT`
            where the slot chose no expert with weights.
        weights: [num_moe_layers, num_tokens, top_k] float32, as applied by the experts module.
    """

    ids: Tensor
    weights: Tensor


def moe_shape(model: nn.Module) -> tuple[tuple[int, ...], int]:
    """Checkpoint indices of the MoE layers, ascending, and the number of routed experts in each.

    Raises:
        UnsupportedModelError: the model has no MoE layers, or none that can be traced.
    """
    found = _traceable_layers(model)
    return tuple(layer.layer for layer in found), found[0].num_experts


class RoutingTap:
    """Keeps what every MoE layer of a model used in the forward that just ran.

    Use it as a context manager and call `take` after each forward. It changes no output, and on a
    device it neither copies nor synchronises while the forward runs.

    Args:
        model: a transformers model; it need not be on one device.

    Attributes:
        layers: checkpoint indices of the MoE layers, ascending.
        num_experts: routed experts of each MoE layer.

    Raises:
        UnsupportedModelError: the model has no MoE layers, or none that can be traced.

    Example:
        with RoutingTap(model) as tap:
            model(input_ids)
            routed = tap.take()
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._found = _traceable_layers(model)
        self._readers: list[RoutingReader] = [routing_reader(f.module) for f in self._found]
        self.layers = tuple(found.layer for found in self._found)
        self.num_experts = self._found[0].num_experts
        self._kept: dict[int, Parts] = {}
        self._num_forwards = 0
        self._top_k: int | None = None
        self._exit = ExitStack()

    @property
    def top_k(self) -> int:
        """Experts chosen per token; known once `take` has returned.

        Raises:
            ValueError: nothing was taken yet.
        """
        if self._top_k is None:
            raise ValueError("top_k is known after the first take()")
        return self._top_k

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            handle = self._model.register_forward_pre_hook(self._begin)
            stack.callback(handle.remove)
            for found, reader in zip(self._found, self._readers, strict=True):
                for hook in reader.attach(found.module, self._keeper(found)):
                    stack.callback(hook.remove)
                if _is_native_mxfp4(found.module) and not getattr(
                    found.module, "_is_hooked", False
                ):
                    stack.callback(setattr, found.module, "_is_hooked", False)
                    found.module._is_hooked = True  # type: ignore[assignment]
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit.close()
        self._kept = {}
        self._num_forwards = 0

    def take(self) -> Routed:
        """The routing of the forward that just ran, on the device of its first MoE layer.

        Raises:
            ValueError: no forward ran since the last call.
            UnsupportedModelError: a MoE layer did not run, or ran on other rows or another top-k.
        """
        kept, self._kept = self._kept, {}
        num_forwards, self._num_forwards = self._num_forwards, 0
        if not kept and not num_forwards:
            raise ValueError("take() needs a forward of the model since the last take()")
        silent = [found.name for found in self._found if found.layer not in kept]
        if silent:
            raise UnsupportedModelError(
                f"{type(self._model).__name__}: {len(silent)} of {len(self._found)} MoE layers "
                f"did not call their experts in a forward: {', '.join(silent)}",
                "load the model without custom kernels or compiled blocks",
            )
        decoded = [
            reader.decode(found.module, kept[found.layer])
            for found, reader in zip(self._found, self._readers, strict=True)
        ]
        self._check_alike([ids for ids, _ in decoded])
        device = decoded[0][0].device
        ids = torch.stack([ids.to(device, torch.int64, non_blocking=True) for ids, _ in decoded])
        weights = torch.stack(
            [w.detach().to(device, torch.float32, non_blocking=True) for _, w in decoded]
        )
        self._top_k = ids.shape[-1]
        no_expert = (weights == 0) | (ids >= self.num_experts)
        return Routed(ids.masked_fill(no_expert, NO_EXPERT), weights)

    def _begin(self, _model: nn.Module, _args: tuple[Any, ...]) -> None:
        if self._kept:
            raise ValueError("take() must be called after each forward of the model")
        self._num_forwards += 1

    def _keeper(self, found: ExpertsModule) -> Callable[[Parts], None]:
        def keep(parts: Parts) -> None:
            if found.layer in self._kept:
                raise UnsupportedModelError(
                    f"{type(self._model).__name__}: {found.name} ran twice in one forward, "
                    "expected once",
                    "use a model that does not share its MoE layers, without recomputation",
                )
            self._kept[found.layer] = parts

        return keep

    def _check_alike(self, ids: list[Tensor]) -> None:
        for found, layer_ids in zip(self._found, ids, strict=True):
            if layer_ids.shape != ids[0].shape:
                raise UnsupportedModelError(
                    f"{type(self._model).__name__}: {found.name} routed {layer_ids.shape[0]} "
                    f"tokens to {layer_ids.shape[1]} experts each, {self._found[0].name} "
                    f"{ids[0].shape[0]} to {ids[0].shape[1]}, expected the same",
                    "use a model whose MoE layers are alike, on text alone",
                )


def _traceable_layers(model: nn.Module) -> list[ExpertsModule]:
    """The MoE layers of a model of a kind that hooks can follow."""
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name}: is an encoder-decoder model, expected a causal language model",
            "use a decoder-only Mixture-of-Experts model",
        )
    if getattr(model, "use_kernels", False):
        raise UnsupportedModelError(
            f"{name}: was loaded with use_kernels=True, whose fused MoE blocks hide their routing",
            "load it with use_kernels=False",
        )
    for module_name, module in model.named_modules():
        if type(module).__name__ == "Mxfp4GptOssExperts" and not _is_native_mxfp4(module):
            raise UnsupportedModelError(
                f"{module_name}: computes on MXFP4 weights in a way that hides its routing",
                "load it with quantization_config=Mxfp4Config(dequantize=True)",
            )
    return find_moe_layers(model)


def _is_native_mxfp4(module: nn.Module) -> bool:
    """Whether setting `_is_hooked` makes this module's block call router and experts in turn.

    The fused path of `Mxfp4GptOssMLP` calls `forward_routed`, which no hook sees.
    """
    return type(module).__name__ == "Mxfp4GptOssExperts" and hasattr(module, "forward_routed")
