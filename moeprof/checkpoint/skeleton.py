"""A model built from its config on the meta device: every shape, no weights, no memory."""

import copy
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import _config as fx_config
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from moeprof.checkpoint.modules import ExpertsModule, takes_routing
from moeprof.errors import UnsupportedModelError

# transformers' table of swapped classes is global: who builds a model, swapped or not, takes turns.
BUILDING = threading.RLock()

_NUM_PROBE_TOKENS = 2


def load_config(directory: Path) -> PretrainedConfig:
    """The model's config as transformers reads it.

    Raises:
        UnsupportedModelError: transformers does not know the architecture or refuses the config.
    """
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(
            f"{directory}: transformers cannot read its config ({first_line})",
            "update transformers; models that bring their own code are not supported",
        ) from error


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the language model; of a composite model, the part that decodes text."""
    text: PretrainedConfig = config.get_text_config(decoder=True)
    return text


def max_positions(config: PretrainedConfig) -> int | None:
    """Tokens of context that a model was made for; None where its config does not say.

    Scaled rotary embeddings reach further than the positions of training. Some configs give the
    positions with the scaling, others those without it, so the larger of both readings counts.
    """
    text = text_config(config)
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    of_layers = (part for part in rope.values() if isinstance(part, dict))
    return max(limit, *(_scaled_positions(part, limit) for part in (rope, *of_layers)))


def _scaled_positions(rope: dict[str, Any], limit: int) -> int:
    factor, trained = rope.get("factor"), rope.get("original_max_position_embeddings")
    if not isinstance(factor, int | float) or not math.isfinite(factor):
        return limit
    return int(factor * (trained if isinstance(trained, int) else limit))


def auto_class(config: PretrainedConfig) -> type[Any]:
    """The transformers class that loads a model with this config so that it generates text.

    Raises:
        UnsupportedModelError: neither a causal language model nor an image-text one.
    """
    for candidate in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in candidate._model_mapping:
            found: type[Any] = candidate
            return found
    raise UnsupportedModelError(
        f"model type {config.model_type!r}: not a language model that generates text",
        "moeprof supports causal language models",
    )


def build_skeleton(config: PretrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a config on the meta device, in evaluation mode.

    Args:
        config: left unchanged.
        dtype: element type; None for the config's own.

    Raises:
        UnsupportedModelError: transformers cannot build it.
    """
    dtype = dtype or getattr(text_config(config), "dtype", None) or torch.float32
    loader = auto_class(config)
    try:
        with BUILDING, torch.device("meta"):
            model: PreTrainedModel = loader.from_config(copy.deepcopy(config), dtype=dtype)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise UnsupportedModelError(
            f"model type {config.model_type!r}: transformers cannot build it from its config "
            f"({error})",
            "update transformers, or check config.json",
        ) from error
    return model.eval()


def make_weightless(modules: list[ExpertsModule]) -> dict[int, int]:
    """Replace the computation of experts modules by zeros, so that a meta model runs.

    Blocks without an experts module of their own are left as they are.

    Returns:
        a dict that a forward fills: layer -> experts chosen per token (K).
    """
    chosen: dict[int, int] = {}
    for experts in modules:
        if takes_routing(experts.module):
            experts.module.forward = _zeros(experts.layer, chosen)
    return chosen


def _zeros(layer: int, chosen: dict[int, int]) -> Callable[..., torch.Tensor]:
    def forward(hidden: torch.Tensor, *routing: object, **named: object) -> torch.Tensor:
        tensors = [t for t in (*routing, *named.values()) if isinstance(t, torch.Tensor)]
        chosen[layer] = next(t for t in tensors if not t.is_floating_point()).shape[-1]
        return torch.zeros_like(hidden)

    return forward


def probe_top_k(model: PreTrainedModel, modules: list[ExpertsModule]) -> int:
    """Experts chosen per token (K), read from the routing of a forward on the meta device.

    The config's fields are no substitute: their names differ and some models ignore them. Only
    blocks without an experts module are asked for their own `top_k`.

    Raises:
        UnsupportedModelError: the forward fails, a layer stays silent, or layers differ.
    """
    chosen = {
        experts.layer: _declared_top_k(experts.module)
        for experts in modules
        if not takes_routing(experts.module)
    }
    if len(chosen) < len(modules):
        probed = make_weightless(modules)
        run_meta(model, 1, _NUM_PROBE_TOKENS)
        chosen |= probed
    silent = [experts.layer for experts in modules if experts.layer not in chosen]
    if silent or len(set(chosen.values())) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__}: experts per token must be one number, found "
            f"{sorted(set(chosen.values()))}, layers without routing {silent}"
        )
    return next(iter(chosen.values()))


def _declared_top_k(block: nn.Module) -> int:
    for module in (block, getattr(block, "router", None)):
        declared = getattr(module, "top_k", None)
        if isinstance(declared, int):
            return declared
    raise UnsupportedModelError(f"{type(block).__name__}: does not say how many experts it chooses")


def run_meta(model: PreTrainedModel, batch: int, num_tokens: int) -> ModelOutput:
    """Output of a meta model's decoder, with its cache, for a batch of equally long sequences.

    Raises:
        UnsupportedModelError: its forward needs real values.
    """
    ids = torch.zeros((batch, num_tokens), dtype=torch.int64, device="meta")
    # Sizes that depend on values are taken at their largest.
    largest = fx_config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
    try:
        with torch.no_grad(), largest:
            output: ModelOutput = model.get_decoder()(input_ids=ids, use_cache=True)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(
            f"{type(model).__name__}: its forward does not run without weights ({first_line})",
            "if --context or --batch is very large, lower it; else report the model",
        ) from error
    return output
