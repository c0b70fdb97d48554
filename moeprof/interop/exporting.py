"""The rows of a trace, as writers of foreign formats want them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from moeprof.errors import TraceError
from moeprof.interop.source import Tokens
from moeprof.trace import Trace


def documents_of(trace: Trace) -> list[Tokens]:
    """Every document with its tokens in order; all rows are held in memory at once.

    Raises:
        TraceError: the trace has counts alone.
    """
    trace.require("rows", "it cannot be written as rows")
    names = trace.documents().set_index("sequence")["name"]
    layers = [trace.routing(layer) for layer in trace.shape.moe_layers]
    first = layers[0]
    order = np.lexsort((first.position, first.sequence))
    sequence = first.sequence[order]
    experts = np.stack([layer.experts[order] for layer in layers])
    parts = [layer.weights for layer in layers if layer.weights is not None]
    weights = np.stack([part[order] for part in parts]) if parts else None
    starts = np.flatnonzero(np.diff(sequence, prepend=-1))
    documents = []
    for begin, end in zip(starts, [*starts[1:], len(sequence)], strict=True):
        span = slice(begin, end)
        documents.append(
            Tokens(
                name=str(names[sequence[begin]]),
                experts=experts[:, span],
                phase=first.phase[order][span],
                position=first.position[order][span],
                token_id=first.token_id[order][span],
                weights=None if weights is None else weights[:, span],
            )
        )
    return documents


@contextmanager
def written(path: Path) -> Iterator[IO[str]]:
    """A text file to write.

    Raises:
        TraceError: it cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as stream:
            yield stream
    except OSError as error:
        raise TraceError(
            f"{path}: cannot be written ({error.strerror or error})", "write elsewhere"
        ) from error
