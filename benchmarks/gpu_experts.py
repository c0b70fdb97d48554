"""How fast decoding reads resident experts on a CUDA device, and what the hand-over costs.

    python benchmarks/gpu_experts.py [--output FILE.json]

Layers have the shape of Qwen3-30B-A3B's: hidden 2048, expert width 768, 128 experts, top-8, bf16
activations of one token. 48 layers, each with weights of its own, are captured in one graph. Its
median replay is compared with a plain read of all the memory in one launch, and with a graph of 48
launches that each read a layer's eight experts plainly: what launches that wait for each other
leave of the device's bandwidth. The hand-over is timed with experts of width 32 that all live on
the host; what its workers take for the same layer when they are asked without a device is told
apart.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from moeprof.native import Answerer, ExpertLayer, Workers, _cuda, expert_bytes
from moeprof.native.cores import physical_cores

HIDDEN_SIZE, WIDTH, NUM_EXPERTS, TOP_K, NUM_LAYERS = 2048, 768, 128, 8, 48


def median_s(work: Callable[[], None], repeats: int) -> float:
    """Median seconds of `work` on the device."""
    for _ in range(5):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times)


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """`work` as a graph, run once before."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


def make_layers(exchange: object, weight_format: str, width: int, resident: bool) -> list:
    """Layers of random packed bytes whose block scales are finite, and what keeps them alive."""
    size = expert_bytes(HIDDEN_SIZE, width, weight_format, False)
    layers = []
    for index in range(NUM_LAYERS):
        layer = _cuda.DeviceLayer(
            exchange, index, HIDDEN_SIZE, width, NUM_EXPERTS, TOP_K, weight_format
        )
        store = torch.empty(
            NUM_EXPERTS * size if resident else 256, dtype=torch.uint8, device="cuda"
        )
        store.random_(0, 60)  # the upper byte of a scale stays below infinity
        slots = torch.arange(NUM_EXPERTS, dtype=torch.int32, device="cuda")
        slots = slots if resident else torch.full_like(slots, -1)
        layers.append((layer, store, slots))
    workspace = torch.zeros(layers[0][0].workspace_bytes, dtype=torch.uint8, device="cuda")
    for layer, store, slots in layers:
        layer.set_weights(store.data_ptr(), size, slots.data_ptr(), workspace.data_ptr())
    return [*layers, workspace]


def step(layers: list, num_tokens: int, overlaps: bool) -> Callable[[], None]:
    """A forward of all layers, each with experts of its own choice."""
    rng = np.random.default_rng(0)
    hidden = torch.randn(num_tokens, HIDDEN_SIZE, device="cuda").bfloat16() / 64
    output = torch.empty_like(hidden)
    chosen = [
        torch.from_numpy(rng.random((num_tokens, NUM_EXPERTS)).argsort(1)[:, :TOP_K].copy()).cuda()
        for _ in layers
    ]
    weights = torch.full((num_tokens, TOP_K), 1 / TOP_K, device="cuda")

    def work() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        for (layer, _, _), ids in zip(layers, chosen, strict=True):
            layer.forward(
                stream, hidden.data_ptr(), "bfloat16", ids.data_ptr(), weights.data_ptr(),
                "float32", num_tokens, output.data_ptr(), 0, 0, overlaps,
            )  # fmt: skip

    return work


def resident_decode(weight_format: str, repeats: int) -> dict[str, object]:
    """Microseconds of a layer, and its bandwidth over that of a plain read in the same run."""
    exchange = _cuda.Exchange(HIDDEN_SIZE, TOP_K)
    *layers, workspace = make_layers(exchange, weight_format, WIDTH, True)
    num_bytes = TOP_K * expert_bytes(HIDDEN_SIZE, WIDTH, weight_format, False)
    result = torch.zeros(1, dtype=torch.int64, device="cuda")

    def read() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        for _, store, _ in layers:
            _cuda.xor_words(store.data_ptr(), store.numel(), result.data_ptr(), stream)

    def read_layer_by_layer() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        for _, store, _ in layers:
            _cuda.xor_words(store.data_ptr(), num_bytes // 64 * 64, result.data_ptr(), stream)

    read_s = median_s(captured(read), 5)
    read_bandwidth = sum(store.numel() for _, store, _ in layers) / read_s
    launched_s = median_s(captured(read_layer_by_layer), repeats) / NUM_LAYERS
    row: dict[str, object] = {"format": weight_format, "read_TB_s": read_bandwidth / 1e12}
    row["read_launch_by_launch_us"] = launched_s * 1e6
    row["read_launch_by_launch_ratio"] = num_bytes / launched_s / read_bandwidth
    for overlaps in (True, False):
        layer_s = median_s(captured(step(layers, 1, overlaps)), repeats) / NUM_LAYERS
        name = "overlapped" if overlaps else "plain"
        row[f"{name}_us"] = layer_s * 1e6
        row[f"{name}_ratio"] = num_bytes / layer_s / read_bandwidth
    tokens_s = median_s(step(layers, 64, True), 5) / NUM_LAYERS
    row["tokens_64_us"] = tokens_s * 1e6
    row["faults"] = exchange.take_faults()
    del workspace
    return row


def host_median_s(host: ExpertLayer, workers: Workers, core: int) -> float:
    """Median seconds of a token with eight experts on the host, asked from one of its threads."""
    rows = np.random.default_rng(0).standard_normal((1, HIDDEN_SIZE), np.float32) / 64
    ids = np.arange(TOP_K, dtype=np.uint16)[None]
    weights = np.full((1, TOP_K), 1 / TOP_K, np.float32)
    outputs = np.empty((1, TOP_K, HIDDEN_SIZE), np.float32)
    sums = np.empty((1, HIDDEN_SIZE), np.float32)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    times = []
    for _ in range(2000):
        begun = time.perf_counter()
        host.decode(workers, rows, ids, weights, outputs, sums)
        times.append(time.perf_counter() - begun)
    os.sched_setaffinity(0, allowed)
    return statistics.median(times)


def hand_over(repeats: int) -> dict[str, object]:
    """Microseconds of a layer whose eight small experts are all on the host, and of the host."""
    exchange = _cuda.Exchange(HIDDEN_SIZE, TOP_K)
    *layers, workspace = make_layers(exchange, "q4_0", 32, False)
    size = expert_bytes(HIDDEN_SIZE, 32, "q4_0", False)
    memory = np.zeros(size + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :][:size]
    cores = physical_cores()
    row: dict[str, object] = {}
    for num_threads in (1, 8):
        workers = Workers(min(num_threads, len(cores)), cores)
        answerer = Answerer(exchange.address, HIDDEN_SIZE, TOP_K, workers, cores[0])
        host = ExpertLayer(HIDDEN_SIZE, 32, NUM_EXPERTS, TOP_K, "q4_0")
        for expert in range(NUM_EXPERTS):
            host.set_expert(expert, memory)
        for index in range(NUM_LAYERS):
            answerer.set_layer(index, host)
        answerer.start()
        layer_s = median_s(captured(step(layers, 1, True)), repeats) / NUM_LAYERS
        answerer.stop()
        host_s = host_median_s(host, workers, cores[0])
        row[f"threads_{num_threads}_us"] = layer_s * 1e6
        row[f"threads_{num_threads}_host_us"] = host_s * 1e6
        row[f"threads_{num_threads}_rest_us"] = (layer_s - host_s) * 1e6
    row["faults"] = exchange.take_faults()
    del workspace
    return row


def main() -> None:
    """Print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("gpu_experts.json"))
    parser.add_argument("--repeats", type=int, default=51)
    arguments = parser.parse_args()
    result: dict[str, object] = {"device": torch.cuda.get_device_name()}
    for weight_format in ("q8_0", "q4_0", "bf16"):
        result[weight_format] = resident_decode(weight_format, arguments.repeats)
        torch.cuda.empty_cache()
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    result["hand_over"] = hand_over(arguments.repeats)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    table = Table(title=str(result["device"]))
    table.add_column("what")
    table.add_column("result")
    for key, value in result.items():
        table.add_row(key, json.dumps(value))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
