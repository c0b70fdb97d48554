"""Speed of counting assignments, from memory and from Parquet, beside pandas and DuckDB.

A trace of the Qwen3-30B-A3B shape is made once (`made_trace.py`). All ways count assignments per
(document group, expert) of every layer, on one thread, in turns, and must agree. From memory all
start from the same Arrow arrays of expert ids and groups; what a way has to do to them first
(flattening, repeating groups) is part of its time. From Parquet each reads the parts by itself;
`read` stops at arrays in memory. moeprof checks ids and repetitions besides, the others do not.

    python benchmarks/counting.py [--assignments 100e6] [--folder DIR] [--rounds 3]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from made_trace import make_long_trace
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from moeprof.native import count_assignments
from moeprof.trace import Trace
from moeprof.trace.folds import group_of_sequence

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """One layer's assignments as they lie in memory."""

    experts: pa.FixedSizeListArray  # [T] of K uint16
    groups: pa.UInt32Array  # [T]
    num_groups: int
    num_experts: int


def with_moeprof(layer: Layer) -> Counts:
    """The native counting."""
    experts = layer.experts.flatten().to_numpy().reshape(len(layer.experts), -1)
    groups = layer.groups.to_numpy()
    return count_assignments(experts, groups, layer.num_groups, layer.num_experts)


def with_pandas(layer: Layer) -> Counts:
    """Groupby over columns of group and expert."""
    flat = _flat(layer).to_pandas()
    counted = flat.groupby(["group", "expert"], sort=False).size()
    return _dense(layer, *counted.index.to_frame().to_numpy().T, counted.to_numpy())


def with_duckdb(layer: Layer) -> Counts:
    """GROUP BY over the same columns."""
    flat = _flat(layer)
    connection = duckdb.connect(config={"threads": 1})
    connection.register("flat", flat)
    query = 'SELECT "group", expert, count(*) AS n FROM flat GROUP BY ALL'
    found = connection.sql(query).to_arrow_table()
    return _dense(layer, *(column.to_numpy() for column in found.columns))


def _flat(layer: Layer) -> pa.Table:
    top_k = layer.experts.type.list_size
    groups = np.repeat(layer.groups.to_numpy(), top_k)
    return pa.table({"group": groups, "expert": layer.experts.flatten()})


def _dense(layer: Layer, groups: np.ndarray, experts: np.ndarray, number: np.ndarray) -> Counts:
    counts = np.zeros((layer.num_groups, layer.num_experts), np.int64)
    counts[groups, experts] = number
    return counts


def read_with_moeprof(trace: Trace) -> int:
    """Expert ids of every layer."""
    return sum(trace.experts(layer).size for layer in trace.shape.moe_layers)


def read_with_pandas(trace: Trace) -> int:
    """The same through pandas, with its Arrow types; lists become objects otherwise."""
    options = {"columns": ["experts"], "dtype_backend": "pyarrow"}
    frames = (pd.read_parquet(trace.path / part.path, **options) for part in trace.metadata.parts)
    return sum(len(frame) for frame in frames) * trace.shape.top_k


def count_parts_with_moeprof(trace: Trace) -> Counts:
    """Read and count every layer."""
    tokens, group_of = trace.tokens(), group_of_sequence(trace)
    groups = group_of[tokens.sequence].astype(np.uint32)
    num_groups = int(group_of.max()) + 1
    counts = [
        count_assignments(trace.experts(layer), groups, num_groups, trace.shape.num_experts)
        for layer in trace.shape.moe_layers
    ]
    return np.stack(counts, axis=1)


def count_parts_with_duckdb(trace: Trace) -> Counts:
    """The same as one query over the files."""
    connection = duckdb.connect(config={"threads": 1})
    group_of = group_of_sequence(trace)
    numbers = pa.table({"sequence": np.arange(len(group_of), dtype=np.uint32), "number": group_of})
    connection.register("numbers", numbers)
    files = [str(trace.path / part.path) for part in trace.metadata.parts]
    found = connection.sql(
        """SELECT number, layer, expert, count(*) AS n FROM
             (SELECT number, layer, unnest(experts) AS expert
              FROM read_parquet($files) JOIN numbers USING (sequence))
           GROUP BY ALL""",
        params={"files": files},
    ).to_arrow_table()
    group, layer, expert, number = (column.to_numpy() for column in found.columns)
    shape = trace.shape
    counts = np.zeros((int(group_of.max()) + 1, shape.num_moe_layers, shape.num_experts), np.int64)
    counts[group, np.searchsorted(shape.moe_layers, layer), expert] = number
    return counts


def main() -> None:
    """Measure every way in turns and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assignments", type=float, default=100e6)
    parser.add_argument("--folder", type=Path, help="keep the trace here for the next run")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        number = int(given.assignments)
        trace = make_long_trace(folder / f"trace-{number}", number)
        report(trace, given.rounds)


def report(trace: Trace, rounds: int) -> None:
    """Measure and print."""
    layer = layer_of(trace)
    in_layer = len(layer.experts) * trace.shape.top_k
    in_trace = in_layer * trace.shape.num_moe_layers
    tasks: dict[str, tuple[int, dict[str, Callable[[], object]]]] = {
        "count, from Arrow memory": (
            in_layer,
            {
                "moeprof": lambda: with_moeprof(layer),
                "pandas": lambda: with_pandas(layer),
                "DuckDB": lambda: with_duckdb(layer),
            },
        ),
        "read, from Parquet": (
            in_trace,
            {
                "moeprof": lambda: read_with_moeprof(trace),
                "pandas": lambda: read_with_pandas(trace),
            },
        ),
        "read and count, from Parquet": (
            in_trace,
            {
                "moeprof": lambda: count_parts_with_moeprof(trace),
                "DuckDB": lambda: count_parts_with_duckdb(trace),
            },
        ),
    }
    table = Table("task", "way", "million assignments/s", title=f"{in_trace:,} assignments")
    rows = []
    for task, (assignments, ways) in tasks.items():
        for way, rate in rates(assignments, ways, rounds).items():
            table.add_row(task, way, f"{rate / 1e6:,.0f}")
            rows.append({"task": task, "way": way, "assignments_per_s": rate})
    Console().print(table)
    sys.stdout.write(json.dumps(rows) + "\n")


def layer_of(trace: Trace) -> Layer:
    """The first layer, as Arrow holds it after reading."""
    tables = [
        pq.ParquetFile(trace.path / part.path).read_row_group(0, columns=["experts"])
        for part in trace.metadata.parts
    ]
    experts = pa.concat_tables(tables)["experts"].combine_chunks()
    group_of = group_of_sequence(trace)
    groups = pa.array(group_of[trace.tokens().sequence].astype(np.uint32))
    return Layer(experts, groups, int(group_of.max()) + 1, trace.shape.num_experts)


def rates(assignments: int, ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Assignments per second of each way, the median of rounds taken in turns.

    Raises:
        AssertionError: two ways do not find the same.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        results = []
        for way, work in ways.items():
            start = time.perf_counter()
            results.append(work())
            seconds[way].append(time.perf_counter() - start)
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])
    return {way: assignments / statistics.median(taken) for way, taken in seconds.items()}


if __name__ == "__main__":
    main()
