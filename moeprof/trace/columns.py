"""From the columns of a part to numpy arrays."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.trace import schema

RESTORE = "restore the file, or trace the corpus anew"


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """What one layer routed, one entry per token, in document order.

    Attributes:
        sequence: [T] uint32.
        position: [T] uint32.
        token_id: [T] uint32.
        phase: [T] uint8, index into `PHASES`.
        experts: [T, K] uint16 in rank order, `NO_EXPERT` where a slot is empty.
        weights: [T, K] float16, or None when the trace has none.
    """

    sequence: NDArray[np.uint32]
    position: NDArray[np.uint32]
    token_id: NDArray[np.uint32]
    phase: NDArray[np.uint8]
    experts: NDArray[np.uint16]
    weights: NDArray[np.float16] | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a trace, in the order in which every layer's rows stand.

    Attributes:
        domain: [T] uint16, index into the trace's domains.
        sequence: [T] uint32.
        position: [T] uint32.
        phase: [T] uint8, index into `PHASES`.
    """

    domain: NDArray[np.uint16]
    sequence: NDArray[np.uint32]
    position: NDArray[np.uint32]
    phase: NDArray[np.uint8]


def layers_of(file: pq.ParquetFile, where: Path) -> list[int]:
    """The layer of each row group, from its statistics.

    Raises:
        TraceError: a row group is not of a single layer.
    """
    column = file.schema_arrow.names.index("layer")
    layers = []
    for index in range(file.num_row_groups):
        statistics = file.metadata.row_group(index).column(column).statistics
        if statistics is None or statistics.min != statistics.max:
            raise TraceError(f"{where}: row group {index} is not of a single layer", RESTORE)
        layers.append(int(statistics.min))
    return layers


def read_groups(
    file: pq.ParquetFile, row_groups: list[int], where: Path, columns: list[str] | None = None
) -> pa.Table:
    """Some row groups of a part; all columns if `columns` is None.

    Raises:
        TraceError: the file is damaged.
    """
    try:
        return file.read_row_groups(row_groups, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise TraceError(f"{where}: damaged ({error})", RESTORE) from error


def layer_routing(table: pa.Table, top_k: int) -> LayerRouting:
    """Rows as arrays."""
    return LayerRouting(
        sequence=numbers(table["sequence"]),
        position=numbers(table["position"]),
        token_id=numbers(table["token_id"]),
        phase=phase_numbers(table["phase"]),
        experts=lists(table["experts"], top_k),
        weights=lists(table["weights"], top_k) if "weights" in table.column_names else None,
    )


def numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """[T] of the column's type."""
    array: NDArray[Any] = column.combine_chunks().to_numpy(zero_copy_only=False)
    return array


def lists(column: pa.ChunkedArray, length: int) -> NDArray[Any]:
    """[T, length] of the type of the list's elements."""
    values: NDArray[Any] = column.combine_chunks().flatten().to_numpy()
    return values.reshape(-1, length)


def phase_numbers(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """[T] uint8, index into `PHASES`, from the dictionary column of a part.

    Raises:
        TraceError: a phase is neither.
    """
    found = [np.zeros(0, np.uint8)]
    for chunk in column.chunks:
        names = chunk.dictionary.to_pylist()
        unknown = set(names) - set(schema.PHASES)
        if unknown:
            expected = ", ".join(schema.PHASES)
            raise TraceError(f"phase {unknown.pop()!r}, expected one of {expected}", RESTORE)
        number = np.array([schema.PHASES.index(name) for name in names], np.uint8)
        found.append(number[chunk.indices.to_numpy()])
    return np.concatenate(found)
