"""Loading a model without its experts: their classes are swapped for shells without weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping
from transformers.utils import logging

from moeprof.checkpoint.modules import ExpertsModule
from moeprof.checkpoint.packed_shape import expert_parameters
from moeprof.checkpoint.skeleton import BUILDING, auto_class
from moeprof.errors import UnsupportedModelError


def load_without_experts(
    path: Path, config: PretrainedConfig, modules: list[ExpertsModule], dtype: torch.dtype
) -> PreTrainedModel:
    """The model with every weight but those of its experts, in host memory.

    Args:
        path: of the checkpoint.
        config: its config.
        modules: the experts modules of its skeleton.
        dtype: element type of the weights.

    Raises:
        UnsupportedModelError: transformers cannot load it, or weights are missing.
    """
    loader = auto_class(config)
    with BUILDING, _quietly(), _swapped({type(experts.module) for experts in modules}):
        try:
            model, info = loader.from_pretrained(
                path, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise UnsupportedModelError(
                f"{path}: transformers cannot load this checkpoint ({error})",
                "check that it loads with AutoModelForCausalLM.from_pretrained",
            ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            f"{path}: {len(missing)} weights are missing, the first is {missing[0]!r}",
            "copy or download the checkpoint again",
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from reporting every expert as an unexpected weight."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


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
