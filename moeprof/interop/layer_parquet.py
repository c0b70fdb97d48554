"""One Parquet file per layer with `indices` and `scores`, as FLAME-MoE's traces are published.

`layer_NN.parquet` has a row for each token: `indices`, a list of expert ids, best first, and
`scores`, their softmax probabilities. The layer is the number in the file's name; FLAME-MoE counts
layers from 1, `--moe-layers` renumbers them. Further files may have the column `token_id`, in the
same order of tokens. Scores are taken for the weights applied.

It cannot say where documents end (`--document-tokens` does, where all have one length), of which
phase the tokens are (those of training are prefill), how many experts a layer has, the model or its
bytes.

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
from moeprof.interop.exporting import disk_errors, documents_of
from moeprof.interop.source import Facts, Source, Stated, Tokens
from moeprof.interop.text import shown, unreadable
from moeprof.interop.values import (
    MAX_LAYER,
    MAX_WEIGHT,
    checked_ids,
    checked_uint32,
    stored_weights,
)
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
        if "indices" not in table.column_names:
            raise TraceError(f"{path}: has scores, but no column indices", _EXPECTED)
        ids = checked_ids(_flat(path, table, "indices"), str(path))
        layers[layer] = (path, ids, _scores(path, table, ids.shape))
    if not layers:
        raise TraceError(f"{files[0]}: no file has the column indices", _EXPECTED)
    numbers = sorted(layers)
    first = layers[numbers[0]]
    for path, ids, _ in layers.values():
        if ids.shape != first[1].shape:
            raise TraceError(
                f"{path}: {ids.shape[0]} x {ids.shape[1]} ids, {first[0]} has "
                f"{first[1].shape[0]} x {first[1].shape[1]}",
                "name files of one capture",
            )
    experts = np.stack([layers[number][1] for number in numbers])
    scores = [found for number in numbers if (found := layers[number][2]) is not None]
    token_id = np.concatenate(token_ids)[: facts.max_tokens] if token_ids else None
    if token_id is not None and len(token_id) != experts.shape[1]:
        raise TraceError(
            f"{files[0].parent}: {experts.shape[1]} tokens in the layers, {len(token_id)} ids",
            "name all files of token ids, in order, or none",
        )
    tokens = Tokens(
        name=first[0].parent.name or "tokens",
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
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in ("indices", "scores", "token_id") if name in names]
            if not columns:
                raise TraceError(f"{path}: columns {shown(', '.join(names))}", _EXPECTED)
            twice = [name for name in columns if names.count(name) > 1]
            if twice:
                raise TraceError(f"{path}: has the column {twice[0]} more than once", _EXPECTED)
            groups, rows = [], 0
            for group in range(file.num_row_groups):
                if max_tokens is not None and rows >= max_tokens:
                    break
                groups.append(group)
                rows += file.metadata.row_group(group).num_rows
            return file.read_row_groups(groups, columns=columns).slice(0, max_tokens)
    except OSError as error:
        if error.errno is not None:
            raise unreadable(path, error) from error
        raise _damaged(path, error) from error
    except (pa.ArrowException, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> TraceError:
    return TraceError(f"{path}: not a readable Parquet file ({shown(str(error))})", _EXPECTED)


def _layer(path: Path) -> int:
    match = _NAME.fullmatch(path.stem)
    if match is None or int(match[1]) > MAX_LAYER:
        raise TraceError(f"{path}: its name does not say which layer it is of", _EXPECTED)
    return int(match[1])


def _flat(path: Path, table: pa.Table, name: str) -> NDArray[np.generic]:
    """[T, K] of a column of lists of numbers."""
    column = _whole(path, table, name)
    if not _is_list(column.type) or not _is_number(column.type.value_type):
        raise TraceError(
            f"{path}: column {name} is {column.type}, expected lists of numbers", _EXPECTED
        )
    if not len(column):
        raise TraceError(f"{path}: has no rows", "name files with routing")
    entries = column.flatten()
    if column.null_count or entries.null_count:
        raise TraceError(f"{path}: column {name} has empty entries", _EXPECTED)
    lengths = pa.compute.list_value_length(column).to_numpy(zero_copy_only=False)
    ragged = np.flatnonzero((lengths != lengths[0]) | (lengths == 0))
    if len(ragged):
        row = int(ragged[0])
        before = f"the rows before {lengths[0]}" if row else "expected at least 1"
        raise TraceError(
            f"{path}: row {row}: {lengths[row]} entries in {name}, {before}", _EXPECTED
        )
    values: NDArray[np.generic] = entries.to_numpy(zero_copy_only=False)
    return values.reshape(len(column), int(lengths[0]))


def _whole(path: Path, table: pa.Table, name: str) -> pa.Array:
    """A column in one piece, entries of a dictionary by their values."""
    column = table[name]
    kind = column.type
    if _is_list(kind) and pa.types.is_dictionary(kind.value_type):
        column = column.cast(pa.large_list(kind.value_type.value_type))
    elif pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    return column.combine_chunks()


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _scores(path: Path, table: pa.Table, shape: tuple[int, ...]) -> NDArray[np.float16] | None:
    if "scores" not in table.column_names:
        return None
    scores = _flat(path, table, "scores")
    if scores.shape != shape:
        raise TraceError(f"{path}: scores and indices differ in length", _EXPECTED)
    weights = stored_weights(scores)
    wrong = ~np.isfinite(weights)
    if wrong.any():
        row, slot = np.argwhere(wrong)[0]
        raise TraceError(
            f"{path}: row {row}: a score is {scores[row, slot]}, expected a number of at most "
            f"{MAX_WEIGHT}",
            "export the scores anew, or leave their column out",
        )
    return weights


def _token_ids(path: Path, table: pa.Table) -> NDArray[np.uint32]:
    column = _whole(path, table, "token_id")
    if not pa.types.is_integer(column.type) or column.null_count:
        raise TraceError(
            f"{path}: column token_id is {column.type} with {column.null_count} empty entries, "
            "expected integers",
            _EXPECTED,
        )
    return checked_uint32(column.to_numpy(), str(path), "token id")


def write(trace: Trace, folder: Path) -> None:
    """Write one `layer_NN.parquet` for each layer of a trace into a folder.

    Where the trace says which tokens were fed, they are in `token_ids.parquet`.

    Raises:
        TraceError: the trace has no rows, or a file cannot be written.
    """
    documents = documents_of(trace, ("order",))
    kind = np.int16 if trace.shape.num_experts <= 2**15 else np.int32
    stored = np.concatenate([tokens.experts for tokens in documents], axis=1)
    experts = stored.astype(kind)
    experts[stored == NO_EXPERT] = -1
    parts = [tokens.weights for tokens in documents if tokens.weights is not None]
    weights = np.concatenate(parts, axis=1) if len(parts) == len(documents) else None
    top_k = trace.shape.top_k
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for row, layer in enumerate(trace.shape.moe_layers):
            columns = {"indices": _column(experts[row], top_k)}
            if weights is not None:
                columns["scores"] = _column(weights[row], top_k)
            pq.write_table(pa.table(columns), folder / f"layer_{layer:02d}.parquet")
        if "token_ids" not in trace.metadata.missing:
            ids = [tokens.token_id for tokens in documents if tokens.token_id is not None]
            table = pa.table({"token_id": np.concatenate(ids)})
            pq.write_table(table, folder / "token_ids.parquet")


def _column(values: NDArray[np.generic], length: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).reshape(-1)), length
    )
