"""What earlier calls left in the workers' memory changes nothing."""

import numpy as np
import pytest
from kernel_cases import PATHS, assert_same_bits, make_expert, make_rows, on_a_line

from moeprof.native import ExpertLayer, Workers, multiply_packed, reference

HIDDEN, WIDTH, NUM_EXPERTS, TOP_K = 288, 96, 5, 3  # the last group of eight blocks is not full


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def forward(layer: ExpertLayer, workers: Workers, rows, ids, weights) -> np.ndarray:
    output = np.empty_like(rows)
    given = address(rows), "float32", address(ids), address(weights), "float32", len(rows)
    layer.forward(workers, *given, address(output))
    return output


def fill_with_ones(workers: Workers) -> None:
    """Leave bits that are all 1, which are NaN as numbers: many slots without an expert."""
    layer = ExpertLayer(32, 32, 64, 64, "q8_0")
    rows = np.zeros((8192, 32), np.float32)
    ids = np.full((len(rows), 64), -1, np.int64)
    forward(layer, workers, rows, ids, np.ones(ids.shape, np.float32))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_tokens", [1, 5, 21])
def test_a_layer(num_tokens: int, num_threads: int, weight_format: str, path: str) -> None:
    experts = [make_expert(seed, HIDDEN, WIDTH, weight_format) for seed in range(NUM_EXPERTS)]
    layer = ExpertLayer(HIDDEN, WIDTH, NUM_EXPERTS, TOP_K, weight_format, path=path)
    for expert_id, expert in enumerate(experts):
        layer.set_expert(expert_id, on_a_line(reference.pack_expert(expert)))
    rng = np.random.default_rng(num_tokens)
    rows = make_rows(num_tokens, num_tokens, HIDDEN)
    ids = np.ascontiguousarray(rng.random((num_tokens, NUM_EXPERTS)).argsort(1)[:, :TOP_K])
    weights = rng.random(ids.shape, np.float32)
    workers = Workers(num_threads)
    fill_with_ones(workers)
    found = forward(layer, workers, rows, ids, weights)
    expected, _ = reference.decode_layer(
        experts, rows, ids.astype(np.uint16), weights, reference.GatedUnit()
    )
    assert_same_bits(found, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
@pytest.mark.parametrize("num_tokens", [1, 5, 21])
def test_a_matrix(num_tokens: int, weight_format: str, path: str) -> None:
    stored = reference.quantize(make_rows(1, WIDTH, HIDDEN), weight_format)
    packed = on_a_line(reference.pack_rows(stored, weight_format).ravel())
    rows = make_rows(2, num_tokens, HIDDEN)
    output = np.empty((num_tokens, WIDTH), np.float32)
    workers = Workers(2)
    fill_with_ones(workers)
    sizes = WIDTH, HIDDEN, weight_format
    given = address(rows), "float32", num_tokens, address(output)
    multiply_packed(workers, address(packed), 0, *sizes, *given, path)
    assert_same_bits(output, reference.project(stored, rows, weight_format))
