"""What tracing costs: time against the plain forward, bytes on disk against the ids' entropy.

    python benchmarks/trace_overhead.py [--output FILE.json]

The plain forward and the traced one (tap, copy, check, Parquet) take turns on the same batches
(A B B A, B A A B, ...), so that a slow minute of the machine hits both. Parts are written as the
tracer writes them, every thirty seconds. The model is Qwen3-MoE with random weights, large enough
that a forward on two cores takes a while, as a real one does.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from moeprof.capture.engine import Engine
from moeprof.capture.windows import Window
from moeprof.model_shape import ModelShape
from moeprof.trace import Trace, open_trace, schema
from moeprof.trace.writer import Document, TraceWriter

NUM_LAYERS, NUM_EXPERTS, TOP_K = 8, 128, 8
BATCH_SIZE, SEQUENCE_LENGTH = 2, 512
COMMIT_SECONDS = 30.0


def make_model(seed: int) -> Qwen3MoeForCausalLM:
    """About 440 M parameters: 8 layers of 128 experts, top-8."""
    config = Qwen3MoeConfig(
        vocab_size=8192,
        hidden_size=512,
        moe_intermediate_size=256,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
    )
    torch.manual_seed(seed)
    with torch.device("cpu"):
        return Qwen3MoeForCausalLM(config).to(torch.bfloat16).eval()


def metadata(weights: bool) -> schema.TraceMetadata:
    """Of a trace of this model; nothing in it is measured."""
    shape = ModelShape(
        model_type="qwen3_moe",
        num_layers=NUM_LAYERS,
        moe_layers=tuple(range(NUM_LAYERS)),
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        hidden_size=512,
        vocab_size=8192,
        expert_bytes=(3 * 512 * 256 * 2,) * NUM_LAYERS,
        dense_bytes=1,
        dtype="bfloat16",
    )
    capture = schema.CaptureSettings(
        sequence_length=SEQUENCE_LENGTH,
        batch_size=BATCH_SIZE,
        max_tokens=None,
        generate=0,
        prompt_tokens=1,
        temperature=0.0,
        seed=0,
        weights=weights,
        dtype="bfloat16",
        device="cpu",
        text_column="text",
    )
    return schema.TraceMetadata(
        schema.ModelIdentity("random", "-", "-"), shape, capture, (schema.Domain("x", ("-",)),), {}
    )


def batches(count: int, seed: int) -> list[list[Window]]:
    """Random token ids, Zipf-like as text is."""
    rng = np.random.default_rng(seed)
    made = []
    for batch in range(count):
        rows = np.minimum(rng.zipf(1.2, (BATCH_SIZE, SEQUENCE_LENGTH)), 8191)
        made.append(
            [
                Window(batch * BATCH_SIZE + i, str(i), 0, row.tolist(), 0)
                for i, row in enumerate(rows)
            ]
        )
    return made


def measure_time(model: Qwen3MoeForCausalLM, repeats: int, folder: Path) -> list[float]:
    """Time of the traced forward over the plain one: each the geometric mean of two rounds.

    The rounds are A B B A and B A A B, so that neither drift nor a first call favours one.
    """
    described = metadata(weights=True)
    engine = Engine(model, described.capture, described.shape)
    ratios = []
    sequence = itertools.count()
    committed = [time.perf_counter()]
    with TraceWriter(folder / "timed", described) as writer:
        for index, batch in enumerate(batches(2 * repeats + 1, seed=1)):
            token_ids = torch.tensor([window.token_ids for window in batch])

            def plain(token_ids: torch.Tensor = token_ids) -> None:
                with torch.inference_mode():
                    model(
                        input_ids=token_ids,
                        attention_mask=torch.ones_like(token_ids),
                        use_cache=False,
                        logits_to_keep=1,
                    )

            def traced(
                batch: list[Window] = batch,
                index: int = index,
            ) -> None:
                documents = [Document(next(sequence), w.name, 0) for w in batch]
                with engine:
                    block = engine.run(batch, [d.sequence for d in documents], index)
                writer.append(block, documents)
                if time.perf_counter() - committed[-1] >= COMMIT_SECONDS:
                    writer.commit(writer.metadata.domains[0])
                    committed.append(time.perf_counter())

            outside, inside = (plain, traced) if index % 2 else (traced, plain)
            times = {outside: seconds(outside), inside: seconds(inside) + seconds(inside)}
            times[outside] += seconds(outside)
            ratios.append(times[traced] / times[plain])
    return [math.sqrt(a * b) for a, b in zip(ratios[1::2], ratios[2::2], strict=True)]


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def bytes_against_entropy(trace: Trace) -> dict[str, float]:
    """Bytes per assignment of the parts, router weights left out, over the ids' entropy.

    The entropy is that of each layer's distribution of ids: what a code for single ids can reach.
    """
    bits = 0.0
    num_assignments = 0
    for layer in trace.shape.moe_layers:
        ids = np.bincount(trace.routing(layer).experts.ravel())
        share = ids[ids > 0] / ids.sum()
        bits += float(-(share * np.log2(share)).sum() * ids.sum())
        num_assignments += int(ids.sum())
    sizes: Counter[str] = Counter()
    for part in trace.metadata.parts:
        path = trace.path / part.path
        sizes["file"] += path.stat().st_size
        file = pq.ParquetFile(path).metadata
        for group in range(file.num_row_groups):
            for index in range(file.num_columns):
                column = file.row_group(group).column(index)
                sizes[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    without_weights = sizes["file"] - sizes["weights"]
    return {
        "entropy_bits_per_assignment": bits / num_assignments,
        "bytes_per_assignment": without_weights / num_assignments,
        "ratio_all_columns": without_weights * 8 / bits,
        "ratio_experts_column": sizes["experts"] * 8 / bits,
    }


def measure_size(model: Qwen3MoeForCausalLM, count: int, folder: Path) -> dict[str, float]:
    """Bytes on disk without weights, for `count` batches in one part."""
    described = metadata(weights=False)
    with (
        TraceWriter(folder / "sized", described) as writer,
        Engine(model, described.capture, described.shape) as engine,
    ):
        for index, batch in enumerate(batches(count, seed=2)):
            documents = [Document(w.document, w.name, 0) for w in batch]
            writer.append(engine.run(batch, [d.sequence for d in documents], index), documents)
        tokens = count * BATCH_SIZE * SEQUENCE_LENGTH
        writer.commit(replace(writer.metadata.domains[0], tokens=(tokens, 0)))
    return bytes_against_entropy(open_trace(folder / "sized"))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--trace", type=Path, action="append", help="measure the size of this trace, too"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    model = make_model(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        ratios = measure_time(model, arguments.repeats, Path(folder))
        sizes = {"this model": measure_size(model, 10, Path(folder))}
    for path in arguments.trace or ():
        sizes[path.name] = bytes_against_entropy(open_trace(path))
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "tokens_per_forward": BATCH_SIZE * SEQUENCE_LENGTH,
        "time_ratio_median": statistics.median(ratios),
        "time_ratio_interval": [float(low), float(high)],
        "rounds": len(ratios),
        "size_without_weights": sizes,
    }
    table = Table(title="tracing against the plain forward, interleaved")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row("time, traced / plain (median)", f"{statistics.median(ratios):.3f}")
    table.add_row("  95 % interval of the median", f"{low:.3f} to {high:.3f}")
    for name, size in sizes.items():
        table.add_row(f"{name}: bytes per assignment", f"{size['bytes_per_assignment']:.3f}")
        entropy = size["entropy_bits_per_assignment"] / 8
        table.add_row("  entropy of the ids, bytes", f"{entropy:.3f}")
        table.add_row("  ratio, all columns but weights", f"{size['ratio_all_columns']:.3f}")
        table.add_row("  ratio, experts column alone", f"{size['ratio_experts_column']:.3f}")
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
