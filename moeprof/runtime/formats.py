"""In which formats a run keeps its weights."""

from collections.abc import Iterator

import torch

from moeprof.checkpoint.dense_layers import DENSE_FORMATS
from moeprof.errors import PlacementError, UnsupportedModelError
from moeprof.native.reference import BLOCK_BYTES
from moeprof.placement.manifest import AS_STORED, Placement

STORED = "stored"
FORMATS = (*BLOCK_BYTES, STORED)


def choose_format(
    placement: Placement | None, requested: str | None, stored_dtype: str, dtype: torch.dtype
) -> str:
    """The format of all experts of a run: the plan's, else the one asked for, else the model's.

    Left open by both, it is `bf16` for a model that is run in bfloat16 and stored so, or in a
    narrower type, and `stored` for any other: no precision is lost unasked.

    Args:
        placement: the plan; None where there is none.
        requested: of `FORMATS`, or None.
        stored_dtype: the checkpoint's element type for the experts.
        dtype: element type of the run.

    Returns:
        `q8_0`, `q4_0`, `bf16`, or `stored` for torch's own arithmetic in the run's element type.

    Raises:
        UnsupportedModelError: no such format.
        PlacementError: the plan was made for another format, or mixes formats.
    """
    if requested is not None and requested not in FORMATS:
        raise UnsupportedModelError(
            f"format {requested!r}: not supported", f"use one of {', '.join(FORMATS)}"
        )
    planned = frozenset() if placement is None else placement.planned_formats
    if len(planned) > 1:
        raise PlacementError(
            f"placement: mixes the formats {', '.join(sorted(planned))}, a run has one for all",
            "plan again with one --format",
        )
    if planned:
        only = next(iter(planned))
        if requested not in (None, only):
            raise PlacementError(
                f"placement: was planned for experts in {only}, not in {requested}",
                f"plan again with --format {requested}, or run without --format",
            )
        return only
    if requested is not None:
        return requested
    wider = stored_dtype in ("float64", "float32", "float16")
    return STORED if wider or dtype != torch.bfloat16 else "bf16"


def notes_on_format(placement: Placement | None, weight_format: str) -> Iterator[str]:
    """What to say of experts whose format a plan leaves open while it gives that of others.

    Args:
        placement: the plan; None where there is none.
        weight_format: what all experts run in.
    """
    if placement is None or not placement.planned_formats:
        return
    num_open = sum(layer.formats.count(AS_STORED) for layer in placement.layers)
    if num_open:
        yield (
            f"the placement leaves the format of {num_open} experts open (as_stored): they run in "
            f"{weight_format} like the others, whatever size was planned for them"
        )


def choose_dense_format(placement: Placement | None, requested: str | None) -> str:
    """The format of the linear layers outside the experts: the one asked for, else the plan's.

    Args:
        placement: the plan; None where there is none.
        requested: of `DENSE_FORMATS`, or None.

    Raises:
        UnsupportedModelError: no such format.
    """
    if requested is None:
        return STORED if placement is None else placement.dense_format
    if requested not in DENSE_FORMATS:
        raise UnsupportedModelError(
            f"dense format {requested!r}: not supported", f"use one of {', '.join(DENSE_FORMATS)}"
        )
    return requested
