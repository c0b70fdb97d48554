import numpy as np
import pytest

from moeprof.analyze.hot_sets import best_first, cell_bytes, hot_set, hot_set_size


@pytest.mark.parametrize(
    ("share", "num_cells", "expected"), [(0.2, 192, 38), (0.5, 5, 3), (0.01, 8, 1), (1.0, 8, 8)]
)
def test_a_hot_set_has_the_nearest_number_of_cells_and_at_least_one(share, num_cells, expected):
    assert hot_set_size(share, num_cells) == expected


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_share_outside_zero_to_one_is_a_mistake(share):
    with pytest.raises(ValueError, match="share must be in"):
        hot_set_size(share, 8)


def test_cells_of_one_size_are_ranked_by_assignments():
    counts = np.array([[3, 9, 1, 5]])
    assert best_first(counts, np.full((1, 4), 7)).tolist() == [[1, 3, 0, 2]]


def test_among_equals_the_lower_index_goes_first():
    counts = np.array([[2, 5, 2, 5, 2]])
    assert best_first(counts, np.ones((1, 5), np.int64)).tolist() == [[1, 3, 0, 2, 4]]


def test_a_large_cell_needs_more_assignments_to_go_first():
    # benefit per byte: 6 / 1, 10 / 2, 7 / 1
    order = best_first(np.array([[6, 10, 7]]), np.array([[100, 200, 100]]))
    assert order.tolist() == [[2, 0, 1]]


def test_every_pool_is_ranked_apart():
    counts = np.array([[1, 2], [9, 8]])
    assert best_first(counts, np.ones((2, 2), np.int64)).tolist() == [[1, 0], [0, 1]]


def test_cell_bytes_repeats_the_size_of_each_layer():
    assert cell_bytes((10, 20), 3).tolist() == [[10, 10, 10], [20, 20, 20]]


def test_a_hot_set_is_chosen_over_the_whole_model_not_by_layer():
    counts = np.array([[9, 8, 7, 0], [6, 1, 1, 0]])
    assert hot_set(counts, (1, 1), 3 / 8).tolist() == [[0, 0], [0, 1], [0, 2]]


def test_a_hot_set_prefers_the_layer_whose_experts_are_small():
    counts = np.array([[9, 8, 7, 0], [6, 1, 1, 0]])
    assert hot_set(counts, (2, 1), 2 / 8).tolist() == [[1, 0], [0, 0]]
