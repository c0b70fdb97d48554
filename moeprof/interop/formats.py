"""The foreign formats by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moeprof.interop import (
    imatrix,
    ktransformers,
    layer_expert_csv,
    layer_parquet,
    route_trace,
    sglang,
    tok_layers,
    topk_csv,
    vllm,
)
from moeprof.interop.source import Facts, Source
from moeprof.trace import Trace


@dataclass(frozen=True, slots=True)
class Format:
    """A foreign format.

    Attributes:
        what: what its files are, in a few words.
        read: makes a source of files; raises TraceError.
        write: writes a trace's rows into one file; None where that makes no sense.
    """

    what: str
    read: Callable[[Sequence[Path], Facts], Source]
    write: Callable[[Trace, Path], None] | None = None


FORMATS = {
    "route-trace": Format("route_trace v1 CSV", route_trace.read, route_trace.write),
    "tok-layers": Format("JSON lines of tok and layers", tok_layers.read, tok_layers.write),
    "topk-csv": Format("pos,layer,id0,... of llama-moe-trace", topk_csv.read, topk_csv.write),
    "layer-expert-csv": Format(
        "counts as layer,expert,count", layer_expert_csv.read, layer_expert_csv.write
    ),
    "imatrix": Format("expert counts of llama-imatrix, GGUF", imatrix.read),
    "sglang": Format("expert distribution recorder of SGLang", sglang.read),
    "vllm": Format("routed experts of vLLM", vllm.read, vllm.write),
    "ktransformers": Format(
        "logical_count of KTransformers", ktransformers.read, ktransformers.write
    ),
    "parquet": Format(
        "one Parquet file of indices and scores per layer", layer_parquet.read, layer_parquet.write
    ),
}
