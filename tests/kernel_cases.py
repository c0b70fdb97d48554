"""Weights and activations for the tests of the native kernels."""

import numpy as np

from moeprof import native
from moeprof.native import reference
from moeprof.native.reference.formats import round_to_bf16

FORMATS = tuple(reference.BLOCK_BYTES)
PATHS = native.paths()


def make_rows(seed: int, *shape: int) -> np.ndarray:
    """Values whose size differs from block to block, some blocks 0."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(shape).astype(np.float32)
    blocks = rows.reshape(*shape[:-1], shape[-1] // 32, 32)
    blocks *= np.exp2(rng.integers(-6, 4, (*blocks.shape[:-1], 1)), dtype=np.float32)
    blocks *= rng.random((*blocks.shape[:-1], 1)) > 0.05
    return rows


def make_expert(seed: int, hidden_size: int, width: int, weight_format: str, biases: bool = False):
    def stored(offset: int, *shape: int) -> np.ndarray:
        return reference.quantize(make_rows(seed * 8 + offset, *shape) * 0.1, weight_format)

    rng = np.random.default_rng(seed)
    given = [rng.standard_normal(n).astype(np.float32) for n in (width, width, hidden_size)]
    return reference.ExpertWeights(
        stored(0, width, hidden_size),
        stored(1, width, hidden_size),
        stored(2, hidden_size, width),
        weight_format,
        *(given if biases else (None, None, None)),
    )


def ready_words(rows: np.ndarray, weight_format: str) -> np.ndarray:
    """[T, words] uint32: rows as a device posts them; the layout is in ready_rows.hpp."""
    if weight_format == "bf16":
        return round_to_bf16(rows).view(np.uint32)
    quants, scales = reference.quantize_activations(rows)
    num_tokens, num_blocks = scales.shape
    missing = -num_blocks % 8
    quants = np.pad(quants, ((0, 0), (0, missing), (0, 0))).reshape(num_tokens, -1, 8, 8, 4)
    scales = np.pad(scales, ((0, 0), (0, missing))).reshape(num_tokens, -1, 8)
    words = np.ascontiguousarray(quants.transpose(0, 1, 3, 2, 4)).view(np.uint32)
    parts = (
        words.reshape(*scales.shape[:2], 64),
        scales.view(np.uint32),
        (-8 * quants.sum((-1, -2), dtype=np.int32)).view(np.uint32),
    )
    return np.concatenate(parts, axis=-1).reshape(num_tokens, -1)


def on_a_line(packed: np.ndarray) -> np.ndarray:
    memory = np.zeros(packed.size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    memory[start : start + packed.size] = packed
    return memory[start : start + packed.size]


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
