"""How far the kernels' arithmetic is from transformers' on the bundled model.

    python benchmarks/divergence.py [--tokens 512] [--dense-format q8_0] [--output FILE.json]

Both run in float32 outside the experts, ours with linear layers there in `--dense-format`.
`weights`: against the unmodified model with the experts' own dequantised weights, so that of the
experts only the rounding of activations is seen. `format`: against the model with its weights as
stored, so that the format is seen, too. Mean Kullback-Leibler divergence of the next token's
distribution in nats, and how often the likeliest token is the same, over one text per domain.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from moeprof.checkpoint import load_tokenizer, read_checkpoint
from moeprof.demo import domains, model_path, text_path
from moeprof.runtime.loader import load_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from placing import make_tiers
from test_run_formats import quantised_reference
from transformers import AutoModelForCausalLM


def distances(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Mean divergence of `ours` from `theirs`, [T, V] logits, and share of equal choices."""
    found, expected = (logits.double().log_softmax(-1) for logits in (ours, theirs))
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    agreement = (found.argmax(-1) == expected.argmax(-1)).double().mean()
    return float(divergence), float(agreement)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--dense-format", default="stored")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(model_path())
    tokenizer = load_tokenizer(model_path())
    texts = [min((text_path() / name).glob("*.txt")).read_text() for name in domains()]
    ids = [
        torch.tensor([tokenizer(text, verbose=False)["input_ids"][: arguments.tokens]])
        for text in texts
    ]
    whole = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    rows = []
    for weight_format in ("bf16", "q8_0", "q4_0"):
        loaded = load_split(
            checkpoint,
            make_tiers(checkpoint.shape),
            device="cpu",
            dtype="float32",
            weight_format=weight_format,
            dense_format=arguments.dense_format,
        )
        rounded = quantised_reference(model_path(), weight_format)
        row: dict[str, object] = {"format": weight_format, "tokens": sum(t.numel() for t in ids)}
        with torch.inference_mode():
            ours = torch.cat([loaded.model(one).logits[0] for one in ids])
            for name, model in (("weights", rounded), ("format", whole)):
                theirs = torch.cat([model(one).logits[0] for one in ids])
                row[f"{name}_kl"], row[f"{name}_top1"] = distances(ours, theirs)
        rows.append(row)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.2e}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
