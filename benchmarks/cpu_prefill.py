"""How fast many tokens go through one layer of experts on the CPU, against torch in bf16.

    python benchmarks/cpu_prefill.py [--tokens N,N] [--threads N] [--path NAME] [--output FILE.json]

The layer has the shape of Qwen3-30B-A3B's: hidden 2048, expert width 768, 128 experts, top-8, every
token's experts drawn at random. In one run, interleaved, take turns: `ExpertLayer.forward` in each
format; torch's bf16 grouped matrix products with what belongs to them (transformers' grouped_mm
experts), and the same experts one after the other as plain matrix products (its eager form); and
the plain read of the layer's packed bytes by the same workers. All use the same number of threads.
The layers are visited in turn and together exceed the caches. Medians, the faster of torch's two
forms over each format with its 95 % bootstrap interval, and the time of each format over the time
of its plain read.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cpu_decode import FORMATS, HIDDEN_SIZE, NUM_EXPERTS, TOP_K, WIDTH, make_layers, processor
from rich.console import Console
from rich.table import Table

from moeprof.native import ExpertLayer, Workers, expert_bytes
from moeprof.native.cores import physical_cores


class TorchExperts:
    """The layer in bf16, [E, 2F, H] and [E, H, F], as transformers' experts modules hold it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = ((NUM_EXPERTS, 2 * WIDTH, HIDDEN_SIZE), (NUM_EXPERTS, HIDDEN_SIZE, WIDTH))
        self.gate_up, self.down = (
            torch.empty(shape, dtype=torch.bfloat16).normal_(0, 1 / 32, generator=generator)
            for shape in shapes
        )

    def grouped(
        self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Sorted by expert, two grouped matrix products; hidden [T, H], ids and weights [T, K]."""
        sorted_ids, order = torch.sort(ids.reshape(-1))
        offsets = torch.bincount(sorted_ids, minlength=NUM_EXPERTS).cumsum(0).to(torch.int32)
        rows = hidden[order // TOP_K]
        gate, up = torch._grouped_mm(rows, self.gate_up.transpose(1, 2), offs=offsets).chunk(2, -1)
        activated = torch.nn.functional.silu(gate) * up
        outputs = torch._grouped_mm(activated, self.down.transpose(1, 2), offs=offsets)
        weighted = torch.empty_like(outputs)
        weighted[order] = outputs * weights.reshape(-1, 1)[order]
        return weighted.view(len(hidden), TOP_K, HIDDEN_SIZE).sum(1)

    def one_by_one(
        self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Expert after expert; hidden [T, H], ids and weights [T, K]."""
        output = torch.zeros_like(hidden)
        for expert_id in ids.unique().tolist():
            tokens, slots = torch.nonzero(ids == expert_id, as_tuple=True)
            gate, up = (hidden[tokens] @ self.gate_up[expert_id].T).chunk(2, -1)
            outputs = (torch.nn.functional.silu(gate) * up) @ self.down[expert_id].T
            output.index_add_(0, tokens, outputs * weights[tokens, slots, None])
        return output


def forward(
    layer: ExpertLayer,
    workers: Workers,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """`ExpertLayer.forward` on bf16 tensors."""
    output = torch.empty_like(hidden)
    layer.forward(
        workers,
        hidden.data_ptr(),
        "bfloat16",
        ids.data_ptr(),
        weights.data_ptr(),
        "bfloat16",
        len(hidden),
        output.data_ptr(),
    )
    return output


def read(layer: ExpertLayer, workers: Workers) -> None:
    """The plain read of all of a layer's packed bytes."""
    for ids in np.arange(NUM_EXPERTS, dtype=np.uint16).reshape(-1, TOP_K):
        layer.xor_experts(workers, ids)


def measure(ways: dict[str, list[Callable[[], object]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round; the first round of each layer is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(-1, rounds):
        for name in np.random.default_rng(index + 1).permutation(list(ways)):
            turns = ways[name]
            turn = turns[index % len(turns)]
            begun = time.perf_counter()
            turn()
            if index >= 0:
                times[name].append(time.perf_counter() - begun)
    return times


def interval(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Ratio of medians, with its 95 % bootstrap interval over the rounds."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(over), (2000, len(over)))
    ratios = np.median(np.array(over)[picks], axis=1) / np.median(np.array(under)[picks], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return statistics.median(over) / statistics.median(under), float(low), float(high)


def draw(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations [T, H] bf16, experts [T, K] int64 and weights [T, K] bf16."""
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, HIDDEN_SIZE, generator=generator).bfloat16()
    ids = torch.rand(num_tokens, NUM_EXPERTS, generator=generator).topk(TOP_K).indices
    weights = torch.rand(num_tokens, TOP_K, generator=generator)
    return hidden, ids, (weights / weights.sum(1, keepdim=True)).bfloat16()


def main() -> None:
    """Measure each number of tokens, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    cores = physical_cores()
    parser.add_argument("--tokens", default="256", help="numbers of tokens, with commas")
    parser.add_argument("--threads", type=int, default=len(cores))
    parser.add_argument("--path", help="vector path; the fastest unless given")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    workers = Workers(arguments.threads, cores, spin_us=1000)
    experts = TorchExperts()
    layers = {name: make_layers(name, 2**30, arguments.path) for name in FORMATS}
    results = []
    for num_tokens in map(int, arguments.tokens.split(",")):
        given = draw(num_tokens)
        ways: dict[str, list[Callable[[], object]]] = {
            "torch grouped": [partial(experts.grouped, *given)],
            "torch one by one": [partial(experts.one_by_one, *given)],
        }
        for name in FORMATS:
            ways[name] = [partial(forward, layer, workers, *given) for layer in layers[name]]
            ways[f"{name} read"] = [partial(read, layer, workers) for layer in layers[name]]
        times = measure(ways, arguments.rounds)
        results.append(report(num_tokens, times, layers["q8_0"][0].path))
    document = {
        "machine": f"{processor()}, {arguments.threads} threads, torch {torch.__version__}",
        "shape": {
            "hidden_size": HIDDEN_SIZE,
            "width": WIDTH,
            "num_experts": NUM_EXPERTS,
            "top_k": TOP_K,
        },
        "rounds": arguments.rounds,
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


def report(num_tokens: int, times: dict[str, list[float]], path: str) -> dict[str, object]:
    """The table of one number of tokens, printed, and the same as a dictionary."""
    torch_times = min((times["torch grouped"], times["torch one by one"]), key=statistics.median)
    table = Table(title=f"CPU prefill of {num_tokens} tokens, path {path}, medians")
    for column in ("", "ms", "torch's time / ours", "95 % interval", "time / plain read"):
        table.add_column(column, justify="right")
    row: dict[str, object] = {"num_tokens": num_tokens, "path": path}
    for name in ("torch grouped", "torch one by one"):
        row[name] = {"s": statistics.median(times[name])}
        table.add_row(name, f"{statistics.median(times[name]) * 1e3:.1f}")
    for name in FORMATS:
        ratio, low, high = interval(torch_times, times[name])
        over_read = statistics.median(times[name]) / statistics.median(times[f"{name} read"])
        size = NUM_EXPERTS * expert_bytes(HIDDEN_SIZE, WIDTH, name, False)
        row[name] = {
            "s": statistics.median(times[name]),
            "read_s": statistics.median(times[f"{name} read"]),
            "bytes": size,
            "torch_ratio": ratio,
            "torch_ratio_low": low,
            "torch_ratio_high": high,
            "read_ratio": over_read,
        }
        table.add_row(
            name,
            f"{statistics.median(times[name]) * 1e3:.1f}",
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{over_read:.2f}",
        )
    Console().print(table)
    return row


if __name__ == "__main__":
    main()
