import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moeprof.analyze.coverage import (
    covered,
    held_out_covered,
    in_sample_covered,
    share_of,
    training_orders,
)
from moeprof.analyze.hot_sets import best_first
from moeprof.trace.folds import deal_folds

ONE_SIZE = np.ones((1, 4), np.int64)


def test_covered_adds_the_first_cells_of_the_order():
    counts = np.array([[4, 1, 3, 2]])
    order = np.array([[0, 2, 3, 1]])
    assert covered(counts, order, np.array([1, 2, 4])).tolist() == [[4.0, 7.0, 10.0]]


def test_in_sample_coverage_is_chosen_on_all_documents_together():
    # pooled: 5, 4, 6, 1; the two busiest are cells 2 and 0
    counts = np.array([[[5, 0, 1, 0]], [[0, 4, 5, 1]]])
    served = in_sample_covered(counts, ONE_SIZE, np.array([2]))
    assert served.tolist() == [[[6.0]], [[5.0]]]


def test_documents_that_share_no_cell_have_no_held_out_coverage():
    counts = np.array([[[3, 7, 0, 0]], [[0, 0, 5, 5]]])
    fold = np.array([0, 1])
    orders = training_orders(counts, ONE_SIZE, fold)
    served = held_out_covered(counts, orders, fold, np.array([2]))
    assert served.tolist() == [[[0.0]], [[0.0]]]


def test_held_out_coverage_scores_each_document_with_the_set_of_the_others():
    counts = np.array([[[9, 1, 0, 0]], [[2, 8, 0, 0]], [[0, 5, 5, 0]]])
    fold = np.array([0, 1, 2])
    # sets of one cell: without 0 it is cell 1 (13), without 1 cell 0 (9), without 2 cell 0 (11)
    served = held_out_covered(counts, training_orders(counts, ONE_SIZE, fold), fold, np.array([1]))
    assert served[:, 0, 0].tolist() == [1.0, 2.0, 0.0]


def test_coverage_of_a_silent_layer_is_nan():
    share = share_of(np.array([[0.0], [3.0]]), np.array([0, 4]))
    assert np.isnan(share[0, 0])
    assert share[1, 0] == 0.75


@settings(max_examples=50, deadline=None)
@given(arrays(np.int64, (3, 2, 6), elements=st.integers(0, 50)))
def test_a_larger_hot_set_never_lowers_coverage(counts):
    bytes_of = np.array([[1] * 6, [3] * 6])
    sizes = np.arange(1, 7)
    served = in_sample_covered(counts, bytes_of, sizes)
    assert np.all(np.diff(served, axis=2) >= 0)
    assert np.array_equal(served[:, :, -1], counts.sum(axis=2))


@settings(max_examples=50, deadline=None)
@given(arrays(np.int64, (6, 1, 5), elements=st.integers(0, 50)))
def test_no_set_of_the_same_size_covers_more_in_sample_than_the_chosen_one(counts):
    bytes_of = np.ones((1, 5), np.int64)
    size = np.array([2])
    best = in_sample_covered(counts, bytes_of, size).sum()
    fold = np.arange(6) % 3
    orders = training_orders(counts, bytes_of, fold)
    pooled = counts.sum(axis=0)
    for first in range(5):
        for second in range(first):
            assert pooled[0, [first, second]].sum() <= best
    assert held_out_covered(counts, orders, fold, size).sum() <= best


def test_folds_differ_by_at_most_one_document_in_every_domain_and_in_total():
    group_domain = np.repeat([0, 1, 2], [7, 12, 3])
    fold = deal_folds(group_domain, 5, np.random.default_rng(0))
    assert np.ptp(np.bincount(fold)) <= 1
    for domain in range(3):
        assert np.ptp(np.bincount(fold[group_domain == domain], minlength=5)) <= 1


def test_fewer_documents_than_folds_are_each_left_out_once():
    fold = deal_folds(np.zeros(3, np.int64), 5, np.random.default_rng(0))
    assert sorted(fold.tolist()) == [0, 1, 2]


def test_the_set_of_a_fold_does_not_depend_on_the_documents_in_it():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 20, (6, 1, 9))
    fold = np.array([0, 1, 2, 0, 1, 2])
    bytes_of = np.ones((1, 9), np.int64)
    changed = counts.copy()
    changed[fold == 1] = rng.integers(0, 1000, (2, 1, 9))
    before = training_orders(counts, bytes_of, fold)
    after = training_orders(changed, bytes_of, fold)
    assert np.array_equal(before[1], after[1])
    assert np.array_equal(before[1], best_first(counts[fold != 1].sum(axis=0), bytes_of))


@pytest.mark.parametrize("size", [1, 3])
def test_one_document_repeated_has_equal_held_out_and_in_sample_coverage(size):
    counts = np.repeat(np.array([[[4, 0, 9, 2]]]), 5, axis=0)
    fold = np.arange(5)
    orders = training_orders(counts, ONE_SIZE, fold)
    sizes = np.array([size])
    held_out = held_out_covered(counts, orders, fold, sizes)
    assert np.array_equal(held_out, in_sample_covered(counts, ONE_SIZE, sizes))
