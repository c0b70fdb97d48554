"""Small replays for tests of the native core: batches as lists, and the best that can be done."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from builders import make_trace
from hypothesis import strategies as st

from moeprof.model_shape import ModelShape
from moeprof.native import NO_EXPERT
from moeprof.trace import Trace
from moeprof.trace.writer import TokenBlock

NO_RESTARTS = np.empty(0, np.int64)


def lookups_of(batches: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """`batch_start` and `cells` of some batches."""
    start = np.cumsum([0, *[len(batch) for batch in batches]]).astype(np.int64)
    return start, np.array([cell for batch in batches for cell in batch], np.uint32)


def batches_of(num_rows: int, num_experts: int, max_steps: int) -> st.SearchStrategy:
    """Steps of one batch per row; a batch may be empty."""
    batch = st.lists(st.integers(0, num_experts - 1), max_size=num_experts, unique=True)
    step = st.tuples(*[batch] * num_rows).map(
        lambda rows: [
            [row * num_experts + expert for expert in experts] for row, experts in enumerate(rows)
        ]
    )
    steps = st.lists(step, min_size=1, max_size=max_steps)
    return steps.map(lambda all_steps: [batch for step in all_steps for batch in step])


def most_hits(
    batches: Sequence[Sequence[int]],
    sizes: Sequence[int],
    budget: int,
    scored: Sequence[bool],
    keeps_batch: bool,
) -> int:
    """The most lookups that can hit, found by trying everything.

    After each batch any of the entries and of the batch's cells that fit the budget may be kept;
    with `keeps_batch` all of the batch's cells must be. With `keeps_batch` nothing is there to
    begin with, otherwise anything that fits may be.
    """
    best = {frozenset(): 0}
    if not keeps_batch:
        cells = _subsets(frozenset(range(len(sizes))))
        best = {one: 0 for one in cells if sum(sizes[cell] for cell in one) <= budget}
    for batch, counts in zip(batches, scored, strict=True):
        after: dict[frozenset[int], int] = {}
        for held, hits in best.items():
            found = hits + (len(held & set(batch)) if counts else 0)
            for kept in _subsets(held | set(batch)):
                if sum(sizes[cell] for cell in kept) > budget:
                    continue
                if keeps_batch and not kept >= set(batch):
                    continue
                after[kept] = max(after.get(kept, 0), found)
        best = after
    return max(best.values())


def _subsets(cells: frozenset[int]) -> list[frozenset[int]]:
    return [
        frozenset(chosen) for size in range(len(cells) + 1) for chosen in combinations(cells, size)
    ]


def make_routed(
    path: Path,
    shape: ModelShape,
    documents: Mapping[str, Sequence[Sequence[tuple[str, Sequence[Sequence[int]]]]]],
    **capture: object,
) -> Trace:
    """A trace with the routing that is given.

    A document is a list of tokens, a token its phase (`p` or `d`) and for each layer its experts;
    slots that are not given stay empty.
    """
    blocks = {}
    number = 0
    for domain, texts in documents.items():
        tokens = [
            (number + index, position, phase, rows)
            for index, text in enumerate(texts)
            for position, (phase, rows) in enumerate(text)
        ]
        number += len(texts)
        experts = np.full((shape.num_moe_layers, len(tokens), shape.top_k), NO_EXPERT, np.uint16)
        for place, (_, _, _, rows) in enumerate(tokens):
            for row, chosen in enumerate(rows):
                experts[row, place, : len(chosen)] = chosen
        blocks[domain] = TokenBlock(
            sequence=np.array([token[0] for token in tokens], np.uint32),
            position=np.array([token[1] for token in tokens], np.uint32),
            token_id=np.zeros(len(tokens), np.uint32),
            phase=np.array([token[2] == "d" for token in tokens], np.uint8),
            experts=experts,
            weights=None,
        )
    return make_trace(path, blocks, shape, weights=False, **capture)
