"""Trains the bundled model from public packages: `python -m moeprof.demo.train --output DIR`.

Two CPU cores take well under two hours. `DIR` receives `model/` and `texts/`; what was trained on,
the losses reached and the skew measured stand in `model/README.md`. Nothing here touches the
routing: what skew the experts show is what training gave.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from moeprof.demo.card import TrainingRun, write_card
from moeprof.demo.corpus import Document, gather, write_texts
from moeprof.demo.sources import DOMAINS

log = logging.getLogger("moeprof.demo.train")

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 4096
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2's split (its tokenizer class in transformers applies it too), so both load alike
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the trained weights, besides the texts."""

    num_tokens: int = 20_000_000
    batch_tokens: int = 8192
    sequence_tokens: int = 256
    long_sequence_tokens: int = 1024
    long_share: float = 0.15
    learning_rate: float = 3e-3
    final_share: float = 0.05
    weight_decay: float = 0.1
    warmup_steps: int = 150
    clip_norm: float = 1.0
    num_workers: int = 2
    seed: int = 20

    @property
    def num_steps(self) -> int:
        """Optimiser steps in all."""
        return self.num_tokens // self.batch_tokens

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to `final_share` of the peak."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        progress = max(0, step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * warmup * (self.final_share + (1 - self.final_share) * cosine)

    def sequence_tokens_at(self, step: int) -> int:
        """Short sequences first, long ones for the last `long_share` of the steps."""
        is_long = step >= self.num_steps * (1 - self.long_share)
        return self.long_sequence_tokens if is_long else self.sequence_tokens


def train_tokenizer(training: dict[str, list[Document]], seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `VOCAB_SIZE` entries, learned from as many characters of each domain."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(training, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=SPECIAL_TOKENS[1:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_texts(training: dict[str, list[Document]], seed: int) -> Iterator[str]:
    for domain in DOMAINS:
        left = 2_000_000
        for index in np.random.default_rng(seed).permutation(len(training[domain])):
            text = training[domain][index].text[:left]
            yield text
            left -= len(text)


class Batches:
    """Windows over each domain's tokens, every domain as often, each epoch in a new order."""

    def __init__(self, tokens: dict[str, NDArray[np.uint16]], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._tokens = tokens
        self._starts: dict[str, list[int]] = {domain: [] for domain in DOMAINS}
        self._length = 0
        self._turn = 0

    @property
    def num_tokens(self) -> dict[str, int]:
        """Distinct training tokens per domain."""
        return {domain: len(tokens) for domain, tokens in self._tokens.items()}

    def next(self, num_rows: int, length: int) -> torch.Tensor:
        """[num_rows, length] int64; the domains take turns from row to row."""
        if length != self._length:
            self._length = length
            self._starts = {domain: [] for domain in DOMAINS}
        rows = []
        for _ in range(num_rows):
            rows.append(self._window(DOMAINS[self._turn]))
            self._turn = (self._turn + 1) % len(DOMAINS)
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _window(self, domain: str) -> np.ndarray:
        tokens, starts = self._tokens[domain], self._starts[domain]
        if not starts:
            first = int(self._rng.integers(self._length))
            every = np.arange(first, len(tokens) - self._length, self._length)
            starts += self._rng.permutation(every).tolist()
        start = starts.pop()
        return tokens[start : start + self._length]


def encode(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast, seed: int
) -> NDArray[np.uint16]:
    """The tokens of all documents in a random order, each document ended by its end token."""
    order = np.random.default_rng(seed).permutation(len(documents))
    texts = [documents[index].text for index in order]
    encoded = tokenizer(texts, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return np.concatenate([np.array([*ids, end], dtype=np.uint16) for ids in encoded])


def make_model(seed: int) -> Qwen3MoeForCausalLM:
    """The untrained model: 6 layers of 32 experts, 4 of them per token, 5.6 M parameters."""
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=0.001,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("grouped_mm")
    return model


def save(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model as bf16 safetensors, with its tokenizer, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = make_model(seed=0)
    copy.load_state_dict(model.state_dict())
    copy.config.output_router_logits = False
    copy.generation_config.do_sample = True
    copy.generation_config.temperature = 0.8
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _optimizer(model: Qwen3MoeForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def train(
    model: Qwen3MoeForCausalLM, batches: Batches, recipe: Recipe
) -> Iterator[dict[str, float]]:
    """Train in place; yields after every step its number, loss, tokens seen and seconds taken.

    On a CPU each worker takes its share of the batch on one thread: kernels this small gain
    nothing from a second thread, and stall when another process holds the second core.
    """
    torch.set_num_threads(1)
    num_workers = recipe.num_workers if model.device.type == "cpu" else 1
    optimizer = _optimizer(model, recipe)
    parameters = list(model.parameters())
    began = time.perf_counter()
    with ThreadPoolExecutor(num_workers) as pool:
        for step in range(recipe.num_steps):
            length = recipe.sequence_tokens_at(step)
            tokens = batches.next(recipe.batch_tokens // length, length).to(model.device)
            shares = tokens.chunk(num_workers)
            results = list(pool.map(partial(_loss_and_gradients, model, parameters), shares))
            for parameter, *gradients in zip(parameters, *(r[1] for r in results), strict=True):
                parameter.grad = torch.stack(gradients).mean(dim=0)
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            optimizer.step()
            loss, auxiliary = np.mean([r[0] for r in results], axis=0)
            yield {
                "step": step + 1,
                "tokens": (step + 1) * recipe.batch_tokens,
                "loss": round(float(loss), 4),
                "auxiliary_loss": round(float(auxiliary), 4),
                "seconds": round(time.perf_counter() - began, 1),
            }


def _loss_and_gradients(
    model: Qwen3MoeForCausalLM, parameters: list[torch.nn.Parameter], tokens: torch.Tensor
) -> tuple[tuple[float, float], tuple[torch.Tensor, ...]]:
    """Cross-entropy and auxiliary loss, and the gradients of both together."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        output = model(input_ids=tokens, labels=tokens, use_cache=False)
    gradients = torch.autograd.grad(output.loss, parameters)
    total, auxiliary = float(output.loss.detach()), float(output.aux_loss.detach())
    return (total - model.config.router_aux_loss_coef * auxiliary, auxiliary), gradients


def prepare(output: Path, work: Path, seed: int) -> tuple[PreTrainedTokenizerFast, Path]:
    """Gather the packages, write the bundled texts and encode the rest, unless done before.

    Returns:
        The tokenizer, and the folder with `DOMAIN.npy` (uint16 token ids) for each domain.
    """
    prepared = work / "prepared"
    if not (prepared / "done").is_file() or not (output / "texts").is_dir():
        corpus = gather(work.resolve())
        write_texts(corpus.bundled, output / "texts", work.resolve())
        tokenizer = train_tokenizer(corpus.training, seed)
        tokenizer.save_pretrained(prepared)
        for domain in DOMAINS:
            tokens = encode(corpus.training[domain], tokenizer, seed)
            np.save(prepared / f"{domain}.npy", tokens)
        (prepared / "done").touch()
    return PreTrainedTokenizerFast.from_pretrained(prepared), prepared


def main(
    output: Annotated[Path, typer.Option(help="Folder that receives model/ and texts/.")],
    work: Annotated[Path, typer.Option(help="Folder for downloads.")] = Path("demo-work"),
    tokens: Annotated[int, typer.Option(help="Tokens to train on.")] = Recipe().num_tokens,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop early, to compare machines.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Rebuild the bundled texts and the bundled model.

    Example:
        python -m moeprof.demo.train --output demo-out --work demo-work
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe(num_tokens=tokens)
    if recipe.num_steps == 0:
        raise typer.BadParameter(f"--tokens: a step alone takes {recipe.batch_tokens}")
    tokenizer, prepared = prepare(output, work, recipe.seed)
    batches = Batches({d: np.load(prepared / f"{d}.npy") for d in DOMAINS}, recipe.seed)
    log.info("training tokens per domain: %s", batches.num_tokens)
    model = make_model(recipe.seed).to(device)
    history: list[dict[str, float]] = []
    last = min(recipe.num_steps, steps or recipe.num_steps)
    for row in islice(train(model, batches, recipe), last):
        if row["step"] % 20 == 0 or row["step"] == last:
            history.append(row)
            log.info("%s", json.dumps(row))
        if row["step"] % 250 == 0:
            save(model, tokenizer, output / "model")
    save(model, tokenizer, output / "model")
    run = TrainingRun(asdict(recipe), batches.num_tokens, history)
    (output / "training.json").write_text(json.dumps(asdict(run)), encoding="utf-8")
    write_card(output / "model", output / "texts", run)


if __name__ == "__main__":
    typer.run(main)
