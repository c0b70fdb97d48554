"""What planning needs of a checkpoint, without loading its weights."""

from pathlib import Path

from moeprof.checkpoint.dense_layers import (
    dequantizing_bytes,
    quantizable_linears,
    quantized_bytes,
)
from moeprof.checkpoint.files import resolve_model
from moeprof.checkpoint.memory import kv_cache_bytes, workspace_bytes
from moeprof.checkpoint.modules import find_moe_layers
from moeprof.checkpoint.packed_shape import PackableExperts
from moeprof.checkpoint.reader import Checkpoint, read_checkpoint
from moeprof.checkpoint.skeleton import build_skeleton, load_config, max_positions
from moeprof.checkpoint.weights import element_type
from moeprof.placement import DENSE_AS_STORED
from moeprof.plan import ModelFacts, PlanRequest


def model_facts(model: str | Path, request: PlanRequest) -> ModelFacts:
    """The facts on a checkpoint that `moeprof.plan.plan` asks for.

    Args:
        model: directory or hub id.
        request: its context and batch size the KV cache and the workspace.

    Raises:
        UnsupportedModelError: the model is not there, cannot be read, has no MoE layers, or its
            experts cannot be packed in the request's format.
    """
    checkpoint = read_checkpoint(model)
    context, batch = request.context_tokens, request.batch_size
    saved, working = _dense_in(checkpoint, request.dense_format)
    return ModelFacts(
        name=str(model),
        fingerprint=checkpoint.fingerprint,
        shape=checkpoint.shape,
        expert_bytes=_expert_bytes(checkpoint, request.weight_format),
        dense_bytes=checkpoint.dense_loaded_bytes - saved,
        kv_cache_bytes=kv_cache_bytes(checkpoint, context, batch),
        workspace_bytes=workspace_bytes(checkpoint, context, batch) + working,
    )


def usual_context(model: str | Path) -> int:
    """Tokens of context to plan for where nobody says: as many as the model was made for, at most.

    Args:
        model: directory or hub id.

    Raises:
        UnsupportedModelError: the model is not there or its config cannot be read.
    """
    usual = PlanRequest(vram_bytes=0).context_tokens
    return min(usual, max_positions(load_config(resolve_model(model))) or usual)


def context_notes(model: str | Path, context: int) -> tuple[str, ...]:
    """What to say of a planned context: nothing, or that it is longer than the model's own.

    Args:
        model: directory or hub id.
        context: tokens.

    Raises:
        UnsupportedModelError: the model is not there or its config cannot be read.
    """
    limit = max_positions(load_config(resolve_model(model)))
    if limit is None or context <= limit:
        return ()
    return (
        f"the context of {context} tokens is longer than the {limit} that the model was made for "
        f"(max_position_embeddings), and moeprof run ends there; --context {limit} leaves more "
        "VRAM for experts",
    )


def _dense_in(checkpoint: Checkpoint, dense_format: str) -> tuple[int, int]:
    """Bytes that a format of linear layers saves, and those that it works in."""
    if dense_format == DENSE_AS_STORED:
        return 0, 0
    dtype = element_type(checkpoint.compute_dtype)
    skeleton = build_skeleton(load_config(checkpoint.path), dtype)
    linears = quantizable_linears(skeleton, find_moe_layers(skeleton))
    saved = sum(linear.weight.nbytes - quantized_bytes(linear) for linear in linears.values())
    return saved, dequantizing_bytes(linears)


def _expert_bytes(checkpoint: Checkpoint, weight_format: str | None) -> tuple[int, ...]:
    if weight_format is None:
        return checkpoint.shape.expert_bytes
    modules = find_moe_layers(build_skeleton(load_config(checkpoint.path)))
    return tuple(PackableExperts.of(experts, weight_format).shape.num_bytes for experts in modules)
