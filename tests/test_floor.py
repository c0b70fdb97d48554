import numpy as np
import pytest

from moeprof.analyze.floor import floor_coverage, num_simulations, uniform_counts


def test_two_tokens_over_two_experts_cover_three_quarters_by_chance():
    # both choose the same expert with probability 1/2: 1/2 x 1 + 1/2 x 1/2
    counts = uniform_counts(np.array([2]), 2, 1, 20_000, np.random.default_rng(0))
    mean, low, high = floor_coverage(counts, np.ones((1, 2), np.int64), np.array([1]))[:, 0, 0]
    assert mean == pytest.approx(0.75, abs=0.01)
    assert (low, high) == (0.5, 1.0)


def test_a_single_token_chooses_each_of_its_experts_once():
    counts = uniform_counts(np.array([3, 3]), 5, 3, 100, np.random.default_rng(0))
    assert np.array_equal(np.sort(counts, axis=2), np.broadcast_to([0, 0, 1, 1, 1], (100, 2, 5)))


def test_choosing_all_experts_leaves_nothing_to_chance():
    counts = uniform_counts(np.array([40]), 4, 4, 3, np.random.default_rng(0))
    assert np.all(counts == 10)


def test_simulated_counts_add_up_and_no_token_chooses_an_expert_twice():
    assignments = np.array([0, 1, 7, 400, 12_345])  # 7 and 12 345 leave a remainder
    counts = uniform_counts(assignments, 6, 4, 50, np.random.default_rng(0))
    assert np.array_equal(counts.sum(axis=2), np.broadcast_to(assignments, (50, 5)))
    assert np.all(counts <= -(-assignments // 4)[:, None])


def test_simulated_counts_are_distributed_as_those_of_tokens_drawn_one_by_one():
    tokens, num_experts, top_k, simulations = 30, 8, 3, 4000
    rng = np.random.default_rng(0)
    drawn = rng.random((simulations, tokens, num_experts)).argsort(axis=2)[:, :, :top_k]
    one_by_one = np.zeros((simulations, num_experts))
    for expert in range(num_experts):
        one_by_one[:, expert] = (drawn == expert).sum(axis=(1, 2))
    fast = uniform_counts(np.array([tokens * top_k]), num_experts, top_k, simulations, rng)[:, 0]
    # the exact moments: each token is a draw without replacement
    chance = top_k / num_experts
    variance = tokens * chance * (1 - chance)
    expected = np.full((num_experts, num_experts), -variance / (num_experts - 1))
    np.fill_diagonal(expected, variance)
    for counts in (one_by_one, fast):
        assert counts.mean(axis=0) == pytest.approx(tokens * chance, abs=0.2)
        assert np.cov(counts.T) == pytest.approx(expected, abs=0.5)
    sizes, bytes_of = np.array([1, 2, 4]), np.ones((1, num_experts), np.int64)
    slow_floor, fast_floor = (
        floor_coverage(counts.astype(np.int64)[:, None], bytes_of, sizes)
        for counts in (one_by_one, fast)
    )
    assert fast_floor[0] == pytest.approx(slow_floor[0], abs=0.003)
    assert fast_floor[1:] == pytest.approx(slow_floor[1:], abs=0.012)  # one assignment of 90


def test_a_short_even_trace_seems_skewed_and_a_long_one_does_not():
    rng = np.random.default_rng(0)
    bytes_of, sizes = np.ones((1, 128), np.int64), np.array([26])
    floors = [
        floor_coverage(uniform_counts(np.array([n]), 128, 8, 100, rng), bytes_of, sizes)[0, 0, 0]
        for n in (1000, 10_000_000)
    ]
    assert floors[0] > 0.28
    assert floors[1] == pytest.approx(26 / 128, abs=0.001)


def test_the_floor_of_nothing_is_nan():
    counts = uniform_counts(np.array([0]), 4, 2, 10, np.random.default_rng(0))
    assert np.isnan(floor_coverage(counts, np.ones((1, 4), np.int64), np.array([1]))).all()


def test_small_models_are_simulated_more_often_than_large_ones():
    assert num_simulations(192) > num_simulations(48 * 128) >= 40
