"""Small things to test on, with the interesting value visible in the call."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moeprof.model_shape import ModelShape
from moeprof.trace import Trace, schema
from moeprof.trace.counts import CellCounts
from moeprof.trace.writer import Document, TokenBlock, TraceWriter


def make_shape(
    moe_layers: tuple[int, ...] = (1, 2),
    num_experts: int = 4,
    top_k: int = 2,
    expert_bytes: int = 1000,
    dense_bytes: int = 5000,
) -> ModelShape:
    return ModelShape(
        model_type="qwen3_moe",
        num_layers=max(moe_layers) + 1,
        moe_layers=moe_layers,
        num_experts=num_experts,
        top_k=top_k,
        hidden_size=8,
        vocab_size=100,
        expert_bytes=(expert_bytes,) * len(moe_layers),
        dense_bytes=dense_bytes,
        dtype="bfloat16",
    )


def make_capture(**changes: object) -> schema.CaptureSettings:
    settings: dict[str, object] = {
        "sequence_length": 64,
        "batch_size": 2,
        "max_tokens": None,
        "generate": 0,
        "prompt_tokens": 16,
        "temperature": 0.0,
        "seed": 0,
        "weights": True,
        "dtype": "float32",
        "device": "cpu",
        "text_column": "text",
    }
    return schema.CaptureSettings(**(settings | changes))


def make_metadata(
    shape: ModelShape, domains: tuple[str, ...] = ("text",), **capture: object
) -> schema.TraceMetadata:
    return schema.TraceMetadata(
        model=schema.ModelIdentity("model", "fingerprint", "tokenizer"),
        shape=shape,
        capture=make_capture(**capture),
        domains=tuple(schema.Domain(name, (f"{name}.txt",)) for name in domains),
        machine={"processor": "test"},
    )


def make_block(
    shape: ModelShape,
    sequence: list[int],
    decode: int = 0,
    seed: int = 0,
    probabilities: np.ndarray | None = None,
) -> TokenBlock:
    """One token per entry of `sequence`; of each sequence the last `decode` tokens are decoded.

    Experts are drawn without replacement, evenly or by `probabilities` [L, E].
    """
    rng = np.random.default_rng(seed)
    size = (shape.num_moe_layers, len(sequence), shape.num_experts)
    scores = rng.gumbel(size=size)
    if probabilities is not None:
        scores += np.log(probabilities)[:, None, :]
    experts = np.argsort(-scores, axis=2)[:, :, : shape.top_k].astype(np.uint16)
    weights = rng.random((*size[:2], shape.top_k)).astype(np.float16)
    ids = np.asarray(sequence, np.uint32)
    position = np.zeros(len(ids), np.uint32)
    phase = np.zeros(len(ids), np.uint8)
    for one in np.unique(ids):
        rows = np.flatnonzero(ids == one)
        position[rows] = np.arange(len(rows))
        phase[rows[len(rows) - decode :]] = 1
    token_id = rng.integers(0, shape.vocab_size, len(ids)).astype(np.uint32)
    return TokenBlock(ids, position, token_id, phase, experts, weights)


def write_block(writer: TraceWriter, domain: str, block: TokenBlock, complete: bool = True) -> None:
    """Append and commit one block; document `n` of the trace is in group `n % 64`."""
    documents = [
        Document(int(s), f"{domain}/{s}", int(s) % schema.NUM_DOCUMENT_GROUPS)
        for s in np.unique(block.sequence)
    ]
    writer.append(block, documents)
    entry = next(d for d in writer.metadata.domains if d.name == domain)
    decode = int(block.phase.sum())
    writer.commit(
        schema.Domain(
            name=domain,
            sources=entry.sources,
            windows=entry.windows + len(documents),
            documents=entry.documents + len(documents),
            tokens=(entry.tokens[0] + block.num_tokens - decode, entry.tokens[1] + decode),
            digest="0" * 64,
            complete=complete,
        )
    )


def make_trace(
    path: Path,
    blocks: Mapping[str, TokenBlock],
    shape: ModelShape | None = None,
    **capture: object,
) -> Trace:
    """A finished trace with one part per domain."""
    metadata = make_metadata(shape or make_shape(), tuple(blocks), **capture)
    with TraceWriter(path, metadata) as writer:
        for domain, block in blocks.items():
            write_block(writer, domain, block)
        return writer.finish()


def make_counts(
    prefill: Mapping[str, object],
    decode: Mapping[str, object] | None = None,
    **shape: object,
) -> CellCounts:
    """Counts with one document group per document.

    `prefill` and `decode` hold for each domain an array [documents, L, E] of assignments; without
    `decode` the trace has none.
    """
    arrays = {name: np.asarray(counts, np.int64) for name, counts in prefill.items()}
    num_layers, num_experts = next(iter(arrays.values())).shape[1:]
    both = []
    for name, counts in arrays.items():
        other = np.zeros_like(counts) if decode is None else np.asarray(decode[name], np.int64)
        both.append(np.stack([counts, other], axis=1))
    layers = tuple(range(1, num_layers + 1))
    made = make_shape(**({"moe_layers": layers, "num_experts": num_experts, "top_k": 1} | shape))
    group_domain = np.repeat(np.arange(len(arrays)), [len(counts) for counts in both])
    return CellCounts(made, tuple(arrays), group_domain, np.concatenate(both))
