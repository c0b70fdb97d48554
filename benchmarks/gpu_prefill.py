"""Prefill of one layer of experts on a CUDA device, beside torch's bf16 grouped matrix product.

    python benchmarks/gpu_prefill.py --output DIR

Layers have the shape of Qwen3-30B-A3B's: hidden 2048, expert width 768, 128 experts, top-8, bf16
activations. Resident experts: eight layers, each with weights of its own, one after the other;
torch sorts the tokens by expert, multiplies, gates, multiplies and adds up, with bf16 weights.
Experts in host memory: all of a layer's, brought over the bus, computed by the host, or shared
between both as costs measured in this run say. Half of the assignments go to a tenth of the
experts. Prints a table and writes DIR/gpu_prefill.json.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from moeprof.native import (
    ExpertLayer,
    HostMemory,
    PrefillAnswerer,
    Workers,
    _cuda,
    expert_bytes,
)
from moeprof.native.cores import physical_cores
from moeprof.runtime.host_link import PrefillCosts, measure_host

HIDDEN_SIZE, WIDTH, NUM_EXPERTS, TOP_K, NUM_LAYERS = 2048, 768, 128, 8, 8
FORMATS = ("q8_0", "q4_0", "bf16")
REPEATS = 7


class HostLayer:
    """A layer of random packed bytes on the host, as `measure_host` wants it."""

    def __init__(self, weight_format: str, workers: Workers) -> None:
        self.size = expert_bytes(HIDDEN_SIZE, WIDTH, weight_format, False)
        self.memory = HostMemory(NUM_EXPERTS * self.size).array()
        self.memory[:] = np.random.default_rng(0).integers(0, 60, self.memory.size, np.uint8)
        self.kernel = ExpertLayer(HIDDEN_SIZE, WIDTH, NUM_EXPERTS, TOP_K, weight_format)
        for expert in range(NUM_EXPERTS):
            start = expert * self.size
            self.kernel.set_expert(expert, self.memory[start : start + self.size])
        self.held = list(range(NUM_EXPERTS))
        self.costs = measure_host([self], workers, (HIDDEN_SIZE, TOP_K))


class DeviceLayer:
    """A layer on the device; its experts are resident, or all of them on the host."""

    def __init__(self, exchange: object, weight_format: str, resident: bool) -> None:
        size = expert_bytes(HIDDEN_SIZE, WIDTH, weight_format, False)
        self.kernel = _cuda.DeviceLayer(
            exchange, 0, HIDDEN_SIZE, WIDTH, NUM_EXPERTS, TOP_K, weight_format
        )
        self.store = torch.empty(
            NUM_EXPERTS * size if resident else 256, dtype=torch.uint8, device="cuda"
        )
        self.store.random_(0, 60)  # the upper byte of a scale stays below infinity
        self.slots = torch.arange(NUM_EXPERTS, dtype=torch.int32, device="cuda")
        if not resident:
            self.slots.fill_(-1)
        self.state = torch.zeros(self.kernel.workspace_bytes, dtype=torch.uint8, device="cuda")
        addresses = (self.store, self.slots, self.state)
        store_at, slots_at, state_at = (tensor.data_ptr() for tensor in addresses)
        self.kernel.set_weights(store_at, size, slots_at, state_at)

    def prefill(self, rows: Tensor, ids: Tensor, weights: Tensor, output: Tensor) -> None:
        """Enqueue a prefill."""
        size = self.kernel.prefill_workspace_bytes(len(rows))
        workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
        self.kernel.prefill(
            torch.cuda.current_stream().cuda_stream, rows.data_ptr(), "bfloat16", ids.data_ptr(),
            weights.data_ptr(), "float32", len(rows), output.data_ptr(), workspace.data_ptr(),
        )  # fmt: skip


class TorchLayer:
    """The same layer with torch's grouped matrix product."""

    def __init__(self) -> None:
        shape = (NUM_EXPERTS, HIDDEN_SIZE, 2 * WIDTH)
        self.gate_up = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        shape = (NUM_EXPERTS, WIDTH, HIDDEN_SIZE)
        self.down = torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    def prefill(self, rows: Tensor, ids: Tensor, weights: Tensor, output: Tensor) -> None:
        """Sort, multiply, gate, multiply, add up."""
        order = ids.flatten().argsort()
        tokens = order // TOP_K
        ends = torch.bincount(ids.flatten(), minlength=NUM_EXPERTS).cumsum(0).int()
        gate, up = torch._grouped_mm(rows[tokens], self.gate_up, offs=ends).chunk(2, -1)
        results = torch._grouped_mm(nn.functional.silu(gate) * up, self.down, offs=ends)
        results = results * weights.flatten()[order, None].to(results.dtype)
        output.zero_().index_add_(0, tokens, results)


def choose(num_tokens: int, rng: np.random.Generator) -> Tensor:
    """[T, K] ids; half of the assignments go to a tenth of the experts."""
    leaning = np.zeros(NUM_EXPERTS)
    leaning[: NUM_EXPERTS // 10] = 2.2
    scores = rng.gumbel(size=(num_tokens, NUM_EXPERTS)) + leaning
    return torch.from_numpy(np.ascontiguousarray((-scores).argsort(1)[:, :TOP_K])).cuda()


def median_ms(work: Callable[[], None]) -> float:
    """Median milliseconds of `work`, on the device."""
    work()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def layer_ms(layers: list, num_tokens: int) -> float:
    """Milliseconds of a layer, one after the other."""
    rng = np.random.default_rng(0)
    rows = torch.randn(num_tokens, HIDDEN_SIZE, device="cuda").bfloat16() / 64
    ids = [choose(num_tokens, rng) for _ in layers]
    weights = torch.full((num_tokens, TOP_K), 1 / TOP_K, device="cuda")
    output = torch.empty_like(rows)

    def work() -> None:
        for layer, chosen in zip(layers, ids, strict=True):
            layer.prefill(rows, chosen, weights, output)

    return median_ms(work) / len(layers)


def resident(weight_format: str, tokens: list[int]) -> dict[str, float]:
    """Milliseconds of a layer in VRAM for each number of tokens."""
    exchange = _cuda.Exchange(HIDDEN_SIZE, TOP_K)
    layers = [DeviceLayer(exchange, weight_format, True) for _ in range(NUM_LAYERS)]
    found = {str(count): layer_ms(layers, count) for count in tokens}
    assert exchange.take_faults() == 0
    return found


def away(weight_format: str, tokens: list[int]) -> dict[str, object]:
    """Milliseconds of a layer in host memory, three ways."""
    exchange = _cuda.Exchange(HIDDEN_SIZE, TOP_K)
    cores = physical_cores()
    workers = Workers(max(1, len(cores) - 1), cores[:-1])
    host, layer = HostLayer(weight_format, workers), DeviceLayer(exchange, weight_format, False)
    pin = _cuda.HostPin(host.memory, host.memory.ctypes.data, host.memory.nbytes)
    addresses = torch.arange(NUM_EXPERTS, device="cuda") * host.size + pin.device_address
    answerer = PrefillAnswerer(exchange.address, workers)
    answerer.set_layer(0, host.kernel)
    room = _cuda.HostRoom(answerer, HIDDEN_SIZE, TOP_K, answerer.function, answerer.address)
    found: dict[str, object] = {}
    layer.kernel.set_host(addresses.data_ptr(), None, 1.0, 1.0, 1.0)
    found["copied_ms"] = {str(count): layer_ms([layer], count) for count in tokens}
    copy_ns = layer_ms([layer], 512) * 1e6 / NUM_EXPERTS
    found["copy_GB_s"] = host.size / copy_ns
    if weight_format == "bf16":
        return found
    costs = PrefillCosts(copy_ns, *host.costs)
    found["costs_us"] = [c / 1e3 for c in (costs.copy_ns, costs.host_ns, costs.host_token_ns)]
    layer.kernel.set_host(0, room, 1.0, 1.0, 1.0)
    found["host_ms"] = {str(count): layer_ms([layer], count) for count in tokens}
    layer.kernel.set_host(addresses.data_ptr(), room, copy_ns, *host.costs)
    found["shared_ms"] = {str(count): layer_ms([layer], count) for count in tokens}
    assert exchange.take_faults() == 0
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path())
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 512, 2048])
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "gpu_prefill.json"
    result: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    stages: dict[str, Callable[[], object]] = {
        "torch bf16": lambda: {
            str(n): layer_ms([TorchLayer() for _ in range(NUM_LAYERS)], n) for n in arguments.tokens
        },
    }
    for name in FORMATS:
        stages[name] = lambda name=name: resident(name, arguments.tokens)
        stages[f"{name} in RAM"] = lambda name=name: away(name, arguments.tokens)
    for name, stage in stages.items():
        with torch.no_grad():
            result[name] = stage()
        torch.cuda.empty_cache()
        path.write_text(json.dumps(result, indent=1) + "\n")
    table = Table(title=f"{result['device']}, ms of a layer by tokens")
    table.add_column("what")
    table.add_column("result")
    for key, value in result.items():
        table.add_row(key, json.dumps(value))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
