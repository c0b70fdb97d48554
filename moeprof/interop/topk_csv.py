"""`pos,layer,id0,id1,...`: one CSV row per position and layer, as llama-moe-trace writes it.

There is no header (one that names these columns is passed over). Prompt tokens have negative
positions, decoded ones count from 0. A prompt that took several batches is numbered within each, so
the order of its tokens is that of the lines. Files may be concatenated: where a layer's positions
fall back from decode, the next document begins. Ids stand in the router's rank order; -1 is an
empty slot. As in route_trace, the last layer sees only the last token of each batch, and a token
that lacks other lines makes the file a cut one.

It cannot say how many experts a layer has, weights, tokens, the model or its bytes, what was in
context before a document, nor the phase of a file in which nothing is prompt.

Source: github.com/thecodacus/llama.cpp, pull request 5, llama-moe-trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.checks import TORN, first_torn, remedy_of_torn, wanted_logits
from moeprof.interop.exporting import documents_of, phase_of, prompt_length, written
from moeprof.interop.source import Facts, Source, Stated, Tokens
from moeprof.interop.tables import Table, header, read_table, without_comments
from moeprof.interop.text import content
from moeprof.interop.values import MAX_LAYER, checked_ids
from moeprof.trace import Trace
from moeprof.trace.schema import NO_EXPERT


@dataclass(frozen=True, slots=True)
class _Rows:
    """One file: position, layer and document of each line, and its ids [N, K]."""

    table: Table
    pos: NDArray[np.int64]
    layer: NDArray[np.int64]
    document: NDArray[np.int64]
    ids: NDArray[np.uint16]


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The documents of the files.

    Raises:
        TraceError: a file is not of this format, or its rows are damaged, cut or incomplete.
    """
    every = [_rows(path) for path in files]
    layers = np.unique(np.concatenate([one.layer for one in every]))
    documents: list[Tokens] = []
    taken = 0
    for rows in every:
        for number in range(int(rows.document.max()) + 1):
            if taken == facts.max_tokens:
                break
            documents.append(_document(rows, number, layers, taken, facts.max_tokens))
            taken += documents[-1].num_tokens
    if not any((rows.pos < 0).any() for rows in every):
        documents = [Tokens(one.name, one.experts, position=one.position) for one in documents]
    return Source(stated=Stated(moe_layers=tuple(layers.tolist())), documents=documents)


def _rows(path: Path) -> _Rows:
    data = without_comments(content(path))
    names = header(data)
    if names[0] == "pos":
        lines = data.split(b"\n")
        data = b"\n".join(b"" if line.startswith(b"pos,") else line for line in lines)
    width = len(names)
    if width < 3:
        raise TraceError(
            f"{path}: line 1 has {width} fields, expected pos,layer,id0,...",
            "name a file of llama-moe-trace",
        )
    columns = ["pos", "layer", *(f"id{slot}" for slot in range(width - 2))]
    table = read_table(path, data, columns, names=columns)
    pos, layer = table.ints("pos"), table.ints("layer")
    wrong = (layer < 0) | (layer > MAX_LAYER) | (pos >= 2**31) | (pos < -(2**31))
    if wrong.any():
        row = int(wrong.argmax())
        raise table.wrong(
            row,
            f"position {pos[row]}, layer {layer[row]}, expected positions of at most 31 bits, "
            f"layers 0 to {MAX_LAYER}",
            "export the file anew",
        )
    ids = np.stack([table.ints(name) for name in columns[2:]], axis=1)
    outside = ((ids < -1) | (ids >= NO_EXPERT)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise table.wrong(
            row,
            f"expert ids {ids[row].tolist()}, expected -1 to {NO_EXPERT - 1}",
            "export the file anew",
        )
    return _Rows(table, pos, layer, _document_numbers(pos, layer), checked_ids(ids, str(path)))


def _document_numbers(pos: NDArray[np.int64], layer: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] int64: how many documents a line's layer has begun before."""
    document = np.zeros(len(pos), np.int64)
    for one in np.unique(layer):
        (rows,) = np.nonzero(layer == one)
        mine = pos[rows]
        document[rows[1:]] = np.cumsum((mine[:-1] >= 0) & (mine[1:] <= mine[:-1]))
    return document


def _document(
    rows: _Rows, number: int, layers: NDArray[np.int64], before: int, max_tokens: int | None
) -> Tokens:
    """One document of a file, as far as it is among the tokens that are taken.

    Args:
        rows: of the file.
        number: of the document.
        layers: [L] layers of all files.
        before: tokens taken of documents before.
        max_tokens: tokens to take in all.
    """
    (mine,) = np.nonzero(rows.document == number)
    pos, layer = rows.pos[mine], rows.layer[mine]
    # The order of tokens is that of the lines of a layer that has them all.
    fullest = np.bincount(layer).argmax()
    order = pos[layer == fullest]
    known, first = np.unique(order, return_index=True)
    place = np.searchsorted(known, pos)
    absent = (place == len(known)) | (known[np.minimum(place, len(known) - 1)] != pos)
    if absent.any():
        row = int(mine[absent.argmax()])
        raise rows.table.wrong(
            row,
            f"position {rows.pos[row]} is not in layer {fullest}, which has the most",
            "export the file anew",
        )
    token = np.argsort(np.argsort(first))[place]
    _check_once(rows, mine, layer, token)
    phase = (order[np.sort(first)] >= 0).astype(np.uint8)
    left = len(known) if max_tokens is None else min(len(known), max_tokens - before)
    kept = token < left
    mine, token, at = mine[kept], token[kept], np.searchsorted(layers, layer[kept])
    torn = first_torn(token, at, wanted_logits(phase)[:left], layers)
    if torn is not None:
        last = int(mine[token == torn[0]][-1])
        raise rows.table.wrong(
            last, f"position {rows.pos[last]} has {torn[1]}{TORN}", remedy_of_torn(before + torn[0])
        )
    experts = np.full((len(layers), left, rows.ids.shape[1]), NO_EXPERT, np.uint16)
    experts[at, token] = rows.ids[mine]
    name = rows.table.path.name
    return Tokens(
        name=f"{name} {number}" if rows.document.any() else name,
        experts=experts,
        phase=phase[:left],
        position=np.arange(left, dtype=np.uint32),
    )


def _check_once(
    rows: _Rows, mine: NDArray[np.int64], layer: NDArray[np.int64], token: NDArray[np.int64]
) -> None:
    order = np.lexsort((token, layer))
    again = (np.diff(layer[order]) == 0) & (np.diff(token[order]) == 0)
    if again.any():
        row = int(mine[order[1:][again].min()])
        raise rows.table.wrong(
            row,
            f"position {rows.pos[row]} of layer {rows.layer[row]} stands twice",
            "one line for each position and layer",
        )


def write(trace: Trace, path: Path) -> None:
    """Write the rows of a trace, document after document, each layer by layer.

    Raises:
        TraceError: the trace has no rows, does not know its phases, documents or order, a document
            has no decode to tell it from the next or prompt after a reply, or the file cannot be
            written.
    """
    documents = documents_of(trace, ("order", "documents", "phase"))
    if len(documents) > 1 and any(tokens.num_decode == 0 for tokens in documents):
        raise TraceError(
            f"{trace.path}: documents without decode cannot be told apart in this format",
            "write another format, such as route-trace",
        )
    layers = trace.shape.moe_layers
    with written(path) as stream:
        for tokens in documents:
            prompt = prompt_length(tokens)
            needed = wanted_logits(phase_of(tokens))
            for row, layer in enumerate(layers):
                ids = np.where(
                    tokens.experts[row] == NO_EXPERT, -1, tokens.experts[row].astype(int)
                )
                # Only the last of several layers may lack a token's line.
                optional = row > 0 and layer == layers[-1]
                (place,) = np.nonzero((ids >= 0).any(axis=1) | needed | (not optional))
                lines = np.column_stack([place - prompt, np.full(len(place), layer), ids[place]])
                np.savetxt(stream, lines, fmt="%d", delimiter=",")
