import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof import native
from moeprof.native import NO_EXPERT, reference

BOTH = [native, reference]


@st.composite
def tokens(draw):
    """Experts with empty slots, of up to 150 ids, and groups, of up to 90 tokens."""
    num_experts = draw(st.sampled_from([1, 2, 5, 17, 64, 65, 150]))
    top_k = draw(st.integers(1, min(num_experts, 5)))
    num_tokens = draw(st.integers(0, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def experts():
        drawn = rng.random((num_tokens, num_experts)).argsort(axis=1)[:, :top_k].astype(np.uint16)
        drawn[rng.random(drawn.shape) < 0.2] = NO_EXPERT
        return drawn

    groups = rng.integers(0, 3, num_tokens).astype(np.uint32)
    return num_experts, experts(), experts(), groups, rng


@settings(deadline=None)
@given(tokens(), st.integers(1, 70))
def test_lag_overlap_equals_its_definition(made, max_lag):
    num_experts, experts, _, _, rng = made
    cuts = np.sort(rng.integers(0, len(experts) + 1, 3))
    runs = np.concatenate([[0], cuts, [len(experts)]])
    groups = rng.integers(0, 2, 4).astype(np.uint32)
    found, expected = (
        module.lag_overlap(experts, runs, groups, 2, num_experts, max_lag) for module in BOTH
    )
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(tokens())
def test_pairs_equal_their_definition(made):
    num_experts, experts, others, groups, rng = made
    found, expected = (
        module.pair_counts(experts, others, groups, 3, num_experts) for module in BOTH
    )
    np.testing.assert_array_equal(found, expected)
    marked = rng.integers(0, 2, (2, num_experts, num_experts)).astype(np.uint8)
    marked |= marked.transpose(0, 2, 1)
    tables = rng.integers(0, 2, len(experts)).astype(np.uint32)
    found, expected = (module.chosen_pairs(experts, marked, tables, groups, 3) for module in BOTH)
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(tokens())
def test_ranks_equal_their_definition(made):
    num_experts, experts, others, groups, rng = made
    tables = rng.integers(0, 2, len(experts)).astype(np.uint32)
    # few values, so that there are ties
    evidence = rng.integers(-2, 3, (2, num_experts + 1, num_experts)).astype(np.float32) / 3
    found, expected = (
        module.candidate_ranks(experts, others, evidence, tables, groups, 3) for module in BOTH
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("module", BOTH)
def test_lag_overlap_by_hand(module):
    experts = np.array([[0, 1], [1, 2], [1, 0], [3, 2], [2, 3]], np.uint16)
    found = module.lag_overlap(experts, np.array([0, 3, 5]), np.array([0, 1], np.uint32), 2, 4, 3)
    # first run: lag 1 shares {1} and {1}, lag 2 {0, 1}; second run: lag 1 both experts
    assert found[0].tolist() == [[2, 2, 0], [2, 0, 0]]
    assert found[1].tolist() == [[4, 2, 0], [2, 0, 0]]


@pytest.mark.parametrize("module", BOTH)
def test_a_token_without_experts_is_in_no_pair(module):
    experts = np.array([[0, 1], [NO_EXPERT] * 2, [1, NO_EXPERT], [1, 2]], np.uint16)
    found = module.lag_overlap(experts, np.array([0, 4]), np.zeros(1, np.uint32), 1, 3, 3)
    assert found[:, 0].tolist() == [[1, 1, 1], [1, 2, 2]]


@pytest.mark.parametrize("module", BOTH)
def test_ranks_by_hand(module):
    experts, others = np.array([[0], [1]], np.uint16), np.array([[2, 1], [0, 2]], np.uint16)
    evidence = np.array([[[0, 1, 1], [5, 0, -1], [0, 0, 0], [0, 0.5, 0.5]]], np.float32)
    zeros = np.zeros(2, np.uint32)
    found = module.candidate_ranks(experts, others, evidence, zeros, zeros, 1)
    # scores 0, 1.5, 1.5: expert 1 is first, 2 second; then 5, 0.5, -0.5: 0 is first, 2 third
    assert found.tolist() == [[2, 1, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, g: native.lag_overlap(e, np.array([0, 2]), g[:1], 1, 3, 1), "expert id 3"),
        (lambda e, g: native.lag_overlap(e[:1], np.array([0, 2]), g[:1], 1, 4, 1), "runs: tokens"),
        (lambda e, g: native.lag_overlap(e, np.array([0, 2, 1, 2]), g, 1, 4, 1), "runs: descend"),
        (lambda e, g: native.lag_overlap(e, np.array([0, 2]), g[:1] + 1, 1, 4, 1), "groups: 1 at"),
        (lambda e, g: native.pair_counts(e, e[:1], g, 1, 4), "second: tokens"),
        (lambda e, g: native.pair_counts(e, e, g, 1, 3), "row 1: expert id 3, expected below 3"),
        (lambda e, g: native.chosen_pairs(e, np.zeros((1, 4, 4), np.uint8), g + 1, g, 1),
         "tables: 1 at 0, expected below 1"),
        (lambda e, g: native.candidate_ranks(
            e, e, np.zeros((1, 4, 4), np.float32), g, g, 1),
         "evidence: rows"),
    ],
)  # fmt: skip
def test_what_lies_out_of_range_is_refused(call, message):
    experts = np.array([[0, 1], [3, 2]], np.uint16)
    with pytest.raises(ValueError, match=message):
        call(experts, np.zeros(2, np.uint32))
