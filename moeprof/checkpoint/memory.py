"""Memory that a run needs beside the weights, computed without weights."""

from collections.abc import Iterator
from pathlib import Path

import torch

from moeprof.checkpoint.files import resolve_model
from moeprof.checkpoint.kv_cache import cache_of
from moeprof.checkpoint.modules import find_moe_layers
from moeprof.checkpoint.reader import Checkpoint, read_checkpoint
from moeprof.checkpoint.skeleton import (
    build_skeleton,
    load_config,
    make_weightless,
    run_meta,
    text_config,
)
from moeprof.errors import CapacityError

# Residual streams of the whole prompt that live at once in a decoder layer without autograd: the
# residual, its norm, queries, keys, values, the attention output, two of the feed-forward, the sum
# of the experts' outputs and the output that is added to it.
_LIVE_STREAMS = 10
_LOGIT_COPIES = 3  # the model's, the float32 copy, and the probabilities of sampling
_EXPERT_MATRICES = 3  # gate, up and down, each H x F


def kv_cache_bytes(
    model: Checkpoint | str | Path, context: int, batch: int, dtype: torch.dtype | None = None
) -> int:
    """Bytes of the model's own cache for sequences of a given length.

    The model runs on the meta device, with experts that return zeros, and the tensors of the
    cache that it returns are measured; sliding windows, compressed keys and recurrent states are
    therefore counted as they are.

    Args:
        model: a checkpoint, a directory or a hub id.
        context: tokens per sequence, prompt and generated together.
        batch: sequences.
        dtype: element type of the run; None for the config's.

    Raises:
        CapacityError: `context` or `batch` is not positive.
        UnsupportedModelError: the model cannot be read, or keeps no cache that can be measured.
    """
    if context < 1 or batch < 1:
        raise CapacityError(
            f"context {context} and batch {batch}: both must be at least 1",
            "give --context and --batch as positive numbers",
        )
    path = model.path if isinstance(model, Checkpoint) else resolve_model(model)
    skeleton = build_skeleton(load_config(path), dtype)
    make_weightless(find_moe_layers(skeleton))
    output = run_meta(skeleton, batch, context)
    return sum(tensor.nbytes for tensor in _tensors(cache_of(skeleton, output), set()))


def _tensors(value: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor reachable from a cache object, once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, seen)
    elif type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        yield from _tensors(vars(value), seen)


def workspace_bytes(model: Checkpoint | str | Path, context: int, batch: int) -> int:
    """Estimate of the bytes of intermediate tensors while the whole prompt is prefilled.

    With T = context x batch tokens, hidden size H, expert width F, vocabulary V, top-k K and b
    bytes per element (attention that keeps no T x T matrix, logits of the last position only)::

        T x b x (10 H  +  K H  +  2 H + 3 F)  +  batch x V x 4 x 3

    The terms are the residual streams of one layer; the outputs of its experts, which are kept
    until they are summed; rows, gate, up, product and output of the expert that is computed, if
    all tokens chose it; and the logits in float32 with two copies. F is that of an expert with
    gate, up and down matrices: its weights / 3 H. The number of live tensors is counted from
    transformers' decoder layers and the experts function of `moeprof.runtime`.

    Args:
        model: a checkpoint, a directory or a hub id.
        context: tokens per sequence.
        batch: sequences.
    """
    checkpoint = model if isinstance(model, Checkpoint) else read_checkpoint(model)
    shape = checkpoint.shape
    dtype = getattr(text_config(load_config(checkpoint.path)), "dtype", None) or torch.float32
    width = max(checkpoint.expert_weights) // (_EXPERT_MATRICES * shape.hidden_size)
    streams = (_LIVE_STREAMS + shape.top_k + 2) * shape.hidden_size + 3 * width
    logits = batch * shape.vocab_size * torch.float32.itemsize * _LOGIT_COPIES
    return int(context * batch * dtype.itemsize * streams + logits)
