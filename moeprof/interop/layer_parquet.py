"""One Parquet file per layer with `indices` and `scores`, as FLAME-MoE's traces are published.

`layer_NN.parquet` has a row for each token: `indices`, a list of expert ids, best first, and
`scores`, their softmax probabilities. The layer is the number in the file's name; FLAME-MoE counts
layers from 1, `--moe-layers` renumbers them. Further files may have the column `token_id`, in the
same order of tokens. Nothing says where documents end (`--document-tokens` does, where all have one
length) or of which phase the tokens are; those of training are prefill. Scores are taken for the
weights applied.

Source: huggingface.co/datasets/CMU-FLAME/FLAME-MoE-Traces, README.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.exporting import documents_of
from moeprof.interop.source import Facts, Source, Stated, Tokens, checked_ids
from moeprof.trace import Trace
from moeprof.trace.schema import NO_EXPERT

_NAME = re.compile(r"\D*(\d{1,5})\D*")
_EXPECTED = "name files layer_NN.parquet with the column indices"


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The tokens of the files, as one document.

    Raises:
        TraceError: a file is no such Parquet, a layer stands twice, or the files differ in length.
    """
    layers: dict[int, tuple[Path, NDArray[np.uint16], NDArray[np.float16] | None]] = {}
    token_ids = []
    for path in files:
        table = _table(path, facts.max_tokens)
        if "token_id" in table.column_names and "indices" not in table.column_names:
            token_ids.append(_token_ids(path, table))
            continue
        layer = _layer(path)
        if layer in layers:
            raise TraceError(f"{path}: layer {layer} is in {layers[layer][0]}, too", _EXPECTED)
        layers[layer] = (path, _lists(path, table, "indices"), _scores(path, table))
    if not layers:
        raise TraceError(f"{files[0]}: no file has the column indices", _EXPECTED)
    numbers = sorted(layers)
    shapes = {layers[number][1].shape for number in numbers}
    if len(shapes) != 1:
        first, other = sorted(shapes)[:2]
        raise TraceError(
            f"{files[0].parent}: layers of {first[0]} x {first[1]} and {other[0]} x {other[1]} ids",
            "name files of one capture",
        )
    experts = np.stack([layers[number][1] for number in numbers])
    scores = [found for number in numbers if (found := layers[number][2]) is not None]
    token_id = np.concatenate(token_ids)[: experts.shape[1]] if token_ids else None
    if token_id is not None and len(token_id) != experts.shape[1]:
        raise TraceError(
            f"{files[0].parent}: {experts.shape[1]} tokens in the layers, {len(token_id)} ids",
            "name all files of token ids, in order, or none",
        )
    tokens = Tokens(
        name=layers[numbers[0]][0].parent.name or "tokens",
        experts=experts,
        token_id=token_id,
        weights=np.stack(scores) if len(scores) == len(numbers) else None,
    )
    named = None if facts.moe_layers is not None else tuple(numbers)
    return Source(
        stated=Stated(moe_layers=named),
        documents=[tokens],
        missing=frozenset() if facts.document_tokens else frozenset({"documents"}),
    )


def _table(path: Path, max_tokens: int | None) -> pa.Table:
    """The first rows of the columns that are used."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        columns = [name for name in ("indices", "scores", "token_id") if name in names]
        if not columns:
            raise TraceError(f"{path}: columns {', '.join(names)[:200]}", _EXPECTED)
        groups, rows = [], 0
        for group in range(file.num_row_groups):
            if max_tokens is not None and rows >= max_tokens:
                break
            groups.append(group)
            rows += file.metadata.row_group(group).num_rows
        return file.read_row_groups(groups, columns=columns).slice(0, max_tokens)
    except OSError as error:
        raise TraceError(
            f"{path}: cannot be read ({error.strerror or error})", _EXPECTED
        ) from error
    except pa.ArrowInvalid as error:
        raise TraceError(f"{path}: not a readable Parquet file ({error})", _EXPECTED) from error


def _layer(path: Path) -> int:
    match = _NAME.fullmatch(path.stem)
    if match is None or int(match[1]) > 65534:
        raise TraceError(f"{path}: its name does not say which layer it is of", _EXPECTED)
    return int(match[1])


def _lists(path: Path, table: pa.Table, name: str) -> NDArray[np.uint16]:
    """[T, K] uint16 of a column of lists."""
    return checked_ids(_flat(path, table, name), str(path), "row")


def _flat(path: Path, table: pa.Table, name: str) -> NDArray[np.generic]:
    column = table[name].combine_chunks()
    if not pa.types.is_list(column.type) and not pa.types.is_fixed_size_list(column.type):
        raise TraceError(f"{path}: column {name} is {column.type}, expected lists", _EXPECTED)
    if column.null_count or column.flatten().null_count:
        raise TraceError(f"{path}: column {name} has empty entries", _EXPECTED)
    lengths = pa.compute.list_value_length(column).to_numpy(zero_copy_only=False)
    ragged = np.flatnonzero(lengths != lengths[:1])
    if len(ragged):
        row = int(ragged[0])
        raise TraceError(
            f"{path}: row {row}: {lengths[row]} entries in {name}, the rows before {lengths[0]}",
            _EXPECTED,
        )
    values: NDArray[np.generic] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), int(lengths[0]) if len(lengths) else 1)


def _scores(path: Path, table: pa.Table) -> NDArray[np.float16] | None:
    if "scores" not in table.column_names:
        return None
    scores = _flat(path, table, "scores").astype(np.float32)
    if scores.size != table["indices"].combine_chunks().flatten().__len__():
        raise TraceError(f"{path}: scores and indices differ in length", _EXPECTED)
    wrong = ~np.isfinite(scores).all(axis=1)
    if wrong.any():
        raise TraceError(
            f"{path}: row {int(np.flatnonzero(wrong)[0])}: a score is not a number",
            "export the scores anew, or leave their column out",
        )
    return scores.astype(np.float16)


def _token_ids(path: Path, table: pa.Table) -> NDArray[np.uint32]:
    column = table["token_id"].combine_chunks()
    if not pa.types.is_integer(column.type) or column.null_count:
        raise TraceError(f"{path}: column token_id is {column.type}, expected integers", _EXPECTED)
    ids: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    if len(ids) and (ids.min() < 0 or ids.max() >= 2**32):
        raise TraceError(f"{path}: a token id is out of range", _EXPECTED)
    return ids.astype(np.uint32)


def write(trace: Trace, folder: Path) -> None:
    """Write one `layer_NN.parquet` for each layer of a trace into a folder.

    Raises:
        TraceError: the trace has no rows, or a file cannot be written.
    """
    documents = documents_of(trace)
    experts = np.concatenate([tokens.experts for tokens in documents], axis=1).astype(np.int16)
    parts = [tokens.weights for tokens in documents if tokens.weights is not None]
    weights = np.concatenate(parts, axis=1) if len(parts) == len(documents) else None
    kind = trace.shape.top_k
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for row, layer in enumerate(trace.shape.moe_layers):
            columns = {
                "indices": _column(np.where(experts[row] == NO_EXPERT, -1, experts[row]), kind)
            }
            if weights is not None:
                columns["scores"] = _column(weights[row], kind)
            pq.write_table(pa.table(columns), folder / f"layer_{layer:02d}.parquet")
    except OSError as error:
        raise TraceError(f"{folder}: cannot be written ({error})", "write elsewhere") from error


def _column(values: NDArray[np.generic], length: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).reshape(-1)), length
    )
