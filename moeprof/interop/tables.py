"""Reading numeric CSV: fast where it is right, and with the line where it is wrong."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from moeprof.errors import TraceError

_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of numbers.

    Attributes:
        path: the file.
        columns: name to [N] int64 or float64.
        first_line: number of the header's line, from 1.
        data: the text, header first.
    """

    path: Path
    columns: dict[str, NDArray[np.generic]]
    first_line: int
    data: bytes

    def ints(self, name: str) -> NDArray[np.int64]:
        """A column of integers, [N]."""
        return self.columns[name].astype(np.int64)

    def line_of(self, row: int) -> int:
        """The line number, from 1, of a row from 0; empty lines are no rows."""
        filled = (n for n, line in enumerate(self.data.splitlines()) if line.strip())
        for index, number in enumerate(filled):
            if index == row + 1:
                return self.first_line + number
        return self.first_line

    def wrong(self, row: int, what: str, hint: str) -> TraceError:
        """An error that names the line of a row."""
        return TraceError(f"{self.path}: line {self.line_of(row)}: {what}", hint)


def header(data: bytes) -> list[str]:
    """The names in the first line of a CSV text."""
    first = data.split(b"\n", 1)[0].decode("utf-8", errors="replace").strip()
    return [name.strip() for name in first.split(",")]


def read_table(
    path: Path, data: bytes, first_line: int, integers: Sequence[str], reals: Sequence[str] = ()
) -> Table:
    """The named columns of a CSV text.

    Args:
        path: the file, for errors.
        data: the text, header first.
        first_line: number of the header's line in the file, from 1.
        integers: columns of integers; all must be there.
        reals: columns of real numbers, NaN allowed; all must be there.

    Raises:
        TraceError: a column is missing, a line is ragged or holds something else than numbers.
    """
    names = header(data)
    missing = [name for name in (*integers, *reals) if name not in names]
    if missing:
        raise TraceError(
            f"{path}: line {first_line}: the header has no column {missing[0]!r}, it has "
            f"{', '.join(names)[:200]}",
            f"name a file whose columns are {', '.join((*integers, *reals))}",
        )
    types = dict.fromkeys(integers, pa.int64()) | dict.fromkeys(reals, pa.float64())
    try:
        table = pa.csv.read_csv(
            pa.py_buffer(data),
            read_options=pa.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
            convert_options=pa.csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[]
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        _find_fault(path, data, first_line, names, types)
        raise TraceError(f"{path}: cannot be read as CSV ({error})", "export it anew") from error
    if table.num_rows == 0:
        raise TraceError(f"{path}: has a header and no rows", "name a file that holds routing")
    columns = {name: table[name].to_numpy() for name in types}
    return Table(path, columns, first_line, data)


def _find_fault(
    path: Path, data: bytes, first_line: int, names: list[str], types: dict[str, pa.DataType]
) -> None:
    """Raise for the first line that is not what the header promises; return if there is none."""
    text = data.decode("utf-8", errors="replace")
    for number, fields in enumerate(csv.reader(text.splitlines()), start=first_line):
        if number == first_line or not fields:
            continue
        where = f"{path}: line {number}"
        if len(fields) != len(names):
            raise TraceError(
                f"{where}: {len(fields)} fields, the header has {len(names)}",
                "the file is cut or damaged; export it anew",
            )
        for name, value in zip(names, fields, strict=True):
            if name in types and not _is_number(value, types[name]):
                kind = "an integer" if types[name] == pa.int64() else "a number"
                raise TraceError(
                    f"{where}: {name} is {value[:40]!r}, expected {kind}", "export the file anew"
                )


def _is_number(value: str, kind: pa.DataType) -> bool:
    try:
        if kind == pa.int64():
            return -_INT64 <= int(value) < _INT64
        return math.isfinite(float(value)) or math.isnan(float(value))
    except ValueError:
        return False
