"""`logical_count` over all layers: what KTransformers places experts by.

A file of torch.save with a dictionary; `logical_count` is [steps, num_hidden_layers, num_experts]
or [num_hidden_layers, num_experts] integers, how often each expert was chosen. Dense layers are
rows of zeros. Steps are forwards, not documents, and are added. `--init-expert-location FILE` with
`--kt-expert-placement-strategy frequency` reads it.

It cannot say which experts a token chose together or in which order, where documents end, the
phase, top-k, weights, tokens, the model or its bytes; a layer whose experts were never chosen looks
dense.

Sources: github.com/kvcache-ai/ktransformers, doc/en/kt-kernel/experts-sched-Tutorial.md, and
github.com/sgl-project/sglang, python/sglang/srt/eplb/expert_location.py.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.exporting import disk_errors
from moeprof.interop.source import Counted, Facts, Source, Stated
from moeprof.interop.text import shown
from moeprof.interop.torch_files import integers, load
from moeprof.interop.values import summed
from moeprof.trace import Trace

KEY = "logical_count"


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The counts of the files.

    Raises:
        TraceError: a file has no such counts, or they differ in their layers or experts.
    """
    return counted_source([(path, load(path)) for path in files])


def counted_source(documents: Sequence[tuple[Path, dict[str, Any]]]) -> Source:
    """The source of dictionaries with `logical_count`.

    Raises:
        TraceError: as `read`.
    """
    every = [(path, _logical_count(path, document)) for path, document in documents]
    first = every[0][1]
    if any(counts.shape != first.shape for _, counts in every):
        raise TraceError(
            f"{every[0][0]}: the files differ in layers or experts", "import one model at a time"
        )
    layers = np.flatnonzero(np.stack([counts for _, counts in every]).any(axis=(0, 2)))
    if not len(layers):
        raise TraceError(f"{every[0][0]}: counts no assignments", "name files with routing")
    return Source(
        stated=Stated(moe_layers=tuple(layers.tolist()), num_experts=first.shape[1]),
        counted=[Counted(path.name, counts[layers]) for path, counts in every],
        missing=frozenset({"documents"}),
    )


def _logical_count(path: Path, document: dict[str, Any]) -> NDArray[np.int64]:
    """[num_hidden_layers, num_experts] int64, steps added."""
    if KEY not in document:
        raise TraceError(
            f"{path}: has no {KEY}, only {shown(', '.join(map(str, document)))}",
            "record with the recorder's mode stat",
        )
    counts = integers(document[KEY], f"{path}: {KEY}", (2, 3))
    return summed(counts if counts.ndim == 3 else counts[None], f"{path}: {KEY}", "step")


def write(trace: Trace, path: Path) -> None:
    """Write the counts of a trace, all documents and phases together, as [1, layers, experts].

    Raises:
        TraceError: the file cannot be written.
    """
    import torch

    shape, stream = trace.shape, BytesIO()
    counts = np.zeros((1, shape.num_layers, shape.num_experts), np.int64)
    counts[0, list(shape.moe_layers)] = trace.cell_counts().counts.sum(axis=(0, 1))
    # Into memory first, since torch.save does not say that a disk is full.
    torch.save({KEY: torch.from_numpy(counts)}, stream)
    with disk_errors(path):
        path.write_bytes(stream.getvalue())
