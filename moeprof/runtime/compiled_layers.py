"""Decoder layers through torch.compile, one graph for all layers of a kind.

A whole model is traced layer by layer and compiled for a minute; its layers differ in their
weights alone. So each layer is called through one compiled function that sees the layer as number
0 of a cache with one layer: weights and states become inputs of the graph, and what was compiled
for one layer serves all others that are like it.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from moeprof.errors import UnsupportedModelError
from moeprof.runtime.decode_cache import DecodeCache
from moeprof.runtime.row_linear import MergeProducts

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def decoder_layers(model: PreTrainedModel, num_layers: int) -> list[nn.Module]:
    """The decoder layers of a model in order.

    Args:
        model: a causal language model.
        num_layers: layers of its cache.

    Raises:
        UnsupportedModelError: it has no such list of layers.
    """
    names = set(model._no_split_modules or ())
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            layers = list(module)
            if all(type(layer).__name__ in names for layer in layers):
                return layers
    raise UnsupportedModelError(f"{type(model).__name__}: has no list of {num_layers} layers")


class CompiledLayers:
    """The layers of one model, compiled for its decode step, or for prompts.

    Args:
        model: a causal language model.
        cache: that it decodes with.
        folder: where compiled code is kept for later starts.
        backend: of torch.compile.
        any_length: whether the graphs are to serve prompts of any length.

    Raises:
        UnsupportedModelError: the model has no list of layers that matches its cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DecodeCache,
        folder: Path,
        *,
        backend: str = "inductor",
        any_length: bool = False,
    ) -> None:
        self._layers = decoder_layers(model, len(cache.layers))
        self._views = [Cache(layers=[layer]) for layer in cache.layers]
        self._cache = cache
        self._folder = folder
        self._any_length = any_length
        self._is_settled = False
        options: dict[str, Any] | None = None
        if backend == "inductor":
            # Compiled kernels begin while the one before them ends, as ours do.
            options = {
                "post_grad_custom_pre_pass": MergeProducts(),
                "triton.enable_pdl": True,
            }
        # The compiler keeps so many graphs of a code object: each model has one of its own.
        call = FunctionType(_call_layer.__code__.replace(), globals())
        self._call = torch.compile(
            call, fullgraph=True, dynamic=any_length, backend=backend, options=options
        )

    def settle(self) -> None:
        """From now on compiling is an error, `torch._dynamo.exc.RecompileError`."""
        self._is_settled = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Call the layers compiled inside this block; the first calls compile."""
        with ExitStack() as stack:
            stack.enter_context(_environment(_CACHE_VARIABLE, str(self._folder)))
            limit = max(torch._dynamo.config.recompile_limit, len(self._layers))
            stack.enter_context(torch._dynamo.config.patch(recompile_limit=limit))
            stack.enter_context(torch._dynamo.config.patch(error_on_recompile=self._is_settled))
            # Without a pool of compiling processes: they go on importing torch for seconds after a
            # start from kept code, on cores whose workers then keep all others waiting.
            in_process = torch._inductor.config.patch(deterministic=True, compile_threads=1)
            stack.enter_context(in_process)
            for i, layer in enumerate(self._layers):
                layer.forward = self._through(i)
                stack.callback(delattr, layer, "forward")
            yield

    def _through(self, index: int) -> Any:  # noqa: ANN401
        layer, view = self._layers[index], self._views[index]
        numbered = [m for m in layer.modules() if getattr(m, "layer_idx", None) == index]

        def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            name = next((name for name, given in kwargs.items() if given is self._cache), None)
            if name is None:
                raise UnsupportedModelError(f"{type(layer).__name__}: is not given its cache")
            try:
                for module in numbered:
                    module.layer_idx = 0  # type: ignore[assignment]
                return self._call(layer, args, kwargs | {name: view})
            finally:
                for module in numbered:
                    module.layer_idx = index  # type: ignore[assignment]

        return forward


def _call_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    return type(layer).forward(layer, *args, **kwargs)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
