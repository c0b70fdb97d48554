"""A long trace for benchmarks: skewed, sticky routing of the Qwen3-30B-A3B shape.

Six layers are drawn; the others are these with experts renamed and tokens shifted, which keeps
the statistics and saves time.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from moeprof.model_shape import ModelShape
from moeprof.trace import Trace, open_trace, schema
from moeprof.trace.writer import Document, TokenBlock, TraceWriter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from builders import make_metadata
from synthetic import Routing, route

SHAPE = ModelShape(
    model_type="qwen3_moe",
    num_layers=48,
    moe_layers=tuple(range(48)),
    num_experts=128,
    top_k=8,
    hidden_size=2048,
    vocab_size=151_936,
    expert_bytes=(3 * 768 * 2048 * 2,) * 48,
    dense_bytes=3_000_000_000,
    dtype="bfloat16",
)
DOMAINS = ("code", "prose", "chat", "math")
_DRAWN = 6
_DOCUMENT_TOKENS = 2000


def make_long_trace(
    path: Path, assignments: int, prompt_share: float = 0.75, seed: int = 0
) -> Trace:
    """A trace with at least that many assignments, made anew unless it is there already.

    Args:
        path: of the trace.
        assignments: wished for.
        prompt_share: of the tokens that are of prompts.
        seed: of what is drawn.
    """
    prompt = round(prompt_share * _DOCUMENT_TOKENS)
    tokens = prompt, _DOCUMENT_TOKENS - prompt
    per_document = _DOCUMENT_TOKENS * SHAPE.num_moe_layers * SHAPE.top_k
    documents = -(-assignments // (per_document * len(DOMAINS)))
    if (path / schema.METADATA_FILE).is_file():
        found = open_trace(path)
        if found.metadata.complete and found.metadata.domains[0].documents == documents:
            return found
    metadata = make_metadata(
        SHAPE,
        DOMAINS,
        weights=False,
        sequence_length=4096,
        prompt_tokens=tokens[0],
        generate=tokens[1],
    )
    rng = np.random.default_rng(seed)
    with TraceWriter(path, metadata) as writer:
        for index, name in enumerate(DOMAINS):
            numbers = range(index * documents, (index + 1) * documents)
            _write_domain(writer, name, numbers, tokens, rng)
        return writer.finish()


def _write_domain(
    writer: TraceWriter,
    name: str,
    numbers: range,
    tokens: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """Documents of one domain, each with so many prefill and decode tokens."""
    drawn = replace(SHAPE, moe_layers=tuple(range(_DRAWN)), expert_bytes=SHAPE.expert_bytes[:6])
    routing = Routing(exponent=0.6, keep=0.3, spread=0.4, order=numbers.start)
    renamed = [rng.permutation(SHAPE.num_experts).astype(np.uint16) for _ in SHAPE.moe_layers]
    for n, number in enumerate(numbers):
        experts = route(routing, drawn, tokens, 0.0, rng)
        total = sum(tokens)
        block = TokenBlock(
            sequence=np.full(total, number, np.uint32),
            position=np.arange(total, dtype=np.uint32),
            token_id=rng.integers(0, SHAPE.vocab_size, total).astype(np.uint32),
            phase=np.repeat([0, 1], tokens).astype(np.uint8),
            experts=np.stack(
                [
                    names[np.roll(experts[row % _DRAWN], row // _DRAWN, axis=0)]
                    for row, names in enumerate(renamed)
                ]
            ),
            weights=None,
        )
        group = n % schema.NUM_DOCUMENT_GROUPS
        writer.append(block, [Document(number, f"{name}/{n}", group)])
        if n == len(numbers) - 1 or writer.buffered_bytes > 64 * 2**20:
            entry = next(d for d in writer.metadata.domains if d.name == name)
            done = {"windows": n + 1, "documents": n + 1, "complete": n == len(numbers) - 1}
            so_far = ((n + 1) * tokens[0], (n + 1) * tokens[1])
            writer.commit(replace(entry, tokens=so_far, digest="0" * 64, **done))
