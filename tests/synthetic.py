"""Traces whose truth is known: even, skewed, sticky, linked, drifting or disjoint routing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from builders import make_metadata, make_shape

from moeprof.model_shape import ModelShape
from moeprof.trace import Trace, schema
from moeprof.trace.writer import Document, TokenBlock, TraceWriter


@dataclass(frozen=True, slots=True)
class Routing:
    """How tokens choose experts; the defaults are even routing, every token independent.

    A token's experts have exactly the inclusion probabilities of `inclusion`, in every document
    alike unless `spread`, `drift` or `fade` says otherwise.

    Attributes:
        exponent: of Zipf's law over the experts of a layer, 0 for even; which expert is how busy
            is shuffled in each layer, alike in every domain of the same `order`.
        experts: the experts in use, as a range of ids; None for all.
        spread: standard deviation, in logarithms, of each document's own popularities around
            the common ones.
        keep: chance that a token keeps the experts of the token before it in its document and
            phase, in a layer.
        link: chance that the experts of a layer are those of the layer before under a fixed
            one-to-one map of experts (ranks of popularity are kept).
        drift: how far the busiest and the idlest experts have changed places in the last
            document of the domain, from 0 to 1, linearly from the first.
        fade: the same along the tokens of a document.
        order: seed of the shuffle that says which expert is how busy.
    """

    exponent: float = 0.0
    experts: range | None = None
    spread: float = 0.0
    keep: float = 0.0
    link: float = 0.0
    drift: float = 0.0
    fade: float = 0.0
    order: int = 0

    def busiest(self, shape: ModelShape) -> np.ndarray:
        """[L, E] int, expert ids of each layer from the busiest on; unused experts last."""
        rng = np.random.default_rng(self.order)
        used = np.arange(shape.num_experts) if self.experts is None else np.array(self.experts)
        rest = np.setdiff1d(np.arange(shape.num_experts), used)
        return np.stack(
            [np.concatenate([rng.permutation(used), rest]) for _ in range(shape.num_moe_layers)]
        )

    def inclusion(self, shape: ModelShape) -> np.ndarray:
        """[E] float, chance that a token chooses the expert of each rank of `busiest`."""
        num_used = shape.num_experts if self.experts is None else len(self.experts)
        weight = np.zeros(shape.num_experts)
        weight[:num_used] = np.arange(1, num_used + 1) ** -self.exponent
        return inclusion(weight, shape.top_k)

    def expected(self, shape: ModelShape) -> np.ndarray:
        """[L, E] float, chance that a token chooses each expert, without drift and fade."""
        made = np.empty((shape.num_moe_layers, shape.num_experts))
        np.put_along_axis(made, self.busiest(shape), self.inclusion(shape)[None], axis=1)
        return made


def inclusion(weight: np.ndarray, top_k: int) -> np.ndarray:
    """Chances in proportion to `weight` [..., E] that add up to `top_k`, none above one."""
    certain = np.zeros(weight.shape, bool)
    while True:
        free = np.where(certain, 0.0, weight)
        left = top_k - certain.sum(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore"):  # 0 / 0 where every used expert is certain
            share = np.nan_to_num(free / free.sum(axis=-1, keepdims=True))
        chance = np.where(certain, 1.0, left * share)
        if np.all(chance <= 1.0):
            return chance
        certain |= chance > 1.0


def draw(chance: np.ndarray, top_k: int, rng: np.random.Generator) -> np.ndarray:
    """[..., K] int: `top_k` distinct experts with exactly the inclusion chances [..., E].

    Systematic sampling of randomly ordered units (Goodman & Kish 1950, JASA 45(251)).
    """
    order = rng.random(chance.shape).argsort(axis=-1)
    ends = np.take_along_axis(chance, order, axis=-1).cumsum(axis=-1)
    ends[..., -1] = top_k  # not a rounding error less
    steps = np.floor(ends - rng.random(chance.shape[:-1])[..., None])
    taken = np.diff(steps, axis=-1, prepend=-1.0) > 0
    places = np.nonzero(taken)[-1].reshape(*chance.shape[:-1], top_k)
    return np.take_along_axis(order, places, axis=-1)


def route(
    routing: Routing,
    shape: ModelShape,
    num_tokens: tuple[int, int],
    age: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """[L, T, K] uint16, experts of the prefill and decode tokens of one document.

    `age` is the document's place in its domain, from 0 to 1.
    """
    total = sum(num_tokens)
    place = np.arange(total) / max(total - 1, 1)
    weight = np.log(np.maximum(routing.inclusion(shape), 1e-300))
    weight = weight + routing.spread * rng.standard_normal((shape.num_moe_layers, len(weight)))
    start = np.exp(weight)[:, None]  # [L, 1, E] by rank
    swapped = 1 - (1 - routing.drift * age) * (1 - routing.fade * place)[None, :, None]
    num_used = shape.num_experts if routing.experts is None else len(routing.experts)
    other = np.zeros_like(start)
    other[..., :num_used] = start[..., :num_used][..., ::-1]
    moving = (1 - swapped) * start + swapped * other
    ranks = draw(inclusion(moving, shape.top_k), shape.top_k, rng)  # [L, T, K]
    kept = rng.random(ranks.shape[:2]) < routing.keep
    kept[:, [0, min(num_tokens[0], total - 1)]] = False
    origin = np.maximum.accumulate(np.where(kept, 0, np.arange(total)), axis=1)
    ranks = np.take_along_axis(ranks, origin[..., None], axis=1)
    linked = rng.random(ranks.shape[:2]) < routing.link
    for row in range(1, len(ranks)):
        ranks[row, linked[row]] = ranks[row - 1, linked[row]]
    experts = np.take_along_axis(routing.busiest(shape)[:, None, :], ranks, axis=2)
    return experts.astype(np.uint16)


def make_trace(
    path: Path,
    routing: Routing | Mapping[str, Routing] | None = None,
    documents: int = 8,
    tokens: tuple[int, int] = (48, 32),
    domains: tuple[str, ...] = ("text",),
    shape: ModelShape | None = None,
    seed: int = 0,
    **capture: object,
) -> Trace:
    """A finished trace, one part per domain.

    Args:
        path: the trace directory.
        routing: of every domain, or of each by name; even if None.
        documents: in each domain.
        tokens: prefill and decode tokens of every document.
        domains: names.
        shape: the model's numbers; two layers of four experts, top-2, if None.
        seed: of the tokens.
        **capture: settings that differ from those of `builders.make_capture`.
    """
    shape = shape or make_shape()
    routing = routing or Routing()
    of = routing if isinstance(routing, Mapping) else dict.fromkeys(domains, routing)
    settings = {"sequence_length": 4096, "generate": tokens[1], "prompt_tokens": max(tokens[0], 1)}
    metadata = make_metadata(shape, domains, **(settings | capture))
    rng = np.random.default_rng(seed)
    with TraceWriter(path, metadata) as writer:
        for index, name in enumerate(domains):
            numbers = np.arange(documents, dtype=np.uint32) + index * documents
            ages = np.linspace(0, 1, documents) if documents > 1 else [0.0]
            drawn = [route(of[name], shape, tokens, age, rng) for age in ages]
            experts = np.concatenate(drawn, axis=1)
            named = [
                Document(int(n), f"{name}/{i}", i % schema.NUM_DOCUMENT_GROUPS)
                for i, n in enumerate(numbers)
            ]
            writer.append(_block(shape, numbers, tokens, experts, rng), named)
            entry = next(d for d in writer.metadata.domains if d.name == name)
            done = {"windows": documents, "documents": documents, "complete": True}
            total = (documents * tokens[0], documents * tokens[1])
            writer.commit(replace(entry, tokens=total, digest="0" * 64, **done))
        return writer.finish()


def _block(
    shape: ModelShape,
    numbers: np.ndarray,
    tokens: tuple[int, int],
    experts: np.ndarray,
    rng: np.random.Generator,
) -> TokenBlock:
    total = sum(tokens)
    return TokenBlock(
        sequence=np.repeat(numbers, total),
        position=np.tile(np.arange(total, dtype=np.uint32), len(numbers)),
        token_id=rng.integers(0, shape.vocab_size, total * len(numbers)).astype(np.uint32),
        phase=np.tile(np.repeat([0, 1], tokens), len(numbers)).astype(np.uint8),
        experts=experts,
        weights=np.full(experts.shape, 1 / shape.top_k, np.float16),
    )
