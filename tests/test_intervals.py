import numpy as np
import pytest
from builders import make_counts

from moeprof.analyze.coverage import held_out_covered, share_of, training_orders
from moeprof.analyze.intervals import (
    degrees_of_freedom,
    interval,
    resampled_held_out,
    resampled_share,
    resampling_weights,
    student_quantile,
)
from moeprof.analyze.sample import Sample
from moeprof.analyze.settings import AnalysisSettings


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (2, 4.303), (10, 2.228), (30, 2.042), (1000, 1.962)]
)
def test_student_quantiles_equal_the_printed_tables(degrees, expected):
    assert student_quantile(degrees) == pytest.approx(expected, abs=0.001)


def test_without_degrees_of_freedom_there_is_no_quantile():
    assert np.isnan(student_quantile(0))


def test_resamples_keep_the_number_of_documents_of_every_domain():
    group_domain = np.array([0, 0, 0, 1, 2, 2])
    weights = resampling_weights(group_domain, 50, np.random.default_rng(0))
    for domain, size in ((0, 3), (1, 1), (2, 2)):
        assert weights[:, group_domain == domain].sum(axis=1) == pytest.approx(size)
    assert np.all(weights[:, 3] == 1)
    assert degrees_of_freedom(group_domain) == 3


def test_the_resampled_variance_of_a_sum_is_the_unbiased_one():
    values = np.array([3.0, 8.0, 1.0, 4.0])
    weights = resampling_weights(np.zeros(4, np.int64), 40_000, np.random.default_rng(0))
    assert np.var(weights @ values) == pytest.approx(4 * np.var(values, ddof=1), rel=0.03)


def test_an_interval_is_the_estimate_plus_minus_student_times_the_spread():
    resampled = np.array([0.4, 0.6, 0.4, 0.6])  # standard deviation 0.1
    expected = [0.5, 0.5 - 0.2228, 0.5 + 0.2228]
    assert interval(np.array(0.5), resampled, 10).tolist() == pytest.approx(expected, abs=1e-3)


def test_an_interval_ends_at_zero_and_one_and_leaves_out_what_could_not_be_scored():
    resampled = np.array([0.1, 0.9, np.nan])
    assert interval(np.array(0.5), resampled, 1).tolist() == [0.5, 0.0, 1.0]


def test_documents_that_do_not_differ_leave_an_interval_of_no_width():
    weights = resampling_weights(np.zeros(5, np.int64), 20, np.random.default_rng(0))
    resampled = resampled_share(weights, np.full((5, 1, 1), 3.0), np.full((5, 1), 4))
    assert interval(np.array([[0.75]]), resampled, 4)[:, 0, 0] == pytest.approx([0.75] * 3)


def test_resampling_every_document_once_gives_the_held_out_coverage_itself():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 1000, (9, 2, 7))
    bytes_of = np.repeat([[1], [3]], 7, axis=1)
    fold, sizes = np.arange(9) % 4, np.array([1, 3, 5])
    orders = training_orders(counts, bytes_of, fold)
    served = held_out_covered(counts, orders, fold, sizes).sum(axis=0)
    resampled = resampled_held_out(np.ones((1, 9)), counts, bytes_of, fold, sizes)
    assert resampled[0] == pytest.approx(share_of(served, counts.sum(axis=(0, 2))))


def test_a_resample_repeats_choice_and_score_on_its_own_documents():
    counts = np.array([[[9, 1, 0]], [[0, 4, 6]], [[5, 5, 0]]])
    # document 0 twice and document 2 once: fold {0} is scored with cell 0 (of document 2), fold
    # {2} with cell 0 (of document 0); (2 x 9 + 5) of 3 x 10
    weights = np.array([[2.0, 0.0, 1.0]])
    fold, bytes_of = np.array([0, 1, 2]), np.ones((1, 3), np.int64)
    resampled = resampled_held_out(weights, counts, bytes_of, fold, np.array([1]))
    assert resampled[0, 0, 0] == pytest.approx(23 / 30)


def test_a_resample_without_training_documents_is_not_scored():
    counts = np.array([[[9, 1]], [[1, 9]]])
    weights = np.array([[2.0, 0.0]])
    fold, bytes_of = np.array([0, 1]), np.ones((1, 2), np.int64)
    assert np.isnan(resampled_held_out(weights, counts, bytes_of, fold, np.array([1]))).all()


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    num_cells, num_documents, size, repetitions = 60, 10, 12, 120
    base = rng.dirichlet(np.full(num_cells, 0.5))

    def documents(number):
        chances = rng.dirichlet(100 * base, size=number)
        return np.stack([rng.multinomial(rng.integers(200, 1000), p) for p in chances])[:, None]

    population = documents(20_000).sum(axis=(0, 1))
    settings = AnalysisSettings(resamples=60)
    held_out, in_sample, truths = [], [], []
    for _ in range(repetitions):
        sample = Sample(
            make_counts({"text": documents(num_documents)}), "text", "prefill", settings
        )
        lines = sample.model_coverage((size / num_cells,))
        held_out.append(lines.held_out[:, 0, 0])
        in_sample.append(lines.in_sample[:, 0, 0])
        orders = training_orders(sample.counts, np.ones((1, num_cells), np.int64), sample.fold)
        truths.append(population[orders[:, 0, :size]].sum(axis=1).mean() / population.sum())
    for lines, truth in (
        (np.array(held_out), np.mean(truths)),
        (np.array(in_sample), np.mean(in_sample, axis=0)[0]),
    ):
        assert lines[:, 0].mean() == pytest.approx(truth, abs=0.01)
        assert np.mean((lines[:, 1] <= truth) & (truth <= lines[:, 2])) >= 0.91
