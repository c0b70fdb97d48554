"""Everything that needs a CUDA device, in one call: GPU tests, then GPU figures.

    python benchmarks/gpu_acceptance.py --output DIR

Prints a table and writes DIR/gpu_acceptance.json. The package must be installed
(`pip install -e .`); one call takes less than eight minutes.
"""

import argparse
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
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from moeprof.capture import RoutingTap

ROOT = Path(__file__).resolve().parent.parent
# Shape of Qwen3-30B-A3B with fewer layers: what matters to the tap is the work per layer.
CONFIG = Qwen3MoeConfig(
    vocab_size=151936,
    hidden_size=2048,
    moe_intermediate_size=768,
    num_hidden_layers=12,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
)


# Of these tests each runs workers on every core; the others may run side by side.
ALONE = ("test_gpu.py", "test_run_gpu.py", "test_runtime.py")


def run_tests(folder: Path) -> dict[str, object]:
    """Run the tests marked `gpu`; their logs are kept beside the figures."""
    files = [p for p in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in p.read_text()]
    found: dict[str, object] = {}
    for name, options, chosen in (
        ("alone", [], [p for p in files if p.name in ALONE]),
        ("abreast", ["-n", "10"], [p for p in files if p.name not in ALONE]),
    ):
        command = [sys.executable, "-m", "pytest", "-p", "xdist", "-m", "gpu", "-q", "-rs"]
        command += ["--tb=short", "--show-capture=no", "--durations=5", *options]
        log = folder / f"pytest_{name}.log"
        with log.open("w") as stream:
            done = subprocess.run(
                [*command, *map(str, sorted(chosen))],
                cwd=ROOT,
                env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
            )
        lines = [line for line in log.read_text().splitlines() if " in " in line and "=" in line]
        found[name] = {"exit_code": done.returncode, "summary": (lines or ["no summary"])[-1]}
    return found


def context_bytes() -> int:
    """What a CUDA context with cuBLAS takes of the device beyond PyTorch's own allocations."""
    script = (
        "import torch\n"
        "free, total = torch.cuda.mem_get_info()\n"
        "a = torch.ones(512, 512, device='cuda', dtype=torch.bfloat16); (a @ a).sum().item()\n"
        "free, total = torch.cuda.mem_get_info()\n"
        "print(total - free - torch.cuda.memory_reserved())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(done.stdout.split()[-1])


def device_seconds(action: Callable[[], object]) -> float:
    """Wall time of one call, the device waited for at both ends."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def tap_overhead(repeats: int) -> dict[str, dict[str, float]]:
    """Time of a tapped forward, its copy to the host included, over a plain one, interleaved."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16).eval()
    results = {}
    for name, shape in {"prefill 4x512": (4, 512), "decode-sized 4x1": (4, 1)}.items():
        token_ids = torch.randint(0, 151936, shape, device="cuda")
        tap = RoutingTap(model)

        def plain(token_ids: torch.Tensor = token_ids) -> None:
            with torch.inference_mode():
                model(token_ids, use_cache=False, logits_to_keep=1)

        def tapped(token_ids: torch.Tensor = token_ids, tap: RoutingTap = tap) -> None:
            with tap:
                plain(token_ids)
                routed = tap.take()
                routed.ids.to(torch.int32).cpu()
                routed.weights.to(torch.float16).cpu()

        for _ in range(3):
            plain()
            tapped()
        pairs = []
        for index in range(repeats):
            first, second = (plain, tapped) if index % 2 else (tapped, plain)
            times = {first: device_seconds(first), second: device_seconds(second)}
            pairs.append((times[plain], times[tapped]))
        results[name] = {
            "plain_ms": statistics.median(p for p, _ in pairs) * 1e3,
            "tapped_over_plain": statistics.median(t / p for p, t in pairs),
        }
    return results


def demo_on_device(folder: Path) -> dict[str, object]:
    """The whole road on the bundled model, on the device."""
    begun = time.perf_counter()
    with TemporaryDirectory() as scratch, (folder / "demo.log").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "moeprof", "demo", "-o", f"{scratch}/demo"],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return {"exit_code": done.returncode, "seconds": time.perf_counter() - begun}


def benchmark(script: str, folder: Path, *arguments: str) -> dict[str, object]:
    """Run another benchmark of this folder; what it writes stays beside our figures."""
    begun = time.perf_counter()
    with (folder / f"{script}.log").open("w") as log:
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    found = folder / f"{script}.json"
    return {
        "exit_code": done.returncode,
        "seconds": time.perf_counter() - begun,
        "result": json.loads(found.read_text()) if found.exists() else None,
    }


def sanitized(folder: Path) -> dict[str, object]:
    """The smallest kernel tests under compute-sanitizer's memory checker."""
    command = ["compute-sanitizer", "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q"]
    command += ["tests/test_cuda_kernels.py", "tests/test_cuda_prefill.py"]
    command += ["-k", "fault or counts"]
    with (folder / "sanitizer.log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    return {"exit_code": done.returncode}


def main() -> None:
    """Run everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path())
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--stages", nargs="+", help="Only these, in this order.")
    arguments = parser.parse_args()
    out = arguments.output
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not torch.cuda.is_available():
        raise SystemExit("error: this machine has no CUDA device\nhint: run it on one that has")
    result: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    stages: dict[str, Callable[[], object]] = {
        "tests": lambda: run_tests(arguments.output),
        "context_bytes": context_bytes,
        "experts": lambda: benchmark("gpu_experts", out, "--output", f"{out}/gpu_experts.json"),
        "prefill": lambda: benchmark("gpu_prefill", out, "--output", str(out)),
        "full_size": lambda: benchmark("gpu_full_size", out, "--output", str(out)),
        "dense": lambda: benchmark("gpu_dense", out, "--output", str(out)),
        "tap_overhead": lambda: tap_overhead(arguments.repeats),
        "demo": lambda: demo_on_device(arguments.output),
        "sanitized": lambda: sanitized(out),
    }
    if arguments.stages:
        stages = {name: stages[name] for name in arguments.stages}
    for name, stage in stages.items():
        result[name] = stage()
        (arguments.output / "gpu_acceptance.json").write_text(json.dumps(result, indent=1) + "\n")
    table = Table(title=f"{result['device']}, torch {torch.__version__}")
    table.add_column("what")
    table.add_column("result")
    for key, value in result.items():
        table.add_row(key, json.dumps(value))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
