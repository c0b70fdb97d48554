"""What a trace says of its model, where the checkpoint itself is not at hand."""

from moeprof.errors import CapacityError
from moeprof.native.reference import BLOCK_BYTES, BLOCK_SIZE
from moeprof.plan.request import ModelFacts, PlanRequest
from moeprof.trace import Trace

# Bytes of one stored value.
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def facts_of_trace(trace: Trace, request: PlanRequest) -> ModelFacts:
    """The facts on a checkpoint that its trace knows: everything but KV cache and workspace.

    In another format an expert is as much larger or smaller as its values are, which is exact
    where it has no biases and its rows are whole blocks.

    Raises:
        CapacityError: how large experts are in the request's format cannot be told from their
            bytes as stored.
    """
    shape = trace.shape
    return ModelFacts(
        name=trace.metadata.model.name,
        fingerprint=trace.metadata.model.fingerprint,
        shape=shape,
        expert_bytes=tuple(
            _bytes_in(size, shape.dtype, request.weight_format) for size in shape.expert_bytes
        ),
        dense_bytes=shape.dense_bytes,
        kv_cache_bytes=0,
        workspace_bytes=0,
    )


def _bytes_in(stored_bytes: int, dtype: str, weight_format: str | None) -> int:
    if weight_format is None or weight_format == dtype:
        return stored_bytes
    if dtype not in _VALUE_BYTES:
        raise CapacityError(
            f"trace: experts stored as {dtype} tell nothing of their size in {weight_format}",
            "name the checkpoint with --model, or leave --format out",
        )
    blocks = -(-stored_bytes // _VALUE_BYTES[dtype] // BLOCK_SIZE)
    return blocks * BLOCK_BYTES[weight_format]
