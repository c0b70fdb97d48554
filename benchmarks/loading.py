"""Speed and peak memory of loading, side by side with transformers' from_pretrained.

Each way runs in a process of its own, several times in turns, after the checkpoint was read once,
so that all of them find it in the page cache; medians are printed, and one JSON line at the end.

    python benchmarks/loading.py [--gib 2] [--rounds 3] [--model DIR]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("from_pretrained", "bf16", "q8_0", "q4_0", "q8_0, keeping", "q8_0, kept")
_SAMPLE_SECONDS = 0.005


def main() -> None:
    """Measure every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the checkpoint made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="measure this checkpoint instead")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        sys.stdout.write(json.dumps(measure(given.model, given.way, given.store)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or make_checkpoint(Path(folder) / "model", given.gib)
        compare(model, Path(folder), given.rounds)


def make_checkpoint(path: Path, gib: float) -> Path:
    """A Qwen3-MoE checkpoint in bfloat16 with random weights, 16 layers of 64 experts."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    layers, experts, hidden = 16, 64, 1024
    width = round(gib * 2**30 / (layers * experts * 3 * hidden * 2) / 32) * 32
    config = Qwen3MoeConfig(
        vocab_size=4096,
        hidden_size=hidden,
        moe_intermediate_size=width,
        num_hidden_layers=layers,
        num_experts=experts,
        num_experts_per_tok=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
    )
    torch.set_default_dtype(torch.bfloat16)
    Qwen3MoeForCausalLM(config).save_pretrained(path)
    return path


def compare(model: Path, folder: Path, rounds: int) -> None:
    """Run every way in turns and print medians."""
    files = list(model.glob("*.safetensors"))
    size = sum(len(file.read_bytes()) for file in files)
    results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in WAYS:
            store = folder / f"store-{turn}"
            arguments = ["--model", str(model), "--way", way, "--store", str(store)]
            command = [sys.executable, __file__, *arguments]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            results[way].append(json.loads(done.stdout.splitlines()[-1]))
    table = {}
    sys.stdout.write(f"checkpoint of {size / 2**30:.2f} GiB, medians of {rounds}\n")
    sys.stdout.write(f"{'way':18}{'seconds':>9}{'GB/s':>8}{'anonymous GiB':>15}{'tiers GiB':>11}\n")
    for way, found in results.items():
        row = {key: statistics.median(entry[key] for entry in found) for key in found[0]}
        row["gb_per_s"] = size / row["seconds"] / 1e9
        table[way] = row
        sys.stdout.write(
            f"{way:18}{row['seconds']:9.2f}{row['gb_per_s']:8.2f}"
            f"{row['anonymous'] / 2**30:15.2f}{row['tiers'] / 2**30:11.2f}\n"
        )
    sys.stdout.write(json.dumps({"checkpoint_bytes": size, "rounds": rounds, "ways": table}) + "\n")


def measure(model: Path, way: str, store: Path) -> dict[str, float]:
    """Seconds, peak of anonymous memory over that before, and bytes of the experts as held."""
    from transformers import AutoModelForCausalLM

    from moeprof.checkpoint import read_checkpoint
    from moeprof.runtime.loader import load_split

    checkpoint = read_checkpoint(model)
    shape = checkpoint.shape
    with _PeakMemory() as memory:
        begun = time.perf_counter()
        if way == "from_pretrained":
            held: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
            tiers = shape.total_expert_bytes
        else:
            everywhere = np.ones((shape.num_moe_layers, shape.num_experts), np.uint8)
            kept = store if "," in way else None
            name = way.partition(",")[0]
            held = load_split(checkpoint, everywhere, device="cpu", weight_format=name, store=kept)
            tiers = sum(one.num_bytes for one in held.stores.values())
        seconds = time.perf_counter() - begun
    del held
    return {"seconds": seconds, "anonymous": float(memory.peak), "tiers": float(tiers)}


class _PeakMemory:
    """Peak of the process's anonymous memory over its start, sampled by a thread."""

    def __enter__(self) -> "_PeakMemory":
        self._before = self._anonymous()
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, self._anonymous() - self._before)

    @staticmethod
    def _anonymous() -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


if __name__ == "__main__":
    main()
