"""Speed and peak memory of analysing a long trace, part by part.

A trace of the Qwen3-30B-A3B shape with 100 million assignments is made once (`made_trace.py`);
then, in one process: its lookups are read, reuse distances computed, three policies replayed at ten
sizes each, and coverage found with its intervals and floors; their sum is what the aim of 60 s
speaks of. Belady's policy at the same sizes and the whole of `moeprof analyze` come after it. Peaks
of resident memory are those of the process up to there. Replies are looked up token by token and
prompts once for all their tokens, so that a trace of replies takes longest. A second, shorter trace
shows that time is linear in length.

    python benchmarks/analysis_scale.py [--assignments 100e6] [--prompt-share 0.05] [--threads 2]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from made_trace import make_long_trace
from rich.console import Console
from rich.table import Table

from moeprof import open_trace
from moeprof.analyze.hot_sets import cell_bytes
from moeprof.native import reuse_distances
from moeprof.policies import (
    Accesses,
    HeldOut,
    Policy,
    hold_out,
    parse_policy,
    read_accesses,
    replay_held_out,
)

Made = TypeVar("Made")
POLICIES = ("static", "lru", "lfu")
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)


def main() -> None:
    """Measure a long and a short trace, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assignments", type=float, default=100e6)
    parser.add_argument("--folder", type=Path, help="keep the traces here for the next run")
    parser.add_argument("--prompt-share", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        sys.stdout.write(json.dumps(measure(given.measure, given.threads)) + "\n")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        results = []
        for assignments in (int(given.assignments / 4), int(given.assignments)):
            name = f"trace-{assignments}-{given.prompt_share:g}"
            trace = make_long_trace(folder / name, assignments, given.prompt_share)
            command = [sys.executable, __file__, "--measure", str(trace.path)]
            command += ["--threads", str(given.threads)]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(run.stdout))
    report(results)


def measure(path: Path, threads: int) -> dict[str, Any]:
    """Seconds of each part, and the peak of resident memory at its end."""
    from moeprof.analyze import AnalysisSettings, analyze

    parts: list[dict[str, Any]] = []

    def timed(name: str, work: Callable[[], Made]) -> Made:
        start = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        parts.append({"part": name, "seconds": seconds, "peak_bytes": peak})
        return found

    trace = open_trace(path)
    accesses = timed("lookups read", lambda: read_accesses(trace))
    timed("reuse distances", partial(distances, accesses))
    held_out = hold_out(trace)
    sizes = cell_bytes(trace.shape.expert_bytes, trace.shape.num_experts)

    def replayed(text: str, of: Accesses) -> None:
        work = partial(replays, of, parse_policy(text), sizes, held_out, threads)
        timed(f"{text} at {len(SHARES)} sizes", work)

    for text in POLICIES:
        replayed(text, accesses)
    only = AnalysisSettings(sections=("coverage",))
    timed("coverage", lambda: analyze(trace.cell_counts(), only))
    aimed_at = len(parts)
    replayed("belady", accesses)
    del accesses
    timed("moeprof analyze", lambda: analyze(trace))
    assignments = sum(sum(domain.tokens) for domain in trace.metadata.domains)
    assignments *= trace.shape.num_moe_layers * trace.shape.top_k
    first = parts[:aimed_at]
    whole = {
        "part": "all up to here",
        "seconds": sum(part["seconds"] for part in first),
        "peak_bytes": first[-1]["peak_bytes"],
    }
    parts.insert(aimed_at, whole)
    return {"assignments": assignments, "threads": threads, "parts": parts}


def distances(accesses: Accesses) -> float:
    """A median reuse distance, so that something is made of them."""
    found = reuse_distances(accesses.batch_start, accesses.cells, accesses.shape.num_cells)
    found.partition(len(found) // 2)
    return float(found[len(found) // 2])


def replays(
    accesses: Accesses, policy: Policy, sizes: np.ndarray, held_out: HeldOut, threads: int
) -> list[float]:
    """Hit rates of decoding at every size."""

    def hit_rate(share: float) -> float:
        budget = int(share * sizes.sum())
        return replay_held_out(accesses, policy, budget, sizes, held_out).hit_rate("decode")

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(hit_rate, SHARES))


def report(results: list[dict[str, Any]]) -> None:
    """A table, and one JSON line."""
    short, long = results
    title = f"{long['assignments']:,} assignments, {long['threads']} threads"
    table = Table("part", "s", "s per 1e8", "the same of a quarter", "peak GiB", title=title)
    for one, other in zip(long["parts"], short["parts"], strict=True):
        each = (one["seconds"] / long["assignments"], other["seconds"] / short["assignments"])
        figures = [one["seconds"], *(1e8 * seconds for seconds in each)]
        peak = f"{one['peak_bytes'] / 2**30:.2f}"
        table.add_row(one["part"], *(f"{figure:.1f}" for figure in figures), peak)
    Console().print(table)
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
