"""One decode step of everything outside the experts, on a CUDA device, several ways side by side.

    python benchmarks/gpu_dense.py --output DIR

A random-weight model of the shape of Qwen3-30B-A3B in bfloat16, without experts: their operation
returns zeros. Prints a table and writes DIR/gpu_dense.json. Each way runs in a process of its own;
the compiled one twice, the second time with what the first one kept. `--compile-all` adds
torch.compile of the whole unmodified model, which takes a minute.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, StaticCache
from transformers.integrations.moe import ExpertsInterface

from moeprof.checkpoint.kv_cache import cache_name, cache_of
from moeprof.runtime.decoding import Decoder

PROMPT_TOKENS = 512
STEPS = 64
WAYS = {
    "eager": "unmodified, DynamicCache",
    "graph": "unmodified, StaticCache, one CUDA graph",
    "compile-all": "unmodified, StaticCache, torch.compile reduce-overhead",
    "captured": "Decoder without compiling",
    "cold": "Decoder, first start",
    "warm": "Decoder, second start",
}


@torch.library.custom_op("benchmark::no_experts", mutates_args=())
def no_experts(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """What experts that cost nothing would add."""
    return torch.zeros_like(hidden)


@no_experts.register_fake
def _(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return torch.empty_like(hidden)


def _experts_forward(module: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.benchmark.no_experts(hidden, ids, weights)


ExpertsInterface.register("no_experts", _experts_forward)


def make_model(num_layers: int) -> Qwen3MoeForCausalLM:
    """The model on the device, its experts without weights."""
    config = Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=40960,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    for layer in model.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            setattr(layer.mlp.experts, name, nn.Parameter(torch.empty(0, device="meta")))
    model = model.to_empty(device="cuda").eval()
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02, generator=generator)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).cuda()
    model.set_experts_implementation("no_experts")
    return model


def seconds_per_step(step: Callable[[], object], steps: int = STEPS) -> float:
    """Median time of one step, each timed on the device."""
    for _ in range(3):
        step()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
    return statistics.median(times) / 1000


def kernels_of(step: Callable[[], object]) -> list[dict[str, object]]:
    """Names, counts and device time of the kernels of one step, the longest first."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    rows = [
        {
            "name": event.key[:120],
            "count": event.count,
            "seconds": event.self_device_time_total / 1e6,
        }
        for event in profile.key_averages()
        if event.self_device_time_total > 0 and event.device_type.name == "CUDA"
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def run_unmodified(model: Qwen3MoeForCausalLM, way: str, context: int) -> Callable[[], object]:
    """A step of the model as transformers has it."""
    ids = torch.arange(1, PROMPT_TOKENS + 1, device="cuda")[None]
    token = torch.ones((1, 1), dtype=torch.int64, device="cuda")
    position = torch.full((1, 1), PROMPT_TOKENS, device="cuda")
    cache = None if way == "eager" else StaticCache(config=model.config, max_cache_len=context)
    name = cache_name(model)
    cache = cache_of(model, model(input_ids=ids, use_cache=True, **{name: cache}))
    forward = model.forward
    if way == "compile-all":
        forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def step() -> None:
        output = forward(input_ids=token, position_ids=position, use_cache=True, **{name: cache})
        token.copy_(output.logits[:, -1:].argmax(-1))
        position.add_(1)

    if way != "graph":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(way: str, num_layers: int, context: int) -> dict[str, object]:
    """Everything about one way, in this process."""
    with torch.no_grad():
        model = make_model(num_layers)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        notes: tuple[str, ...] = ()
        if way in ("captured", "cold", "warm"):
            decoder = Decoder(model, context, 128, compiled=way != "captured")
            notes = decoder.notes
            step: Callable[[], object] = decoder.step
            torch.cuda.synchronize()
            prepared = time.perf_counter() - begin
            decoder.prefill(list(range(1, PROMPT_TOKENS + 1)))
        else:
            step = run_unmodified(model, way, context)
            step()
            step()
            torch.cuda.synchronize()
            prepared = time.perf_counter() - begin
        found = kernels_of(step)
        return {
            "way": way,
            "step_s": seconds_per_step(step, STEPS if way != "eager" else 16),
            "prepare_s": prepared,
            "num_kernels": sum(row["count"] for row in found),
            "kernel_s": sum(row["seconds"] for row in found),
            "notes": notes,
            "kernels": found[:30],
        }


def read_bandwidth() -> float:
    """Bytes per second of reading device memory far larger than its caches."""
    values = torch.ones(2**30, dtype=torch.float32, device="cuda")
    return values.nbytes / seconds_per_step(lambda: values.sum(), 10)


def main() -> None:
    """Run every way and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--compile-all", action="store_true")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS))
    parser.add_argument("--way", choices=list(WAYS), help="run one way in this process")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.way:
        result = measure(arguments.way, arguments.layers, arguments.context)
        path = arguments.output / f"gpu_dense_{arguments.way}.json"
        path.write_text(json.dumps(result))
        return
    ways = arguments.ways or [w for w in WAYS if w != "compile-all" or arguments.compile_all]
    results = []
    with TemporaryDirectory() as folder:
        for way in ways:
            command = [sys.executable, __file__, "--way", way, "--output", folder]
            command += ["--layers", str(arguments.layers), "--context", str(arguments.context)]
            environment = os.environ | {"MOEPROF_CACHE_DIR": f"{folder}/cache"}
            done = subprocess.run(command, env=environment, check=False)
            path = Path(folder) / f"gpu_dense_{way}.json"
            failed = {"way": way, "notes": [f"failed with exit code {done.returncode}"]}
            results.append(json.loads(path.read_text()) if path.is_file() else failed)
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "num_layers": arguments.layers,
        "prompt_tokens": PROMPT_TOKENS,
        "context_tokens": arguments.context,
        "read_bytes_per_s": read_bandwidth(),
        "ways": results,
    }
    (arguments.output / "gpu_dense.json").write_text(json.dumps(document, indent=1))
    table = Table("way", "step", "kernels", "kernel time", "ready after", "notes")
    for result in results:
        if "step_s" not in result:
            table.add_row(WAYS[result["way"]], "", "", "", "", "; ".join(result["notes"]))
            continue
        table.add_row(
            WAYS[result["way"]],
            f"{1e3 * result['step_s']:.2f} ms",
            str(result["num_kernels"]),
            f"{1e3 * result['kernel_s']:.2f} ms",
            f"{result['prepare_s']:.1f} s",
            "; ".join(result["notes"]),
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
