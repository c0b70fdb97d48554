"""Reading numeric CSV: fast where it is right, and with the line where it is wrong."""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.text import shown

_INT64 = 2**63
_FIRST_LINE = re.compile(rb"\s*[^\n]*")
_FILLED = re.compile(rb"\S")


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of numbers.

    Attributes:
        path: the file.
        columns: name to [N] int64 or float64.
        first_line: number of the first line of `data` in the file, from 1.
        data: the text; its header, if it has one, comes first.
        has_header: whether it has one.
    """

    path: Path
    columns: dict[str, NDArray[np.generic]]
    first_line: int
    data: bytes
    has_header: bool = True

    def ints(self, name: str) -> NDArray[np.int64]:
        """A column of integers, [N]."""
        return self.columns[name].astype(np.int64)

    def line_of(self, row: int) -> int:
        """The line number, from 1, of a row from 0; empty lines are no rows."""
        filled = (n for n, line in enumerate(self.data.splitlines()) if line.strip())
        for index, number in enumerate(filled):
            if index == row + self.has_header:
                return self.first_line + number
        return self.first_line

    def wrong(self, row: int, what: str, hint: str) -> TraceError:
        """An error that names the line of a row."""
        return TraceError(f"{self.path}: line {self.line_of(row)}: {what}", hint)


def header(data: bytes) -> list[str]:
    """The names in the first line of a CSV text."""
    first = data[: _header_end(data)].decode("utf-8", errors="replace").strip()
    return [name.strip().strip('"') for name in first.split(",")]


def without_comments(data: bytes) -> bytes:
    """The text with lines that begin with # emptied, so that the others keep their numbers."""
    if b"#" not in data:
        return data
    lines = data.split(b"\n")
    return b"\n".join(b"" if line.lstrip().startswith(b"#") else line for line in lines)


def read_table(
    path: Path,
    data: bytes,
    integers: Sequence[str],
    reals: Sequence[str] = (),
    first_line: int = 1,
    names: Sequence[str] | None = None,
) -> Table:
    """The named columns of a CSV text; empty lines are passed over.

    Args:
        path: the file, for errors.
        data: the text.
        integers: columns of integers; all must be there.
        reals: columns of real numbers, NaN allowed; all must be there.
        first_line: number of the text's first line in the file, from 1.
        names: of all columns, where the text has no header; None to read them from its first
            line.

    Raises:
        TraceError: a column is missing or there twice, a line is ragged or holds something else
            than numbers, or there are no lines.
    """
    has_header = names is None
    names = header(data) if names is None else list(names)
    _check_header(path, names, (*integers, *reals), first_line)
    if not _FILLED.search(data, _header_end(data) if has_header else 0):
        raise TraceError(
            f"{path}: has {'a header and ' if has_header else ''}no rows",
            "name a file that holds routing",
        )
    types = dict.fromkeys(integers, pa.int64()) | dict.fromkeys(reals, pa.float64())
    try:
        table = pa.csv.read_csv(
            pa.py_buffer(data),
            read_options=pa.csv.ReadOptions(
                use_threads=False, column_names=names, skip_rows=_header_lines(data, has_header)
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[]
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        _find_fault(Table(path, {}, first_line, data, has_header), names, types)
        reason = shown(str(error))
        raise TraceError(f"{path}: cannot be read as CSV ({reason})", "export it anew") from error
    columns = {name: table[name].to_numpy() for name in types}
    return Table(path, columns, first_line, data, has_header)


def _check_header(path: Path, names: list[str], wanted: Sequence[str], line: int) -> None:
    for name in wanted:
        times = names.count(name)
        if times != 1:
            raise TraceError(
                f"{path}: line {line}: the header has {'no' if times == 0 else times} column"
                f"{'s' if times > 1 else ''} {name!r}, it has {shown(', '.join(names))}",
                f"name a file whose columns are {', '.join(wanted)}",
            )


def _header_end(data: bytes) -> int:
    """Where the first line that is not empty ends."""
    found = _FIRST_LINE.match(data)
    return found.end() if found else len(data)


def _header_lines(data: bytes, has_header: bool) -> int:
    """Lines up to and with the header; 0 where there is none."""
    return data.count(b"\n", 0, _header_end(data)) + 1 if has_header else 0


def _find_fault(table: Table, names: list[str], types: dict[str, pa.DataType]) -> None:
    """Raise for the first line that is not what the columns promise; return if there is none."""
    text = table.data.decode("utf-8", errors="replace")
    to_skip = int(table.has_header)
    for number, line in enumerate(text.split("\n"), start=table.first_line):
        if not line.strip():
            continue
        if to_skip:
            to_skip -= 1
            continue
        where = f"{table.path}: line {number}"
        try:
            fields = next(csv.reader([line.rstrip("\r")]))
        except csv.Error as error:
            raise TraceError(
                f"{where}: no line of comma-separated numbers", "export the file anew"
            ) from error
        if len(fields) != len(names):
            raise TraceError(
                f"{where}: {len(fields)} fields, expected {len(names)}",
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
