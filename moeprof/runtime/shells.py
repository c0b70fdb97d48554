"""Loading a model without its experts: their classes are swapped for shells without weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping

from moeprof.checkpoint.loading import load_model
from moeprof.checkpoint.modules import ExpertsModule
from moeprof.checkpoint.packed_shape import expert_parameters
from moeprof.checkpoint.skeleton import BUILDING
from moeprof.checkpoint.weights import LazyWeight


def load_without_experts(
    path: Path,
    skeleton: PreTrainedModel,
    modules: list[ExpertsModule],
    weights: Mapping[str, LazyWeight],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """The model with every weight but those of its experts, in host memory.

    Args:
        path: of the checkpoint.
        skeleton: the model on the meta device.
        modules: its experts modules.
        weights: of everything but the experts.
        dtype: element type of the weights.

    Raises:
        UnsupportedModelError: transformers cannot load it, or weights are missing.
    """
    with BUILDING, _swapped({type(experts.module) for experts in modules}):
        return load_model(path, skeleton, weights, dtype)


@contextmanager
def _swapped(classes: set[type[nn.Module]]) -> Iterator[None]:
    shells = {f"^{cls.__name__}$": _shell_of(cls) for cls in classes}
    register_patch_mapping(shells)
    try:
        yield
    finally:
        unregister_patch_mapping(list(shells))


def _shell_of(experts_class: type[nn.Module]) -> type[nn.Module]:
    """A subclass with the same code and no expert weights."""

    def build(self: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        with torch.device("meta"):
            experts_class.__init__(self, *args, **kwargs)
        for name in expert_parameters(self):
            delattr(self, name)
            # Some blocks initialise their experts' weights by name.
            setattr(self, name, torch.empty(0, device="cpu"))
        self._is_hf_initialized = True  # type: ignore[assignment]

    return type(experts_class.__name__, (experts_class,), {"__init__": build})
