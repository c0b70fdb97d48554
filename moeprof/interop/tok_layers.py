"""JSON lines of `{"tok": N, "layers": [[ids], ...]}`, one object per token.

`layers` holds one list of ids for each MoE layer, in order. `tok` numbers the tokens; where it does
not ascend, a new document begins.

It cannot say the phase, how many experts a layer has, which layers of the checkpoint these are,
empty slots, weights, tokens, the model or its bytes. Where all lists ascend it has lost the
router's ranks.

Source: github.com/sqliteai/warp, tests (traces of its expert cache).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.errors import TraceError
from moeprof.interop.exporting import documents_of, written
from moeprof.interop.source import Facts, Source, Stated, Tokens
from moeprof.interop.text import lines
from moeprof.interop.values import MAX_EXPERTS, MAX_UINT32, checked_ids
from moeprof.trace import Trace
from moeprof.trace.schema import NO_EXPERT

_EXPECTED = 'expected {"tok": N, "layers": [[id, ...], ...]}'

_EVEN = "one list of the same length for each layer"


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The tokens of the files.

    Raises:
        TraceError: a line is not such an object, or differs in its layers or slots.
    """
    documents = [tokens for path in files for tokens in _documents(path)]
    return Source(stated=Stated(), documents=documents)


def _documents(path: Path) -> list[Tokens]:
    rows: list[list[list[list[int]]]] = []
    numbers: list[list[int]] = []
    shape = None
    for line, text in lines(path):
        if not text.strip():
            continue
        number, layers = _token(f"{path}: line {line}", text)
        sizes = {len(ids) for ids in layers}
        found = (len(layers), sizes.pop())
        if sizes:
            raise TraceError(
                f"{path}: line {line}: its layers have from {min(map(len, layers))} to "
                f"{max(map(len, layers))} ids, expected as many in each",
                _EVEN,
            )
        if shape is not None and found != shape:
            raise TraceError(
                f"{path}: line {line}: {found[0]} layers of {found[1]} ids, the line before has "
                f"{shape[0]} of {shape[1]}",
                _EVEN,
            )
        shape = found
        if not numbers or number <= numbers[-1][-1]:
            rows.append([])
            numbers.append([])
        rows[-1].append(layers)
        numbers[-1].append(number)
    return [
        Tokens(
            name=path.name if len(rows) == 1 else f"{path.name} {index}",
            experts=checked_ids(np.asarray(tokens, np.int64).transpose(1, 0, 2), str(path)),
            position=np.asarray(numbers[index], np.uint32),
        )
        for index, tokens in enumerate(rows)
    ]


def _token(where: str, text: str) -> tuple[int, list[list[int]]]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: not JSON ({error})", _EXPECTED) from error
    if not isinstance(entry, dict) or not {"tok", "layers"} <= set(entry):
        raise TraceError(f"{where}: {_EXPECTED}", "name a file of such lines")
    number, layers = entry["tok"], entry["layers"]
    if not _is_id(number, MAX_UINT32):
        raise TraceError(
            f"{where}: tok is {json.dumps(number)[:40]}, expected 0 to {MAX_UINT32}", _EXPECTED
        )
    if not isinstance(layers, list) or not layers:
        raise TraceError(f"{where}: layers is no list of lists", _EXPECTED)
    for row, ids in enumerate(layers):
        if not isinstance(ids, list) or not ids:
            raise TraceError(f"{where}: layer {row} is no list of ids", _EXPECTED)
        for expert in ids:
            if not _is_id(expert, MAX_EXPERTS - 1):
                raise TraceError(
                    f"{where}: layer {row}: expert id {json.dumps(expert)[:40]}, expected 0 to "
                    f"{MAX_EXPERTS - 1}",
                    "check that the file is not cut or damaged",
                )
    return number, layers


def _is_id(value: Any, most: int) -> bool:  # noqa: ANN401
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def write(trace: Trace, path: Path) -> None:
    """Write the rows of a trace.

    Raises:
        TraceError: the trace has no rows, tokens lack an assignment, a document goes on where the
            one before ends, or the file cannot be written.
    """
    trace.require("assignments", "this format has no empty slots")
    last = MAX_UINT32
    with written(path) as stream:
        for tokens in documents_of(trace, ("order", "documents")):
            position = tokens.positions.tolist()
            if (tokens.experts == NO_EXPERT).any():
                raise TraceError(
                    f"{tokens.name}: has empty slots, which this format has not", "write vllm"
                )
            if position[0] > last:
                raise TraceError(
                    f"{tokens.name}: begins at position {position[0]}, the document before ends "
                    f"at {last}: this format could not tell them apart",
                    "write route-trace or vllm",
                )
            last = position[-1]
            per_token = tokens.experts.transpose(1, 0, 2).tolist()
            for number, layers in zip(position, per_token, strict=True):
                print(json.dumps({"tok": number, "layers": layers}), file=stream)
