import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from builders import make_block, make_shape, make_trace
from planning import R, V, make_placement
from synthetic import block_of

from moeprof.analyze import AnalysisSettings
from moeprof.analyze.comparison import compare_placement, compare_traces
from moeprof.analyze.exchange import divergence, exchange_test
from moeprof.cli import main
from moeprof.errors import TraceError
from moeprof.placement import Tier, write_placement
from moeprof.trace import Trace

SETTINGS = AnalysisSettings(share=0.5, resamples=100)
LOW, HIGH = [[0.97, 0.97, 0.03, 0.03]] * 2, [[0.03, 0.03, 0.97, 0.97]] * 2


def documents(
    path: Path, num_documents: int, preference: list[list[float]] | None, seed: int, decode: int = 0
) -> Trace:
    """Documents of 12 tokens in two layers of four experts, top-2, chosen by `preference`."""
    shape = make_shape()
    sequence = [number for number in range(num_documents) for _ in range(12)]
    weights = None if preference is None else np.asarray(preference)
    block = make_block(shape, sequence, decode=decode, seed=seed, probabilities=weights)
    return make_trace(path, {"text": block}, shape)


def uses(path: Path, *first_of_ten: int) -> Trace:
    """Documents of ten tokens in one layer of two experts: so many choose expert 0."""
    shape = make_shape((0,), num_experts=2, top_k=1)
    chosen = [int(token >= number) for number in first_of_ten for token in range(10)]
    sequence = np.repeat(np.arange(len(first_of_ten)), 10)
    block = block_of(np.reshape(chosen, (1, -1, 1)), sequence)
    return make_trace(path, {"text": block}, shape)


def drawn(
    rng: np.random.Generator, num_documents: int, length: int, base: np.ndarray
) -> np.ndarray:
    """[G, 2, E] counts of documents, each with preferences of its own around `base`."""
    shares = rng.dirichlet(30 * base, size=(num_documents, 2))
    return rng.multinomial(length, shares)


# The divergence.


def test_the_divergence_of_hand_made_histograms() -> None:
    first = np.array([[1, 0], [2, 2], [1, 1], [0, 0]])
    second = np.array([[0, 5], [4, 4], [1, 0], [1, 1]])
    found = divergence(first, second)
    # Of (1/2, 1/2) and (1, 0): the entropy of (3/4, 1/4) less half a bit.
    mixed = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    np.testing.assert_allclose(found, [1, 0, mixed, np.nan], atol=1e-12)


def test_the_divergence_is_symmetric_and_at_most_one_bit() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, (2, 50, 6))
    found = divergence(first, second)
    np.testing.assert_allclose(found, divergence(second, first), equal_nan=True)
    assert ((found >= 0) & (found <= 1) | np.isnan(found)).all()


# The test of exchangeability.


def brute_force_p(counts: np.ndarray, second: np.ndarray) -> float:
    """Share of all splits whose unbiased distance, pair by pair, is as large as the given one."""
    shares = counts / counts.sum(axis=2, keepdims=True)

    def product(i: int, j: int) -> float:
        return float((shares[i] * shares[j]).sum())

    def distance(chosen: set[int]) -> float:
        others = [i for i in range(len(counts)) if i not in chosen]
        inside = [
            np.mean([product(i, j) for i in side for j in side if i != j])
            for side in (list(chosen), others)
        ]
        return sum(inside) - 2 * np.mean([product(i, j) for i in chosen for j in others])

    found = distance(set(np.flatnonzero(second)))
    splits = combinations(range(len(counts)), int(second.sum()))
    return float(np.mean([distance(set(split)) >= found - 1e-12 for split in splits]))


def test_the_p_value_is_that_of_all_splits() -> None:
    rng = np.random.default_rng(4)
    counts = drawn(rng, 8, 60, np.full(5, 0.2))
    second = np.arange(8) >= 5
    test = exchange_test(counts, second, 20_000, np.random.default_rng(0))
    assert test.p_value == pytest.approx(brute_force_p(counts, second), abs=0.015)
    assert test.smallest_p == pytest.approx(1 / 56)


def test_four_documents_cannot_be_significant() -> None:
    """Of the six splits two and two, the one at hand and its mirror image are farthest apart."""
    counts = np.zeros((4, 2, 4), np.int64)
    counts[:2, :, :2] = 6
    counts[2:, :, 2:] = 6
    test = exchange_test(
        counts, np.array([False, False, True, True]), 3000, np.random.default_rng(0)
    )
    assert test.p_value == pytest.approx(1 / 3, abs=0.04)
    assert test.smallest_p == pytest.approx(1 / 3)


@pytest.mark.parametrize("lengths", [(200, 200), (400, 40)], ids=["alike", "long and short"])
def test_documents_drawn_alike_are_called_different_at_the_stated_rate(lengths) -> None:
    rng = np.random.default_rng(7)
    base = rng.dirichlet(np.ones(12))
    second = np.arange(20) >= 12
    found, by_layer = [], []
    for _ in range(400):
        first_part = drawn(rng, 12, lengths[0], base)
        counts = np.concatenate([first_part, drawn(rng, 8, lengths[1], base)])
        test = exchange_test(counts, second, 99, rng)
        found.append(test.p_value <= 0.05)
        by_layer.append(test.layer_p.min() <= 0.05)
    # 400 tests at 5 %: 20 expected, with a standard deviation of 4.4.
    for rejected in (found, by_layer):
        assert 6 <= sum(rejected) <= 36


def test_a_small_difference_between_documents_is_found() -> None:
    rng = np.random.default_rng(8)
    base = np.full(12, 1 / 12)
    other = base + 0.03 * np.tile([1, -1], 6)
    second = np.arange(40) >= 20
    found = [
        exchange_test(
            np.concatenate([drawn(rng, 20, 200, base), drawn(rng, 20, 200, other)]), second, 99, rng
        ).p_value
        <= 0.05
        for _ in range(40)
    ]
    assert np.mean(found) > 0.9


def test_documents_without_a_layer_and_single_documents_are_not_tested() -> None:
    counts = np.ones((5, 2, 4), np.int64)
    counts[0, 1] = 0
    second = np.array([False, False, False, True, True])
    rng = np.random.default_rng(0)
    assert exchange_test(counts, second, 19, rng) is not None
    assert exchange_test(counts[[0, 1, 3, 4]], second[[0, 1, 3, 4]], 19, rng) is None


# Two traces.


def test_traces_that_use_other_experts_have_nothing_in_common(tmp_path: Path) -> None:
    first = documents(tmp_path / "a", 6, [[1, 1, 1e-9, 1e-9]] * 2, 0)
    second = documents(tmp_path / "b", 6, [[1e-9, 1e-9, 1, 1]] * 2, 1)
    (phase,) = compare_traces(first, second, SETTINGS).phases
    assert phase.phase == "prefill"
    assert phase.coverage["first_on_second"].value == 0
    assert phase.coverage["second_on_second"].value == 1
    assert phase.retained.value == 0
    assert phase.jaccard == 0
    assert phase.left.tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert phase.entered.tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert phase.layers["distance"].tolist() == [1, 1]
    assert phase.layers["jaccard"].tolist() == [0, 0]
    assert phase.p_value <= 0.01
    assert (phase.layers["p_value"] <= 0.01).all()
    assert (phase.layers["distance_by_chance"] < 0.5).all()


def test_traces_that_are_drawn_alike_keep_their_coverage(tmp_path: Path) -> None:
    first = documents(tmp_path / "a", 12, LOW, 0)
    second = documents(tmp_path / "b", 12, LOW, 1)
    comparison = compare_traces(first, second, SETTINGS)
    (phase,) = comparison.phases
    assert phase.p_value > 0.05
    assert phase.jaccard == 1
    assert phase.retained.low <= 1 <= phase.retained.high
    expected = phase.coverage["first_on_second"].value / phase.coverage["second_on_second"].value
    assert phase.retained.value == pytest.approx(expected)
    assert comparison.least_retained == phase.retained.value
    again = compare_traces(first, second, SETTINGS)
    assert again.to_json() == comparison.to_json(), "seeded"


def test_a_trace_is_scored_by_the_set_of_the_whole_other_and_by_its_own_held_out(
    tmp_path: Path,
) -> None:
    """Of the whole of a, 9 + 4 against 7, cell 0 is hot; without its first document cell 1 is."""
    first, second = uses(tmp_path / "a", 9, 4), uses(tmp_path / "b", 7, 8, 9)
    (phase,) = compare_traces(first, second, SETTINGS).phases
    values = {name: one.value for name, one in phase.coverage.items()}
    assert values == pytest.approx(
        {
            "first_on_second": (7 + 8 + 9) / 30,
            "second_on_second": (7 + 8 + 9) / 30,
            "second_on_first": (9 + 4) / 20,
            "first_on_first": (1 + 4) / 20,
        }
    )
    assert phase.retained.value == 1


def test_the_interval_of_a_set_on_another_trace_is_that_of_both_drawn_anew(tmp_path: Path) -> None:
    """All documents of a are alike and choose cell 0, so that only b's documents count."""
    first, second = uses(tmp_path / "a", 9, 9, 9), uses(tmp_path / "b", 7, 8, 9)
    settings = AnalysisSettings(share=0.5, resamples=2000)
    (phase,) = compare_traces(first, second, settings).phases
    found = phase.coverage["first_on_second"]
    # Standard error of the mean of 0.7, 0.8 and 0.9 is 0.1 / sqrt(3); Student's t for 2 is 4.303.
    assert found.high - found.value == pytest.approx(min(0.2, 4.303 * 0.1 / 3**0.5), rel=0.05)
    assert found.value - found.low == pytest.approx(4.303 * 0.1 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("documents_of_a", "documents_of_b", "unknown"),
    [
        ((9, 8), (7, 8), {"retained", "first_on_first", "second_on_second"}),
        ((9,), (7, 8, 9), {"retained", "first_on_second", "second_on_first", "first_on_first"}),
        ((9, 8, 7), (7, 8, 9), set()),
    ],
    ids=["two and two", "one and three", "three and three"],
)
def test_what_has_no_interval_is_named_and_nothing_warns(
    tmp_path: Path, documents_of_a, documents_of_b, unknown: set[str]
) -> None:
    first, second = uses(tmp_path / "a", *documents_of_a), uses(tmp_path / "b", *documents_of_b)
    comparison = compare_traces(first, second, SETTINGS)
    (phase,) = comparison.phases
    figures = phase.coverage | {"retained": phase.retained}
    assert {name for name, one in figures.items() if np.isnan(one.low)} == unknown
    for name, one in figures.items():
        assert np.isnan(one.low) == np.isnan(one.high), name
    assert bool(unknown) == any(" interval" in note for note in comparison.notes)


def test_phases_stand_apart_and_only_those_in_both(tmp_path: Path) -> None:
    first = documents(tmp_path / "a", 6, LOW, 0, decode=5)
    second = documents(tmp_path / "b", 6, LOW, 1)
    assert [one.phase for one in compare_traces(first, second, SETTINGS).phases] == ["prefill"]
    both = AnalysisSettings(phase="all", share=0.5, resamples=50)
    assert [one.phase for one in compare_traces(first, second, both).phases] == ["all"]
    decode = AnalysisSettings(phase="decode", share=0.5, resamples=50)
    with pytest.raises(TraceError, match="no phase with assignments in both"):
        compare_traces(first, second, decode)


def test_traces_of_other_models_are_refused(tmp_path: Path) -> None:
    first = documents(tmp_path / "a", 3, LOW, 0)
    shape = make_shape(num_experts=6)
    second = make_trace(tmp_path / "b", {"text": make_block(shape, [0] * 5)}, shape)
    with pytest.raises(TraceError, match=r"2 MoE layers of 4 experts, .* 2 of 6"):
        compare_traces(first, second, SETTINGS)


def test_single_documents_are_compared_without_a_test(tmp_path: Path) -> None:
    first = documents(tmp_path / "a", 1, LOW, 0)
    second = documents(tmp_path / "b", 1, HIGH, 1)
    comparison = compare_traces(first, second, SETTINGS)
    (phase,) = comparison.phases
    assert np.isnan(phase.p_value)
    assert np.isnan(phase.retained.value), "nothing can be held out of one document"
    assert phase.coverage["first_on_second"].value < 0.3
    assert np.isnan(comparison.least_retained)
    assert any("too few" in note for note in comparison.notes)
    assert any("nothing can be held out" in note for note in comparison.notes)
    document = json.loads(comparison.to_json())
    assert document["phases"][0]["p_value"] is None


# A placement and a trace.


def test_a_placement_is_scored_on_a_trace(tmp_path: Path) -> None:
    trace = documents(tmp_path / "a", 6, LOW, 0, decode=5)
    placement = make_placement(((V, V, R, R), (R, V, R, R)))
    rows = trace.rows(phase="decode").explode("experts")
    in_vram = {(1, 0), (1, 1), (2, 1)}
    served = [pair in in_vram for pair in zip(rows["layer"], rows["experts"], strict=True)]
    comparison = compare_placement("plan", placement, trace, SETTINGS)
    decode = next(one for one in comparison.phases if one.phase == "decode")
    assert decode.coverage["first_on_second"].value == pytest.approx(np.mean(served))
    assert decode.cells == 3
    assert decode.documents == (0, 6)
    assert comparison.settings.share == 3 / 8
    assert len(decode.kept) + len(decode.entered) == 3
    assert set(map(tuple, decode.kept.tolist())) | set(map(tuple, decode.left.tolist())) == in_vram
    low, high = decode.coverage["first_on_second"].low, decode.coverage["first_on_second"].high
    assert low < np.mean(served) < high
    assert set(decode.layers.columns) == {"layer", "jaccard"}


def test_placements_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    trace = documents(tmp_path / "a", 3, LOW, 0)
    with pytest.raises(TraceError, match="has other layers or experts"):
        compare_placement("plan", make_placement(((V, R, R, R),)), trace, SETTINGS)
    with pytest.raises(TraceError, match="keeps no expert in VRAM"):
        compare_placement("plan", make_placement(((R, R, R, R),) * 2), trace, SETTINGS)


# The command.


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_the_command_says_what_is_kept_and_gates(tmp_path: Path, capsys) -> None:
    first = documents(tmp_path / "monday", 8, LOW, 0)
    second = documents(tmp_path / "friday", 8, HIGH, 1)
    options = ("--share", "0.5", "--resamples", "50", "--permutations", "199")
    assert run("compare", first.path, second.path, *options) == 0
    shown = capsys.readouterr().out
    assert "the hot set of monday (4 cells) serves" in shown
    assert "the routing differs (p = 0.005, 199 splits of 8 and 8 documents)" in shown
    assert "hot in friday only (layer/expert): 1/2, 1/3, 2/2, 2/3" in shown
    assert run("compare", first.path, second.path, *options, "--fail-under", "0.9") == 1
    failed = capsys.readouterr().err
    assert "error: monday: the share of friday's own coverage that it keeps is 0." in failed
    assert "0.9 was asked for" in failed
    assert "hint: plan anew on friday" in failed
    assert run("compare", first.path, second.path, *options, "--fail-under", "0.01") == 0


def test_four_documents_are_not_said_to_be_alike(tmp_path: Path, capsys) -> None:
    """Of the six splits two and two, the one at hand and its mirror image look alike: 1 in 3."""
    first, second = uses(tmp_path / "a", 9, 9), uses(tmp_path / "b", 1, 1)
    assert run("compare", first.path, second.path, "--share", "0.5") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "prefill: too few documents to tell whether the routing differs (p = 0.3" in shown
    assert "note: prefill: so few documents cannot give a p-value below 0.33." in shown


def test_json_is_one_document_even_when_the_gate_closes(tmp_path: Path, capsys) -> None:
    first = documents(tmp_path / "a", 4, LOW, 0)
    second = documents(tmp_path / "b", 4, HIGH, 1)
    assert run("compare", first.path, second.path, "--json", "--fail-under", "0.9") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "moeprof-comparison"
    assert document["first"] == {"name": "a", "kind": "trace"}
    assert document["least_retained"] == document["phases"][0]["retained"]["value"] < 0.9
    assert len(document["phases"][0]["layers"]) == 2


def test_a_trace_beside_itself_is_named_twice(tmp_path: Path, capsys) -> None:
    trace = documents(tmp_path / "a", 6, LOW, 0)
    assert run("compare", trace.path, trace.path, "--fail-under", "0.9") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the hot set of a (A)" in shown
    assert "note: Both are one trace: what the hot set of one serves of the other is" in shown
    assert "no difference beyond that between documents of one trace" in shown


def test_the_command_scores_a_placement(tmp_path: Path, capsys) -> None:
    trace = documents(tmp_path / "a", 6, LOW, 0)
    placement = make_placement(((V, V, R, R), (V, V, R, R)))
    assert (placement.tier_of == Tier.VRAM).sum() == 4
    file = tmp_path / "plan.json"
    write_placement(placement, file)
    assert run("compare", file, trace.path, "--fail-under", "0.95") == 0
    assert "what lies in VRAM by plan (4 cells) serves" in capsys.readouterr().out
    assert run("compare", file, trace.path, "--share", "0.5") == 2
    assert "a placement says itself what is in VRAM" in capsys.readouterr().err
    assert run("compare", trace.path, file) == 1
    assert f"hint: moeprof compare {file} {trace.path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--phase", "both"], 2, "'both' is not one of prefill, decode, all"),
        (["--domain", "other"], 1, "no domain 'other'"),
        (["--fail-under", "-1"], 2, "fail-under"),
        (["--fail-under", "1.01"], 2, "less than or equal to 1"),
        (["--fail-under", "nan"], 2, "fail-under"),
        (["--permutations", "3"], 2, "permutations"),
    ],
)
def test_wrong_usage_is_refused(tmp_path: Path, capsys, options, code: int, message: str) -> None:
    trace = documents(tmp_path / "a", 3, LOW, 0)
    assert run("compare", trace.path, trace.path, *options) == code
    assert message in capsys.readouterr().err
    assert run("compare", tmp_path / "absent", trace.path) == 1
