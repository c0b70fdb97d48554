"""How fast decoding reads expert weights on the CPU, against a plain read of the same memory.

    python benchmarks/cpu_decode.py [--threads N] [--path NAME] [--output FILE.json]

A layer has the shape of Qwen3-30B-A3B's: hidden 2048, expert width 768, 128 experts, top-8. As many
layers are allocated as fill the stated memory, so that nothing is found in a cache. Every pass
visits all experts once in random order, eight at a time; decode of one token and the plain read
(XOR of all words, vectorised, by the same workers over the same bytes) take turns, and swap their
turns from pass to pass. A pass gives one ratio of medians; the table shows the median ratio of all
passes with its 95 % bootstrap interval.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from moeprof.native import ExpertLayer, Workers, expert_bytes, reference
from moeprof.native.cores import physical_cores

HIDDEN_SIZE, WIDTH, NUM_EXPERTS, TOP_K = 2048, 768, 128, 8
FORMATS = ("q8_0", "q4_0", "bf16")
LINE = 64


def packed_expert(seed: int, weight_format: str) -> np.ndarray:
    """One expert with small random weights."""
    rng = np.random.default_rng(seed)

    def stored(*shape: int) -> np.ndarray:
        return reference.quantize(rng.standard_normal(shape).astype(np.float32) / 32, weight_format)

    gate, up, down = (
        stored(*shape)
        for shape in ((WIDTH, HIDDEN_SIZE), (WIDTH, HIDDEN_SIZE), (HIDDEN_SIZE, WIDTH))
    )
    return reference.pack_expert(reference.ExpertWeights(gate, up, down, weight_format))


def make_layers(weight_format: str, memory: int, path: str | None) -> list[ExpertLayer]:
    """Layers whose experts fill `memory` bytes; copies of two experts, each in its own place."""
    size = expert_bytes(HIDDEN_SIZE, WIDTH, weight_format, False)
    num_layers = -(-memory // (NUM_EXPERTS * size))
    store = np.empty(num_layers * NUM_EXPERTS * size + LINE, np.uint8)
    at = -store.ctypes.data % LINE
    sources = [packed_expert(seed, weight_format) for seed in range(2)]
    layers = []
    for _ in range(num_layers):
        layer = ExpertLayer(HIDDEN_SIZE, WIDTH, NUM_EXPERTS, TOP_K, weight_format, path=path)
        for expert_id in range(NUM_EXPERTS):
            packed = store[at : at + size]
            packed[:] = sources[expert_id % 2]
            layer.set_expert(expert_id, packed)
            at += size
        layers.append(layer)
    return layers


def measure(layers: list[ExpertLayer], workers: Workers, passes: int) -> list[tuple[float, float]]:
    """Median seconds of one decode and of one plain read, pass by pass."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1, HIDDEN_SIZE)).astype(np.float32)
    weights = np.full((1, TOP_K), 1 / TOP_K, np.float32)
    outputs = np.empty((1, TOP_K, HIDDEN_SIZE), np.float32)
    sums = np.empty((1, HIDDEN_SIZE), np.float32)
    medians = []
    for index in range(passes + 1):
        steps = [
            (layer, ids.astype(np.uint16))
            for layer in layers
            for ids in rng.permutation(NUM_EXPERTS).reshape(-1, TOP_K)
        ]
        times: tuple[list[float], list[float]] = ([], [])
        for turn, step in enumerate(rng.permutation(len(steps))):
            layer, ids = steps[step]
            reads = (turn + index) % 2
            begun = time.perf_counter()
            if reads:
                layer.xor_experts(workers, ids)
            else:
                layer.decode(workers, rows, ids[None], weights, outputs, sums)
            times[reads].append(time.perf_counter() - begun)
        medians.append((statistics.median(times[0]), statistics.median(times[1])))
    return medians[1:]


def summary(medians: list[tuple[float, float]], weight_format: str) -> dict[str, float]:
    """Rates in bytes per second and the ratio with its interval."""
    size = TOP_K * expert_bytes(HIDDEN_SIZE, WIDTH, weight_format, False)
    ratios = np.array([read / decode for decode, read in medians])
    rng = np.random.default_rng(0)
    low, high = np.percentile(
        np.median(rng.choice(ratios, (2000, len(ratios))), axis=1), [2.5, 97.5]
    )
    return {
        "bytes_per_token": size,
        "decode_bytes_per_s": size / statistics.median(decode for decode, _ in medians),
        "read_bytes_per_s": size / statistics.median(read for _, read in medians),
        "ratio": float(np.median(ratios)),
        "ratio_low": float(low),
        "ratio_high": float(high),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Measure each format, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    cores = physical_cores()
    parser.add_argument("--threads", type=int, default=len(cores))
    parser.add_argument("--path", help="vector path; the fastest unless given")
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--memory-gib", type=float, default=2.5, help="of weights, per format")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {cores[0]})
    workers = Workers(arguments.threads, cores, spin_us=1000)
    table = Table(title="CPU decode of one token against a plain read, interleaved")
    for column in ("format", "path", "decode GB/s", "read GB/s", "ratio", "95 % interval"):
        table.add_column(column, justify="right")
    results = {}
    for weight_format in FORMATS:
        layers = make_layers(weight_format, int(arguments.memory_gib * 2**30), arguments.path)
        row = summary(measure(layers, workers, arguments.passes), weight_format)
        results[weight_format] = {**row, "path": layers[0].path}
        table.add_row(
            weight_format,
            layers[0].path,
            f"{row['decode_bytes_per_s'] / 1e9:.1f}",
            f"{row['read_bytes_per_s'] / 1e9:.1f}",
            f"{row['ratio']:.3f}",
            f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
        )
        del layers
    Console().print(table)
    document = {
        "machine": f"{processor()}, {arguments.threads} threads",
        "shape": {"hidden_size": HIDDEN_SIZE, "width": WIDTH, "top_k": TOP_K},
        "memory_gib": arguments.memory_gib,
        "passes": arguments.passes,
        "formats": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
