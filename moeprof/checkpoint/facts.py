"""What planning needs of a checkpoint, without loading its weights."""

from pathlib import Path

from moeprof.checkpoint.memory import kv_cache_bytes, workspace_bytes
from moeprof.checkpoint.reader import read_checkpoint
from moeprof.plan import ModelFacts, PlanRequest


def model_facts(model: str | Path, request: PlanRequest) -> ModelFacts:
    """The facts on a checkpoint that `moeprof.plan.plan` asks for.

    Args:
        model: directory or hub id.
        request: its context and batch size the KV cache and the workspace.

    Raises:
        UnsupportedModelError: the model is not there, cannot be read, or has no MoE layers.
    """
    checkpoint = read_checkpoint(model)
    context, batch = request.context_tokens, request.batch_size
    return ModelFacts(
        name=str(model),
        fingerprint=checkpoint.fingerprint,
        shape=checkpoint.shape,
        kv_cache_bytes=kv_cache_bytes(checkpoint, context, batch),
        workspace_bytes=workspace_bytes(checkpoint, context, batch),
    )
