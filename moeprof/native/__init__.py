"""The native core: operations compiled from C++, each with its numpy definition in `reference`."""

from moeprof.native._core import (
    NO_EXPERT,
    Answerer,
    ExpertLayer,
    HostMemory,
    PrefillAnswerer,
    Workers,
    count_assignments,
    exchange_layout,
    expert_bytes,
    gated_unit,
    pack_expert,
    pack_rows,
    paths,
    project,
    quantize_expert,
    unpack_rows,
)

__all__ = [
    "NO_EXPERT",
    "Answerer",
    "ExpertLayer",
    "HostMemory",
    "PrefillAnswerer",
    "Workers",
    "count_assignments",
    "exchange_layout",
    "expert_bytes",
    "gated_unit",
    "pack_expert",
    "pack_rows",
    "paths",
    "project",
    "quantize_expert",
    "unpack_rows",
]
