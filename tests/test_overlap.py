import numpy as np
import pytest
from builders import make_counts

from moeprof.analyze.overlap import hot_cells, jaccard, transfer
from moeprof.analyze.sample import Sample
from moeprof.analyze.settings import AnalysisSettings


def samples_of(cells, share):
    settings = AnalysisSettings(share=share, resamples=20)
    return [Sample(cells, domain, "prefill", settings) for domain in cells.domains]


def test_jaccard_counts_cells_in_both_over_cells_in_either():
    hot = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]], bool)
    expected = np.array([[1, 1 / 3, 1], [1 / 3, 1, 1 / 3], [1, 1 / 3, 1]])
    assert jaccard(hot) == pytest.approx(expected)


def test_the_jaccard_index_of_two_empty_sets_is_nan():
    assert np.isnan(jaccard(np.zeros((2, 3), bool))).all()


def test_hot_cells_are_chosen_on_all_documents():
    cells = make_counts({"code": [[[9, 0], [0, 3]], [[0, 8], [0, 3]]]})  # pooled 9 8 0 6
    assert hot_cells(samples_of(cells, 0.5)[0]).tolist() == [True, True, False, False]


def test_domains_that_share_no_cell_transfer_nothing():
    cells = make_counts({"code": [[[5, 5, 0, 0]]] * 3, "prose": [[[0, 0, 4, 6]]] * 3})
    found = samples_of(cells, 0.5)
    assert transfer(found)[0].tolist() == [[1, 0], [0, 1]]
    assert jaccard(np.stack([hot_cells(one) for one in found])).tolist() == [[1, 0], [0, 1]]


def test_domains_that_route_alike_transfer_everything_with_no_doubt():
    document = [[6, 3, 1, 0]]
    moved = transfer(samples_of(make_counts({"a": [document] * 4, "b": [document] * 4}), 0.25))
    assert moved == pytest.approx(np.full((3, 2, 2), 0.6))


def test_transfer_scores_the_set_of_the_row_on_the_documents_of_the_column():
    # sets of one cell: cell 0 for both training halves of a, cell 2 for those of b
    cells = make_counts(
        {"a": [[[9, 0, 1, 0]], [[8, 0, 0, 2]]], "b": [[[1, 0, 7, 2]], [[3, 0, 7, 0]]]}
    )
    assert transfer(samples_of(cells, 0.25))[0] == pytest.approx(
        np.array([[17 / 20, 4 / 20], [1 / 20, 14 / 20]])
    )


def test_transfer_to_another_domain_is_the_mean_over_training_folds():
    # without the first document of a cell 1 is hot, without the second cell 0
    cells = make_counts({"a": [[[9, 1]], [[1, 9]]], "b": [[[7, 3]], [[7, 3]]]})
    moved = transfer(samples_of(cells, 0.5))[0]
    assert moved[0].tolist() == pytest.approx([0.1, 0.5])


def test_the_diagonal_of_transfer_is_held_out_coverage():
    rng = np.random.default_rng(0)
    cells = make_counts({name: rng.integers(0, 50, (8, 2, 6)) for name in ("a", "b")})
    found = samples_of(cells, 0.25)
    moved = transfer(found)
    for index, sample in enumerate(found):
        held_out = sample.model_coverage((0.25,)).held_out[:, 0, 0]
        assert moved[:, index, index] == pytest.approx(held_out)


def test_a_domain_of_one_document_transfers_to_others_but_has_no_held_out_diagonal():
    cells = make_counts({"a": [[[9, 1]]], "b": [[[7, 3]], [[6, 4]]]})
    moved = transfer(samples_of(cells, 0.5))
    assert np.isnan(moved[0, 0, 0])
    assert moved[0, 0, 1] == pytest.approx(13 / 20)
    assert np.isnan(moved[1:, 0, 1]).all()


def test_transfer_intervals_hold_the_estimate():
    rng = np.random.default_rng(0)
    cells = make_counts({name: rng.integers(0, 50, (8, 2, 6)) for name in ("a", "b", "c")})
    estimate, low, high = transfer(samples_of(cells, 0.25))
    assert np.all((low < estimate) & (estimate < high))
