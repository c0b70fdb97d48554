"""What a trace says of its model, where the checkpoint itself is not at hand."""

from moeprof.errors import CapacityError
from moeprof.model_shape import ModelShape
from moeprof.native.reference import BLOCK_BYTES, BLOCK_SIZE
from moeprof.plan.request import ModelFacts, PlanRequest
from moeprof.trace import Trace

# Bytes of one stored value.
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def facts_of_trace(trace: Trace, request: PlanRequest) -> ModelFacts:
    """The facts on a checkpoint that its trace knows: everything but KV cache and workspace.

    Raises:
        CapacityError: how large experts are in the request's format cannot be told.
    """
    shape = trace.shape
    return ModelFacts(
        name=trace.metadata.model.name,
        fingerprint=trace.metadata.model.fingerprint,
        shape=shape,
        expert_bytes=expert_bytes_in(shape, request.weight_format),
        dense_bytes=shape.dense_bytes,
        kv_cache_bytes=0,
        workspace_bytes=0,
    )


def expert_bytes_in(shape: ModelShape, weight_format: str | None) -> tuple[int, ...]:
    """Bytes of one expert of each MoE layer in a format; as stored without one.

    An expert is as much larger or smaller as its values are, which is exact where it has no biases
    and its rows are whole blocks.

    Raises:
        CapacityError: it cannot be told from the bytes as stored.
    """
    if weight_format is None or weight_format == shape.dtype:
        return shape.expert_bytes
    if shape.dtype not in _VALUE_BYTES or weight_format not in BLOCK_BYTES:
        raise CapacityError(
            f"trace: experts stored as {shape.dtype} tell nothing of their size in {weight_format}",
            "leave --format out, or ask moeprof advise with the checkpoint as --model",
        )
    values = [size // _VALUE_BYTES[shape.dtype] for size in shape.expert_bytes]
    return tuple(-(-one // BLOCK_SIZE) * BLOCK_BYTES[weight_format] for one in values)
