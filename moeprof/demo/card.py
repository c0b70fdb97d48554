"""Measures the saved model on the bundled texts and writes its model card.

`python -m moeprof.demo.card --output DIR` writes it anew for what `moeprof.demo.train` left there.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen3MoeForCausalLM,
)

from moeprof.demo.sources import SOURCES

_WINDOW_TOKENS = 1024
_HOT_SHARE = 0.2  # of all cells; the share that the card calls hot
_PROMPTS = {
    "python": "def",
    "c": "static int",
    "javascript": "const",
    "english": "The",
    "french": "Pour",
    "german": "Die",
}


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What the card tells of training; `machine` is a sentence on where it ran and how fast.

    `num_tokens` are those of one pass over each domain, `history` the rows that `train` yields.
    """

    recipe: dict[str, float]
    num_tokens: dict[str, int]
    history: list[dict[str, float]]
    machine: str = ""

    def __post_init__(self) -> None:
        """Check that there is a curve to tell of.

        Raises:
            ValueError: no step was logged.
        """
        if not self.history:
            raise ValueError("history must have at least one row, got none: train for more steps")


def read_texts(texts: Path, num_documents: int | None = None) -> dict[str, list[str]]:
    """The first documents (None: all) of each domain's folder."""
    folders = sorted(path for path in texts.iterdir() if path.is_dir() and path.name.islower())
    return {
        folder.name: [
            path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())[:num_documents]
        ]
        for folder in folders
    }


@torch.no_grad()
def held_out_loss(
    model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerBase, documents: list[str]
) -> tuple[float, int]:
    """Mean cross-entropy in nats per token over windows of 1,024 tokens, and the tokens scored."""
    total, count = 0.0, 0
    for text in documents:
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
        for window in ids.split(_WINDOW_TOKENS, dim=1):
            targets = window[0, 1:]
            if len(targets) == 0:
                continue
            logits = model(input_ids=window, use_cache=False).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            total += float(loss)
            count += len(targets)
    return total / count, count


@contextmanager
def counted_assignments(model: Qwen3MoeForCausalLM) -> Iterator[NDArray[np.int64]]:
    """Counts [num_layers, num_experts] int64 of the assignments made inside the `with` block."""
    config = model.config
    counts = np.zeros((config.num_hidden_layers, config.num_experts), dtype=np.int64)

    def hook(layer: int) -> object:
        def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            chosen = args[1].flatten()
            counts[layer] += torch.bincount(chosen, minlength=config.num_experts).numpy()

        return count

    handles = [
        layer.mlp.experts.register_forward_pre_hook(hook(index))
        for index, layer in enumerate(model.model.layers)
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def hot_cells(counts: NDArray[np.int64]) -> set[int]:
    """The busiest fifth of all cells, as flat indices."""
    size = int(_HOT_SHARE * counts.size)
    return set(np.argsort(-counts.ravel(), kind="stable")[:size].tolist())


@torch.no_grad()
def sample(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A continuation of 110 tokens at temperature 0.8, seed fixed."""
    torch.manual_seed(1)
    ids = tokenizer(prompt, return_tensors="pt")
    output = model.generate(
        **ids, max_new_tokens=110, do_sample=True, temperature=0.8, top_k=0, pad_token_id=0
    )
    text: str = tokenizer.decode(output[0], skip_special_tokens=True)
    return text


def write_card(folder: Path, texts: Path, run: TrainingRun) -> None:
    """Measure the model saved in `folder` and write `README.md` beside it."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    losses: dict[str, tuple[float, int]] = {}
    counts: dict[str, NDArray[np.int64]] = {}
    for domain, documents in read_texts(texts).items():
        with counted_assignments(model) as counted:
            losses[domain] = held_out_loss(model, tokenizer, documents)
        counts[domain] = counted
    samples = {domain: sample(model, tokenizer, _PROMPTS[domain]) for domain in losses}
    sections = [
        _introduction(model.num_parameters(), run),
        _training(run),
        _losses(losses, read_texts(texts)),
        _skew(counts),
        _samples(samples),
        _packages(),
    ]
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _introduction(num_parameters: int, run: TrainingRun) -> str:
    return f"""# The bundled model

A small trained Mixture-of-Experts language model, for tracing routing without a download.
Qwen3-MoE architecture: 6 layers, 32 experts each, 4 per token, hidden size 128, expert width 64,
4 attention heads (2 for keys and values) of 32, a byte-level BPE vocabulary of 4,096, tied
embeddings, {num_parameters / 1e6:.2f} M parameters, stored as bf16 safetensors. It was trained on
{run.history[-1]["tokens"] / 1e6:.1f} M tokens of six domains (python, c, javascript, english,
french, german), drawn equally. It produces text that looks like its domains; it knows nothing and
follows no instructions. Its chat template only makes chat data renderable: no chat was in the
training data.

Reproduce it on two CPU cores (needs pip, npm, apt-get and dpkg; the packages are pinned):

    python -m moeprof.demo.train --output demo-out --work demo-work"""


def _training(run: TrainingRun) -> str:
    recipe, last = run.recipe, run.history[-1]
    tokens = ", ".join(f"{domain} {count / 1e6:.2f} M" for domain, count in run.num_tokens.items())
    marks = np.unique(np.linspace(0, len(run.history) - 1, 11).astype(int))
    rows = [
        f"| {row['tokens'] / 1e6:.2f} M | {row['loss']:.2f} | {row['auxiliary_loss']:.2f} |"
        for row in (run.history[mark] for mark in marks)
    ]
    return "\n".join(
        [
            "## Training",
            "",
            f"AdamW (betas 0.9, 0.95; weight decay {recipe['weight_decay']}), peak learning rate "
            f"{recipe['learning_rate']}, {recipe['warmup_steps']} warm-up steps and a cosine to "
            f"{recipe['final_share']:.0%}, gradient norm clipped at {recipe['clip_norm']}, "
            f"{recipe['batch_tokens']} tokens per step in sequences of "
            f"{recipe['sequence_tokens']}, for the last {recipe['long_share']:.0%} of "
            f"{recipe['long_sequence_tokens']}; seed {recipe['seed']}; `grouped_mm` experts, bf16 "
            "autocast, load-balancing coefficient 0.001 and nothing else that touches routing.",
            "",
            f"Tokens in one pass (some prose counts twice): {tokens}. "
            f"Wall time of the {last['tokens'] / 1e6:.1f} M tokens: {last['seconds'] / 60:.0f} "
            f"minutes. {run.machine}".rstrip(),
            "",
            "| tokens seen | training loss (nats per token) | load-balancing loss |",
            "|---|---|---|",
            *rows,
        ]
    )


def _losses(losses: dict[str, tuple[float, int]], documents: dict[str, list[str]]) -> str:
    rows = []
    for domain, (loss, count) in losses.items():
        num_bytes = sum(len(text.encode()) for text in documents[domain])
        bits = loss * count / math.log(2) / num_bytes
        rows.append(f"| {domain} | {count} | {loss:.3f} | {math.exp(loss):.1f} | {bits:.2f} |")
    return "\n".join(
        [
            "## Held-out loss",
            "",
            "On the bundled texts, none of which was in training (weights as saved, computed in "
            "float32, windows of 1,024 tokens).",
            "",
            "| domain | tokens | loss (nats per token) | perplexity | bits per byte |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _skew(counts: dict[str, NDArray[np.int64]]) -> str:
    hot = {domain: hot_cells(count) for domain, count in counts.items()}
    rows = []
    for domain, count in counts.items():
        share = count.ravel()[sorted(hot[domain])].sum() / count.sum()
        per_layer = np.sort(count, axis=1)[:, ::-1]
        coverage = (per_layer[:, :6].sum(axis=1) / per_layer.sum(axis=1)).mean()
        overlaps = " | ".join(
            "-"
            if other == domain
            else f"{len(hot[domain] & hot[other]) / len(hot[domain] | hot[other]):.2f}"
            for other in counts
        )
        rows.append(f"| {domain} | {share:.0%} | {coverage:.0%} | {overlaps} |")
    pairs = [len(a & b) / len(a | b) for a, b in combinations(hot.values(), 2)]
    size = len(next(iter(hot.values())))
    names = " | ".join(counts)
    return "\n".join(
        [
            "## Skew, as measured",
            "",
            f"Assignments on the bundled texts. *Hot* is the busiest 20 % of 192 cells ({size});"
            " the next column is the mean share of a layer's 6 busiest experts; then the Jaccard "
            f"index of two domains' hot cells ({min(pairs):.2f} to {max(pairs):.2f}).",
            "",
            f"| domain | hot cells' share | 6 of 32 per layer | {names} |",
            "|---|---|---|" + "---|" * len(counts),
            *rows,
        ]
    )


def _samples(samples: dict[str, str]) -> str:
    parts = [
        "## Samples",
        "",
        "Temperature 0.8, one seed, begun by a short prompt, not picked.",
    ]
    for domain, text in samples.items():
        parts += ["", f"**{domain}**", "", "````", text.rstrip(), "````"]
    return "\n".join(parts)


def _packages() -> str:
    lines = [
        "## What it was trained on",
        "",
        "| domain | package | version | licence |",
        "|---|---|---|---|",
    ]
    rows = [
        f"| {source.domain} | {source.package} | {source.version} | {source.licence} |"
        for source in SOURCES
    ]
    lines += list(dict.fromkeys(rows))
    lines += [
        "",
        "Holders and paths are in `moeprof/demo/sources.py`; of a package that also gave bundled "
        "texts, whole files were held out first. Licence headers, e-mail addresses in prose and "
        "listings inside prose were removed. The weights are statistics of these texts; the texts "
        "themselves are not part of the model folder. The prose sources keep their licences: a use "
        "that must stay clear of copyleft training data should retrain on other sources.",
    ]
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="Folder with model/, texts/ and training.json.")],
    machine: Annotated[str, typer.Option(help="Sentence on where it was trained.")] = "",
) -> None:
    """Measure the model in a folder once more and rewrite its card.

    Example:
        python -m moeprof.demo.card --output demo-out
    """
    saved = json.loads((output / "training.json").read_text(encoding="utf-8"))
    run = TrainingRun(saved["recipe"], saved["num_tokens"], saved["history"], machine)
    write_card(output / "model", output / "texts", run)
    typer.echo(output / "model" / "README.md")


if __name__ == "__main__":
    typer.run(main)
