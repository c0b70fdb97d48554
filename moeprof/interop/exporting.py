"""The rows of a trace, as writers of foreign formats want them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError, WriteError
from moeprof.interop.source import Tokens
from moeprof.trace import Trace

_CLAIMS = {
    "order": "this format would give its tokens an order",
    "documents": "this format would make one document of its tokens",
    "phase": "this format would give its tokens a phase",
}


def documents_of(trace: Trace, claims: Sequence[str]) -> list[Tokens]:
    """Every document with its tokens in order; all rows are held in memory at once.

    Args:
        trace: whose rows are wanted.
        claims: words of `origin.UNSAID` that a reader of the format takes for said.

    Raises:
        TraceError: the trace has counts alone, or does not say what the format would claim.
    """
    trace.require("rows", "it cannot be written as rows")
    for word in claims:
        trace.require(word, _CLAIMS[word])
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


def phase_of(tokens: Tokens) -> NDArray[np.uint8]:
    """[T] uint8, index into `PHASES`: a trace has it of every token."""
    assert tokens.phase is not None
    return tokens.phase


def prompt_length(tokens: Tokens) -> int:
    """Tokens of a document's prompt, which all of its reply follows.

    Raises:
        TraceError: some of the prompt follows the reply, as in a conversation of several turns.
    """
    prompt = tokens.num_tokens - tokens.num_decode
    if phase_of(tokens)[:prompt].any():
        raise TraceError(
            f"{tokens.name}: has prompt tokens after decoded ones, which this format cannot say",
            "write route-trace",
        )
    return prompt


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what the disk refuses.

    Raises:
        WriteError: something inside the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error})",
            "free space, or write elsewhere",
        ) from error


@contextmanager
def written(path: Path) -> Iterator[IO[str]]:
    """A text file to write.

    Raises:
        WriteError: it cannot be written.
    """
    with disk_errors(path), path.open("w", encoding="utf-8") as stream:
        yield stream
