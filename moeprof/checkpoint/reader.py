"""The facts of a checkpoint: its shape, its hashes, and the memory that a run of it needs."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from moeprof.checkpoint.conversion import CheckpointMap, map_checkpoint
from moeprof.checkpoint.files import fingerprint, read_config, resolve_model, tokenizer_hash
from moeprof.checkpoint.headers import TensorEntry, read_headers
from moeprof.checkpoint.modules import find_moe_layers
from moeprof.checkpoint.quantization import read_quantization
from moeprof.checkpoint.skeleton import (
    build_skeleton,
    load_config,
    max_positions,
    probe_top_k,
    text_config,
)
from moeprof.checkpoint.stored import StoredTensor, stored_tensors
from moeprof.checkpoint.weights import element_type
from moeprof.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files and what they say, without its weights.

    Attributes:
        path: the directory.
        name: what the user called it, or the directory's name.
        fingerprint: hash of the config and of the tensors' names, types and shapes.
        tokenizer_hash: hash of the tokenizer's files.
        shape: the model's numbers.
        tensors: what the safetensors headers list.
        weights: the weights that these tensors hold, quantised ones with their scales.
        expert_weights: for each MoE layer the elements of one expert.
        dense_loaded_bytes: bytes of everything outside the experts while it runs.
        compute_dtype: element type to compute in: the experts' own, or where they are quantised
            that of the config.
        max_positions: tokens of context that the model was made for; None where its config does
            not say.
    """

    path: Path
    name: str
    fingerprint: str
    tokenizer_hash: str
    shape: ModelShape
    tensors: tuple[TensorEntry, ...]
    weights: tuple[StoredTensor, ...]
    expert_weights: tuple[int, ...]
    dense_loaded_bytes: int
    compute_dtype: str
    max_positions: int | None


def read_checkpoint(model: str | Path) -> Checkpoint:
    """Read config and headers of a model; no weights.

    Args:
        model: a directory or a hub id.

    Raises:
        UnsupportedModelError: not found, not readable, unknown architecture, quantised in a way
            that cannot be read, or no MoE layers.
    """
    path = resolve_model(model)
    content = read_config(path)
    quantization = read_quantization(path.name, content)
    config = load_config(path)
    tensors = read_headers(path)
    weights = stored_tensors(tensors, quantization)
    shape, mapped = _shape(config, weights)
    compute_dtype = _compute_dtype(config, shape.dtype)
    name = path.name if Path(model).expanduser().exists() else str(model)
    return Checkpoint(
        path=path,
        name=name,
        fingerprint=fingerprint(content, tensors),
        tokenizer_hash=tokenizer_hash(path),
        shape=shape,
        tensors=tensors,
        weights=weights,
        expert_weights=_expert_weights(shape, mapped),
        dense_loaded_bytes=_loaded_bytes(mapped.dense, compute_dtype),
        compute_dtype=compute_dtype,
        max_positions=max_positions(config),
    )


def _shape(
    config: PretrainedConfig, weights: tuple[StoredTensor, ...]
) -> tuple[ModelShape, CheckpointMap]:
    """The model's numbers, and how it uses its checkpoint."""
    model = build_skeleton(config)
    modules = find_moe_layers(model)
    mapped = map_checkpoint(model, modules, weights)
    text = text_config(config)
    num_experts = modules[0].num_experts
    shape = ModelShape(
        model_type=config.model_type,
        num_layers=text.num_hidden_layers,
        moe_layers=tuple(experts.layer for experts in modules),
        num_experts=num_experts,
        top_k=probe_top_k(model, modules),
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        expert_bytes=tuple(
            sum(source.num_bytes for source in sources) // num_experts for sources in mapped.experts
        ),
        dense_bytes=sum(entry.num_bytes for entry in mapped.dense),
        dtype=_stored_dtype(mapped),
    )
    return shape, mapped


def _expert_weights(shape: ModelShape, mapped: CheckpointMap) -> tuple[int, ...]:
    return tuple(
        sum(source.num_weights for source in sources) // shape.num_experts
        for sources in mapped.experts
    )


def _loaded_bytes(weights: tuple[StoredTensor, ...], compute_dtype: str) -> int:
    """Bytes of weights in memory: plain ones as stored, quantised ones in the computing type."""
    element = element_type(compute_dtype) or torch.bfloat16
    return sum(
        weight.num_bytes if weight.scales is None else weight.num_weights * element.itemsize
        for weight in weights
    )


def _stored_dtype(mapped: CheckpointMap) -> str:
    """Element type that holds most bytes of the experts, as `StoredTensor` spells it."""
    bytes_of: dict[str, int] = {}
    for sources in mapped.experts:
        for source in sources:
            for group in source.tensors.values():
                for entry in group:
                    bytes_of[entry.dtype] = bytes_of.get(entry.dtype, 0) + entry.num_bytes
    return max(bytes_of, key=lambda name: bytes_of[name])


def _compute_dtype(config: PretrainedConfig, stored: str) -> str:
    own = getattr(text_config(config), "dtype", None) or torch.bfloat16
    return stored if element_type(stored) is not None else str(own).removeprefix("torch.")
