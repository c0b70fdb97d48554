import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replaying import NO_RESTARTS, batches_of, lookups_of, most_hits

from moeprof.native import (
    look_up_sets,
    reference,
    replay_lookups,
    replay_optimum,
    reuse_distances,
)

ROWS, EXPERTS = 2, 3
CELLS = ROWS * EXPERTS
BATCHES = batches_of(ROWS, EXPERTS, 8)
SIZES = st.lists(st.integers(1, 4), min_size=CELLS, max_size=CELLS)
OPTIONS = [
    ("lru", {}),
    ("lru", {"max_uploads": 1}),
    ("lru", {"hysteresis": 0.5, "decay": 0.9}),
    ("lfu", {"decay": 0.9}),
    ("lfu", {"decay": 1.0}),
    ("lfu", {"decay": 0.9, "hysteresis": 0.0, "max_uploads": 2}),
    ("lfru", {"decay": 0.9, "recent_share": 0.5}),
    ("lfru", {"decay": 0.9, "recent_share": 0.5, "hysteresis": 0.3}),
    ("belady", {}),
]


def ones(batches):
    return np.ones(sum(map(len, batches)), np.uint16)


def native_hits(batches, order, sizes, budget, **options):
    start, cells = lookups_of(batches)
    unpinned, pools = np.zeros(len(sizes), np.uint8), np.array([budget], np.int64)
    uses = np.ones(len(cells), np.uint16)
    sizes = np.asarray(sizes, np.int64)
    found = replay_lookups(
        start, cells, uses, ROWS, NO_RESTARTS, order, sizes, unpinned, pools, **options
    )
    return found[1]


@pytest.mark.parametrize(("order", "options"), OPTIONS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), batches=BATCHES, sizes=SIZES)
def test_every_policy_does_what_its_definition_says(order, options, data, batches, sizes):
    start, cells = lookups_of(batches)
    uses = data.draw(st.lists(st.integers(1, 9), min_size=len(cells), max_size=len(cells)))
    pools = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=2))
    pinned = data.draw(st.lists(st.booleans(), min_size=CELLS, max_size=CELLS))
    restarts = data.draw(st.lists(st.integers(0, len(batches) - 1), unique=True).map(sorted))
    arguments = (
        start,
        cells,
        np.array(uses, np.uint16),
        ROWS,
        np.array(restarts, np.int64),
        order,
        np.array(sizes, np.int64),
        np.array(pinned, np.uint8),
        np.array(pools, np.int64),
    )
    found = replay_lookups(*arguments, **options)
    expected = reference.replay_lookups(*arguments, **options)
    for what, native, defined in zip(
        ("is_hit", "hits", "served", "uploads", "bytes"), found, expected, strict=True
    ):
        np.testing.assert_array_equal(native, defined, err_msg=what)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), batches=BATCHES)
def test_lists_of_cells_hold_what_their_definition_says(data, batches):
    start, cells = lookups_of(batches)
    uses = data.draw(st.lists(st.integers(1, 9), min_size=len(cells), max_size=len(cells)))
    member = st.lists(st.integers(0, 1), min_size=CELLS, max_size=CELLS)
    sets = data.draw(st.lists(member, min_size=1, max_size=3))
    chosen = st.integers(0, len(sets) - 1)
    set_of_batch = data.draw(st.lists(chosen, min_size=len(batches), max_size=len(batches)))
    arguments = (
        start,
        cells,
        np.array(uses, np.uint16),
        np.array(sets, np.uint8),
        np.array(set_of_batch, np.uint32),
    )
    found, expected = look_up_sets(*arguments), reference.look_up_sets(*arguments)
    for native, defined in zip(found, expected, strict=True):
        np.testing.assert_array_equal(native, defined)


@pytest.mark.parametrize("pools", [1, 2])
@pytest.mark.parametrize(("order", "options"), OPTIONS)
def test_every_policy_does_so_over_a_long_skewed_trace(order, options, pools):
    rng = np.random.default_rng(7)
    experts, steps = 12, 150
    odds = np.arange(1, experts + 1) ** -0.7
    batches = [
        (row * experts + rng.choice(experts, 3, replace=False, p=odds / odds.sum())).tolist()
        for _ in range(steps)
        for row in range(ROWS)
    ]
    start, cells = lookups_of(batches)
    sizes = rng.integers(1, 4, ROWS * experts)
    budgets = np.full(pools, int(0.45 * sizes.sum()) // pools, np.int64)
    restarts = np.array([80 * ROWS], np.int64)
    unpinned = np.zeros(ROWS * experts, np.uint8)
    arguments = (start, cells, ones(batches), ROWS, restarts, order, sizes, unpinned, budgets)
    found = replay_lookups(*arguments, **options)
    expected = reference.replay_lookups(*arguments, **options)
    assert 0 < found[1].sum() < len(cells)
    for native, defined in zip(found, expected, strict=True):
        np.testing.assert_array_equal(native, defined)


@settings(max_examples=60, deadline=None)
@given(batches=batches_of(ROWS, EXPERTS, 4), capacity=st.integers(EXPERTS, CELLS))
def test_belady_with_entries_of_one_size_is_the_best_that_keeps_each_batch(batches, capacity):
    hits = native_hits(batches, "belady", [7] * CELLS, 7 * capacity)
    scored = [True] * len(batches)
    assert hits.sum() == most_hits(batches, [7] * CELLS, 7 * capacity, scored, keeps_batch=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), batches=batches_of(ROWS, EXPERTS, 4), capacity=st.integers(0, CELLS))
def test_the_optimum_is_the_most_hits_there_can_be(data, batches, capacity):
    scored = data.draw(st.lists(st.booleans(), min_size=len(batches), max_size=len(batches)))
    hits = optimum_hits(batches, [7] * CELLS, capacity, scored)
    assert hits == most_hits(batches, [7] * CELLS, 7 * capacity, scored, keeps_batch=False)


@settings(max_examples=60, deadline=None)
@given(batches=batches_of(ROWS, EXPERTS, 4), sizes=SIZES, budget=st.integers(0, 12))
def test_the_optimum_bounds_entries_of_several_sizes(batches, sizes, budget):
    scored = [True] * len(batches)
    bound = optimum_hits(batches, sizes, budget // min(sizes), scored)
    assert bound >= most_hits(batches, sizes, budget, scored, keeps_batch=False)


@pytest.mark.parametrize(("order", "options"), OPTIONS)
@settings(max_examples=40, deadline=None)
@given(batches=batches_of(1, CELLS, 8), capacity=st.integers(0, CELLS))
def test_no_policy_hits_more_than_the_optimum_in_a_model_of_one_layer(
    order, options, batches, capacity
):
    hits = native_hits(batches, order, [7] * CELLS, 7 * capacity, **options).sum()
    assert hits <= optimum_hits(batches, [7] * CELLS, capacity, [True] * len(batches))


def test_what_a_batch_leaves_above_the_budget_is_gone_when_the_next_begins():
    # Each batch needs both cells; between them there is room for none, one, both.
    batches = [[0, 1], [0, 1], [0, 1]]
    hits = [native_hits(batches, "lru", [7] * CELLS, room).tolist() for room in (6, 7, 14)]
    assert hits == [[0, 0, 0], [0, 1, 1], [0, 2, 2]]


def optimum_hits(batches, sizes, capacity, scored):
    start, cells = lookups_of(batches)
    marks = np.array(scored, np.uint8)
    capacities = np.array([capacity], np.int64)
    sizes = np.asarray(sizes, np.int64)
    found = replay_optimum(start, cells, ones(batches), ROWS, NO_RESTARTS, sizes, capacities, marks)
    return int(found[1][marks.astype(bool)].sum())


@settings(max_examples=100, deadline=None)
@given(batches=BATCHES, sizes=SIZES, budget=st.integers(0, 24))
def test_lru_hits_where_the_reuse_distance_and_the_cell_fit_the_budget(batches, sizes, budget):
    largest = max(sum(sizes[cell] for cell in batch) for batch in batches)
    budget = max(budget, largest)
    start, cells = lookups_of(batches)
    sizes = np.array(sizes, np.int64)
    distances = reuse_distances(start, cells, CELLS, sizes)
    fits = (distances >= 0) & (distances + sizes[cells] <= budget)
    running = np.concatenate([[0], np.cumsum(fits)])
    expected = running[start[1:]] - running[start[:-1]]
    assert native_hits(batches, "lru", sizes, budget).tolist() == expected.tolist()


@settings(max_examples=100, deadline=None)
@given(batches=batches_of(ROWS, EXPERTS, 20), sizes=st.none() | SIZES)
def test_reuse_distances_equal_their_definition(batches, sizes):
    start, cells = lookups_of(batches)
    cell_bytes = None if sizes is None else np.array(sizes, np.int64)
    found = reuse_distances(start, cells, CELLS, cell_bytes)
    expected = reference.reuse_distances(start, cells, CELLS, cell_bytes)
    assert found.tolist() == expected.tolist()


def test_distances_of_a_long_trace_do_not_depend_on_when_places_are_closed_up():
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 5, 400).astype(np.uint32)
    start = np.arange(401, dtype=np.int64)
    few = reuse_distances(start, cells, 5)  # closes up every few lookups
    many = reuse_distances(start, cells, 5000)  # never does
    assert few.tolist() == many.tolist()


def test_frequencies_keep_their_order_when_they_are_rescaled():
    # With decay 0.5 they are rescaled after 512 tokens; the definition never does, and a double
    # would hold 1023.
    rng = np.random.default_rng(1)
    batches = [rng.permutation(8)[:2].tolist() for _ in range(900)]
    start, cells = lookups_of(batches)
    sizes, pools = np.ones(8, np.int64), np.array([5], np.int64)
    arguments = (start, cells, ones(batches), 1, NO_RESTARTS, "lfu", sizes)
    arguments = (*arguments, np.zeros(8, np.uint8), pools)
    found = replay_lookups(*arguments, decay=0.5)[0]
    assert found.tolist() == reference.replay_lookups(*arguments, decay=0.5)[0].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": np.array([0, 9], np.uint32)}, "looks up cell 9"),
        ({"batch_start": np.array([0, 3], np.int64)}, "ends at 3"),
        ({"batch_start": np.array([1, 2], np.int64)}, "does not begin with 0"),
        ({"batch_start": np.array([0, 1], np.int64)}, "1 expected, got 2"),
        ({"budgets": np.array([1] * 4, np.int64)}, "4 pools of 6 cells"),
        ({"budgets": np.array([1] * 6, np.int64)}, "looks up cell 3"),
        ({"pinned": np.zeros(5, np.uint8)}, "6 expected, got 5"),
        ({"order": "fifo"}, "order: 'fifo'"),
        ({"decay": 0.0}, "decay"),
        ({"batches_per_step": 0}, "batches_per_step"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(change, message):
    arguments = {
        "batch_start": np.array([0, 2], np.int64),
        "cells": np.array([0, 3], np.uint32),
        "uses": np.ones(2, np.uint16),
        "batches_per_step": 1,
        "restarts": NO_RESTARTS,
        "order": "lru",
        "cell_bytes": np.ones(CELLS, np.int64),
        "pinned": np.zeros(CELLS, np.uint8),
        "budgets": np.array([3], np.int64),
    }
    with pytest.raises(ValueError, match=message):
        replay_lookups(**(arguments | change))
