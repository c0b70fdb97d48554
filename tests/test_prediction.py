import numpy as np
import pytest
from builders import make_counts, make_shape
from builders import make_trace as write_trace
from synthetic import Routing, block_of, make_trace

from moeprof.analyze import OVERALL, AnalysisSettings, analyze
from moeprof.analyze.prediction import evidence, popularity_hits
from moeprof.analyze.sample import Sample

WIDE = make_shape(moe_layers=(0, 1, 2), num_experts=16, top_k=2)
ONLY = AnalysisSettings(sections=("prediction",), resamples=60)


def predicted(tmp_path, routing, documents=10, tokens=(0, 200), **more):
    return analyze(make_trace(tmp_path / "made", routing, documents, tokens, **more), ONLY)


def test_evidence_by_hand():
    # ten tokens, top-1: expert 0 is given four times, three of them with candidate 1
    together = np.array([[1, 3], [5, 1]])
    found = evidence(together, np.array([4, 6]), np.array([6, 4]), 1)
    expected = np.log([[(10 / 4 + 1) / 7, (30 / 4 + 1) / 5], [(50 / 6 + 1) / 7, (10 / 6 + 1) / 5]])
    assert found[:2] == pytest.approx(expected)
    assert found[2] == pytest.approx(np.log([7, 5]))


def test_an_expert_that_was_never_seen_speaks_for_nothing():
    found = evidence(np.zeros((2, 2), int), np.array([0, 6]), np.array([3, 3]), 1)
    assert found[0].tolist() == [0, 0]
    assert np.isfinite(found).all()


def test_what_does_not_depend_on_the_layer_before_is_not_predicted(tmp_path):
    made = predicted(tmp_path, Routing(exponent=0.8), documents=20, shape=WIDE)
    for _, row in made.prediction.iterrows():
        assert row["gain"] == pytest.approx(0, abs=0.02)
        assert row["gain_high"] > -0.02 and row["gain_low"] <= 0.001


def test_a_layer_that_follows_the_one_before_is_predicted_as_often_as_it_does(tmp_path):
    made = predicted(tmp_path, Routing(link=0.7), documents=20, shape=WIDE, seed=1)
    first = made.prediction.iloc[0]
    assert first["candidates"] == 2
    truth = 0.7 + 0.3 * 2 / 16
    assert first["recall"] == pytest.approx(truth, abs=0.03)
    assert first["popularity"] == pytest.approx(2 / 16, abs=0.03)
    assert first["gain"] == pytest.approx(first["recall"] - first["popularity"])
    assert made.prediction["candidates"].tolist() == [2, 4, 6, 8]
    assert made.prediction["recall"].is_monotonic_increasing
    layers = made.prediction_layers
    assert layers["layer"].tolist() == [1, 2]
    assert layers["recall"].mean() == pytest.approx(first["recall"], abs=1e-9)


def test_recall_is_counted_on_documents_that_nothing_was_learned_on(tmp_path):
    # each document has a link of its own: learned from itself it would be foreseen, not else
    shape = make_shape(moe_layers=(0, 1), num_experts=64, top_k=1)

    rng = np.random.default_rng(0)
    documents, tokens = 6, 200
    first = rng.integers(0, 64, (documents, tokens))
    maps = np.stack([rng.permutation(64) for _ in range(documents)])
    experts = np.stack([first, np.take_along_axis(maps, first, axis=1)])
    sequence = np.repeat(np.arange(documents), tokens)
    block = block_of(experts.reshape(2, -1, 1), sequence)
    made = analyze(write_trace(tmp_path / "made", {"text": block}, shape), ONLY)
    assert made.prediction.iloc[0]["recall"] < 0.1


def test_popularity_is_the_held_out_coverage_of_each_layer(tmp_path):
    trace = make_trace(tmp_path / "made", Routing(1.0), 6, (0, 50), ("a", "b"), WIDE)
    sample = Sample(trace.cell_counts(), OVERALL, "decode", ONLY)
    hits = popularity_hits(sample, np.array([3]))
    for group in range(sample.num_groups):
        teachers = (sample.fold - sample.fold[group]) % 5
        training = sample.counts[(teachers == 1) | (teachers == 2)].sum(axis=0)
        for row in range(3):
            best = np.argsort(-training[row], kind="stable")[:3]
            assert hits[group, row, 0] == sample.counts[group, row, best].sum()


@pytest.mark.parametrize(("folds", "teachers"), [(2, 1), (3, 1), (4, 2), (5, 2), (9, 4)])
def test_of_two_folds_of_an_odd_number_one_teaches_the_other(folds, teachers):
    cells = make_counts({"text": np.ones((9, 1, 2), int)})
    sample = Sample(cells, "text", "prefill", AnalysisSettings(folds=folds))
    taught = sample.one_way
    assert taught.sum(axis=1).tolist() == [teachers] * folds
    if folds % 2:
        assert (taught + taught.T + np.eye(folds, dtype=int) == 1).all()


def test_a_single_document_or_layer_predicts_nothing(tmp_path):
    assert predicted(tmp_path / "1", Routing(), documents=1, shape=WIDE).prediction.empty
    single = make_shape(moe_layers=(3,), num_experts=8)
    assert predicted(tmp_path / "2", Routing(), shape=single).prediction.empty
