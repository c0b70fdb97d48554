import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.native import NO_EXPERT, count_assignments, reference


@given(st.data())
def test_compiled_counts_equal_the_definition(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 40))
    top_k = data.draw(st.integers(1, min(num_experts, 9)))
    num_tokens = data.draw(st.integers(0, 60))
    num_groups = data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    experts = rng.random((num_tokens, num_experts)).argsort(1)[:, :top_k].astype(np.uint16)
    experts[rng.random(experts.shape) < 0.1] = NO_EXPERT
    groups = rng.integers(0, num_groups, num_tokens).astype(np.uint32)
    expected = reference.count_assignments(experts, groups, num_groups, num_experts)
    counted = count_assignments(experts, groups, num_groups, num_experts)
    np.testing.assert_array_equal(counted, expected)
    assert counted.sum() == np.count_nonzero(experts != NO_EXPERT)


def test_counts_by_hand() -> None:
    experts = np.array([[0, 2], [2, 1], [NO_EXPERT, 2]], np.uint16)
    groups = np.array([0, 1, 1], np.uint32)
    assert count_assignments(experts, groups, 2, 3).tolist() == [[1, 0, 1], [0, 1, 2]]


@pytest.mark.parametrize("function", [count_assignments, reference.count_assignments])
@pytest.mark.parametrize(
    ("experts", "groups", "message"),
    [
        ([[0, 3]], [0], "row 0: expert id 3, expected below 3"),
        ([[0, 1], [1, 1]], [0, 0], "row 1: .*stands twice"),
        ([[0, 1]], [2], "row 0: group 2, expected below 2"),
    ],
)
def test_impossible_rows_are_refused(function, experts, groups, message) -> None:
    with pytest.raises(ValueError, match=message):
        function(np.array(experts, np.uint16), np.array(groups, np.uint32), 2, 3)


def test_arrays_of_another_kind_are_refused() -> None:
    groups = np.zeros(1, np.uint32)
    with pytest.raises(TypeError):
        count_assignments(np.zeros((1, 2), np.int64), groups, 1, 3)
    with pytest.raises(ValueError, match="groups: 2 entries expected, got 1"):
        count_assignments(np.array([[0], [1]], np.uint16), groups, 1, 3)
