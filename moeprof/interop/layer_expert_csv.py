"""`layer,expert,count`: how often each expert was chosen, as several engines' patches dump it.

A header names the columns, further ones are passed over, `#` begins a comment. Without `count` each
line is one assignment. Lines of one cell add up; expert -1, which some use for the shared expert,
is left out. One file stands for one document.

It cannot say which experts a token chose together or in which order, the phase, top-k, weights,
tokens, the model or its bytes, nor that its end was cut off. Experts that are not listed were never
chosen, or do not exist: without `--num-experts` every one must be listed.

Source: this project; the same columns are written by forks of llama.cpp, by
GGML_REMOTE_EP_FREQ_FILE among others.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.exporting import written
from moeprof.interop.model import check_cells
from moeprof.interop.preamble import MAGIC
from moeprof.interop.source import Counted, Facts, Source, Stated
from moeprof.interop.tables import Table, header, read_table, without_comments
from moeprof.interop.text import content
from moeprof.interop.values import MAX_ASSIGNMENTS, MAX_EXPERTS, MAX_LAYER
from moeprof.trace import Trace


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The counts of the files.

    Raises:
        TraceError: a file is not of this format, or it is not known how many experts a layer has.
    """
    tables = [_table(path) for path in files]
    layers = np.unique(np.concatenate([table.ints("layer") for table in tables]))
    num_experts = facts.num_experts or (facts.model and facts.model.shape.num_experts)
    num_experts = num_experts or _listed_experts(tables)
    check_cells(layers.tolist(), num_experts, files[0].name)
    counted = []
    for table in tables:
        layer, expert = table.ints("layer"), table.ints("expert")
        beyond = np.flatnonzero(expert >= num_experts)
        if len(beyond):
            row = int(beyond[0])
            raise table.wrong(
                row, f"expert {expert[row]}, the model has {num_experts}", "correct --num-experts"
            )
        counts = np.zeros((len(layers), num_experts), np.int64)
        routed = expert >= 0
        times = _times(table)
        at = (np.searchsorted(layers, layer[routed]), expert[routed])
        np.add.at(counts, at, times[routed])
        counted.append(Counted(table.path.name, counts))
    shared = any((table.ints("expert") == -1).any() for table in tables)
    return Source(
        stated=Stated(moe_layers=tuple(layers.tolist()), num_experts=num_experts),
        counted=counted,
        notes=("expert -1 stands for shared experts and is left out",) if shared else (),
    )


def _table(path: Path) -> Table:
    data = content(path)
    if data.startswith(MAGIC.encode()):
        raise TraceError(
            f"{path}: a route_trace v1 file, whose phases and order would be lost",
            f"read it as what it is: moeprof import route-trace {path} -o traces/NAME",
        )
    data = without_comments(data)
    wanted = ["layer", "expert"]
    if "count" in header(data):
        wanted.append("count")
    table = read_table(path, data, wanted)
    limits = {
        "layer": (0, MAX_LAYER),
        "expert": (-1, MAX_EXPERTS - 1),
        "count": (0, MAX_ASSIGNMENTS),
    }
    for name in wanted:
        values, (least, most) = table.ints(name), limits[name]
        wrong = np.flatnonzero((values < least) | (values > most))
        if len(wrong):
            row = int(wrong[0])
            raise table.wrong(
                row, f"{name} is {values[row]}, expected {least} to {most}", "export the file anew"
            )
    if not (table.ints("expert") >= 0).any():
        raise TraceError(f"{path}: counts no routed expert", "name a file that holds routing")
    return table


def _times(table: Table) -> NDArray[np.int64]:
    """[N] int64 assignments of each line; all together are checked not to overflow."""
    if "count" not in table.columns:
        return np.ones(len(table.columns["layer"]), np.int64)
    times = table.ints("count")
    beyond = np.cumsum(times, dtype=np.float64) > MAX_ASSIGNMENTS
    if beyond.any():
        raise table.wrong(
            int(beyond.argmax()),
            f"the counts up to here add up to more than {MAX_ASSIGNMENTS}, the most that is read",
            "name a file with counts",
        )
    return times


def _listed_experts(tables: Sequence[Table]) -> int:
    """Experts of a layer where the files list every one of every layer, chosen or not."""
    widest = max(int(table.ints("expert").max()) for table in tables) + 1
    for table in tables:
        routed = table.ints("expert") >= 0
        cells = np.stack([table.ints("layer")[routed], table.ints("expert")[routed]])
        _, per_layer = np.unique(np.unique(cells, axis=1)[0], return_counts=True)
        if "count" not in table.columns or (per_layer != widest).any():
            raise TraceError(
                f"{table.path}: not every expert is listed, so their number is not known",
                "add --num-experts N",
            )
    return widest


def write(trace: Trace, path: Path) -> None:
    """Write the counts of a trace, all documents and phases together, every cell listed.

    Raises:
        TraceError: the file cannot be written.
    """
    counts = trace.cell_counts().counts.sum(axis=(0, 1))
    with written(path) as stream:
        print("layer,expert,count", file=stream)
        for layer, row in zip(trace.shape.moe_layers, counts.tolist(), strict=True):
            for expert, times in enumerate(row):
                print(f"{layer},{expert},{times}", file=stream)
