"""`pos,layer,id0,id1,...`: one CSV row per position and layer, as llama-moe-trace writes it.

There is no header (one that names these columns is passed over). Prompt tokens have negative
positions, decoded ones count from 0. A prompt that took several batches is numbered within each, so
the order of its tokens is that of the lines. Files may be concatenated: where a layer's positions
fall back from decode, the next document begins. Ids stand in the router's rank order; -1 is an
empty slot. As in route_trace, the last layer sees only the last token of each batch.

Source: github.com/thecodacus/llama.cpp, pull request 5, llama-moe-trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.exporting import documents_of, written
from moeprof.interop.source import Facts, Source, Stated, Tokens, checked_ids, is_ranked
from moeprof.interop.tables import Table, header, read_table, without_comments
from moeprof.interop.text import content
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
        TraceError: a file is not of this format, or its rows are damaged.
    """
    every = [_rows(path) for path in files]
    layers = tuple(int(layer) for layer in np.unique(np.concatenate([one.layer for one in every])))
    documents = [tokens for rows in every for tokens in _documents(rows, layers)]
    has_prompt = any((rows.pos < 0).any() for rows in every)
    if not has_prompt:
        documents = [Tokens(one.name, one.experts, position=one.position) for one in documents]
    return Source(
        stated=Stated(moe_layers=layers),
        documents=documents,
        missing=frozenset() if is_ranked(documents) else frozenset({"rank"}),
    )


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
    wrong = (layer < 0) | (layer >= 2**16 - 1) | (abs(pos) >= 2**31)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise table.wrong(row, f"position {pos[row]}, layer {layer[row]}", "export the file anew")
    ids = np.stack([table.ints(name) for name in columns[2:]], axis=1)
    outside = ((ids < -1) | (ids >= NO_EXPERT)).any(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise table.wrong(row, f"expert ids {ids[row].tolist()}", "export the file anew")
    return _Rows(table, pos, layer, _document_numbers(pos, layer), checked_ids(ids, str(path)))


def _document_numbers(pos: NDArray[np.int64], layer: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] int64: how many documents a line's layer has begun before."""
    document = np.zeros(len(pos), np.int64)
    for one in np.unique(layer):
        (rows,) = np.nonzero(layer == one)
        mine = pos[rows]
        document[rows[1:]] = np.cumsum((mine[:-1] >= 0) & (mine[1:] <= mine[:-1]))
    return document


def _documents(rows: _Rows, layers: tuple[int, ...]) -> list[Tokens]:
    found = []
    count = int(rows.document.max()) + 1
    for number in range(count):
        (mine,) = np.nonzero(rows.document == number)
        pos, layer = rows.pos[mine], rows.layer[mine]
        # The order of tokens is that of the lines of a layer that has them all.
        fullest = np.bincount(layer).argmax()
        order = pos[layer == fullest]
        known, first = np.unique(order, return_index=True)
        place = np.searchsorted(known, pos)
        absent = (place == len(known)) | (known[np.minimum(place, len(known) - 1)] != pos)
        if absent.any():
            row = int(mine[np.flatnonzero(absent)[0]])
            raise rows.table.wrong(
                row,
                f"position {rows.pos[row]} is not in layer {fullest}, which has the most",
                "export the file anew",
            )
        token = np.argsort(np.argsort(first))[place]
        _check_once(rows, mine, layer, token)
        shape = (len(layers), len(known), rows.ids.shape[1])
        experts = np.full(shape, NO_EXPERT, np.uint16)
        experts[np.searchsorted(layers, layer), token] = rows.ids[mine]
        phase = (order[np.sort(first)] >= 0).astype(np.uint8)
        name = rows.table.path.name if count == 1 else f"{rows.table.path.name} {number}"
        found.append(Tokens(name, experts, phase, np.arange(len(known), dtype=np.uint32)))
    return found


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
        TraceError: the trace has no rows, a document has no decode to tell it from the next, or
            the file cannot be written.
    """
    documents = documents_of(trace)
    if len(documents) > 1 and any(tokens.num_decode == 0 for tokens in documents):
        raise TraceError(
            f"{trace.path}: documents without decode cannot be told apart in this format",
            "write another format, such as route-trace",
        )
    with written(path) as stream:
        for tokens in documents:
            prompt = tokens.num_tokens - tokens.num_decode
            for row, layer in enumerate(trace.shape.moe_layers):
                ids = np.where(
                    tokens.experts[row] == NO_EXPERT, -1, tokens.experts[row].astype(int)
                )
                chosen = np.flatnonzero((ids >= 0).any(axis=1))
                lines = np.column_stack([chosen - prompt, np.full(len(chosen), layer), ids[chosen]])
                np.savetxt(stream, lines, fmt="%d", delimiter=",")
