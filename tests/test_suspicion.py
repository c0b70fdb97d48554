from fractions import Fraction
from math import comb
from pathlib import Path

import foreign
import numpy as np
import pytest

from moeprof.errors import TraceError
from moeprof.interop import Facts, import_trace
from moeprof.interop.suspicion import evenness, expert_zero_chance, suspicions
from moeprof.trace import open_trace

ROOT = Path(__file__).resolve().parent.parent


def sorted_experts(num_tokens: int, num_experts: int, rng: np.random.Generator) -> np.ndarray:
    """[T, E] int32: all experts in the order of their scores, some preferred by far."""
    scores = rng.gumbel(size=(num_tokens, num_experts)) + np.linspace(3, 0, num_experts)
    return np.ascontiguousarray(np.argsort(-scores, axis=1).astype(np.int32))


def test_a_strided_view_written_as_packed_memory_is_noticed(tmp_path: Path) -> None:
    """As llama.cpp has it: the chosen ids are the first columns of the sorted rows."""
    rng = np.random.default_rng(0)
    num_tokens, num_experts, top_k = 300, 64, 8
    right, wrong = [], []
    for _ in range(4):
        whole = sorted_experts(num_tokens, num_experts, rng)
        view = whole[:, :top_k]
        right.append(np.stack(view))
        packed = np.frombuffer(whole.tobytes(), np.int32, num_tokens * top_k)
        wrong.append(packed.reshape(num_tokens, top_k))
    heard: dict[str, list[str]] = {"right": [], "wrong": []}
    for name, layers in (("right", right), ("wrong", wrong)):
        file = foreign.tok_layers(tmp_path / f"{name}.jsonl", np.stack(layers, axis=1))
        import_trace(
            "tok-layers", [file], tmp_path / name, Facts(num_experts=64), tell=heard[name].append
        )
    assert not any("strided" in note for note in heard["right"])
    assert any("more equally than even routing would by chance" in note for note in heard["wrong"])


def test_a_stride_that_cuts_sorted_rows_repeats_experts(tmp_path: Path) -> None:
    whole = sorted_experts(200, 60, np.random.default_rng(0))
    packed = whole.ravel()[: 200 * 8].reshape(200, 1, 8)
    file = foreign.tok_layers(tmp_path / "a.jsonl", packed)
    with pytest.raises(TraceError, match="stands twice in one row") as failure:
        import_trace("tok-layers", [file], tmp_path / "trace", Facts(num_experts=60))
    assert "strided" in failure.value.hint


@pytest.mark.parametrize("tokens", [3, 40, 2000])
def test_even_routing_is_not_suspected(tokens: int) -> None:
    """The score of evenly drawn counts is about standard normal; its tail is not heavier."""
    rng = np.random.default_rng(tokens)
    scores = []
    for _ in range(400):
        chosen = np.argsort(rng.random((4, tokens, 32)), axis=2)[:, :, :4]
        counts = np.stack([np.bincount(layer.ravel(), minlength=32) for layer in chosen])
        scores.append(evenness(counts, 4))
        assert suspicions(counts, 4) == []
    assert abs(np.mean(scores)) < 0.25
    assert 0.75 < np.std(scores) < 1.15


def test_padding_read_as_expert_zero_is_noticed() -> None:
    rng = np.random.default_rng(1)
    chosen = np.argsort(rng.random((16, 500, 64)), axis=2)[:, :, :4]
    counts = np.stack([np.bincount(layer.ravel(), minlength=64) for layer in chosen])
    assert expert_zero_chance(counts) > 1e-3
    chosen[:, 400:] = 0
    padded = np.stack([np.bincount(layer.ravel(), minlength=64) for layer in chosen])
    assert any("expert 0 is the busiest" in words for words in suspicions(padded, 4))


def test_the_chance_of_expert_zero_is_binomial() -> None:
    """Busiest in 2 of 3 layers of 4 experts: 3 (1/4)^2 (3/4) + (1/4)^3."""
    counts = np.array([[5, 1, 1, 1], [5, 4, 4, 4], [1, 2, 3, 4]])
    assert expert_zero_chance(counts) == pytest.approx(3 / 16 * 3 / 4 + 1 / 64)


def test_the_chance_of_expert_zero_is_finite_for_many_layers() -> None:
    """Of 1500 layers with two experts, half: by symmetry 1/2 and half of the middle term."""
    counts = np.array([[2, 1], [1, 2]] * 750)
    middle = float(Fraction(comb(1500, 750), 2**1500))
    assert expert_zero_chance(counts) == pytest.approx(0.5 + middle / 2)
    assert expert_zero_chance(counts[::2]) == pytest.approx(2.0**-750)
    assert expert_zero_chance(counts[:, :1]) == 1


def test_real_traces_are_not_suspected() -> None:
    trace = open_trace(ROOT / "traces" / "demo")
    counts = trace.cell_counts().counts.sum(axis=(0, 1))
    assert suspicions(counts, trace.shape.top_k) == []
