"""Weights on their way into memory: quantisation against the definition, and the memory itself."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import FORMATS, PATHS, make_rows

from moeprof import native
from moeprof.native import HostMemory, Workers, quantize_expert, reference

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WORKERS = Workers(2)


def quantize(values, weight_format, biases=None, path=None):
    gate = values[0]
    width, hidden_size = gate.shape
    size = native.expert_bytes(hidden_size, width, weight_format, biases is not None)
    packed = np.full(size, 0xA5, np.uint8)
    quantize_expert(
        *(matrix.data_ptr() for matrix in values),
        str(gate.dtype).removeprefix("torch."),
        hidden_size,
        width,
        weight_format,
        packed,
        WORKERS,
        None if biases is None else tuple(bias.data_ptr() for bias in biases),
        path,
    )
    return packed


def define(values, weight_format, biases=None):
    stored = [reference.quantize(matrix.float().numpy(), weight_format) for matrix in values]
    given_biases = [bias.float().numpy() for bias in biases] if biases else [None] * 3
    return reference.pack_expert(reference.ExpertWeights(*stored, weight_format, *given_biases))


def make_values(seed, hidden_size, width, value_type, scale=1.0):
    shapes = ((width, hidden_size), (width, hidden_size), (hidden_size, width))
    return [
        torch.from_numpy(make_rows(seed + i, *shape) * np.float32(scale)).to(TYPES[value_type])
        for i, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value_type", TYPES)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_quantised_experts_equal_the_definition(weight_format, value_type, path) -> None:
    for seed, (hidden_size, width) in enumerate(((32, 32), (288, 96), (96, 544))):
        values = make_values(seed, hidden_size, width, value_type)
        np.testing.assert_array_equal(
            quantize(values, weight_format, path=path), define(values, weight_format)
        )


@pytest.mark.parametrize("value_type", TYPES)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_biases_follow_the_weights_in_float32(weight_format, value_type) -> None:
    values = make_values(1, 96, 32, value_type)
    biases = [torch.randn(size).to(TYPES[value_type]) for size in (32, 32, 96)]
    np.testing.assert_array_equal(
        quantize(values, weight_format, biases), define(values, weight_format, biases)
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", FORMATS)
@given(st.integers(-149, 17), st.integers(0, 2**32), st.integers(0, 4))
@settings(max_examples=30)
def test_numbers_of_any_size_give_the_same_bytes(path, weight_format, exponent, seed, steps):
    rng = np.random.default_rng(seed)
    drawn = np.ldexp(rng.uniform(-1, 1, (3, 32, 64)), exponent).astype(np.float32)
    if steps:  # few distinct values: ties in rounding, equals of largest magnitude
        unit = np.float32(2.0**exponent)
        drawn = np.float32(rng.integers(-steps, steps + 1, drawn.shape)) * unit / np.float32(2)
    gate, up, down = (torch.from_numpy(matrix) for matrix in drawn)
    values = [gate, up, down.reshape(64, 32).contiguous()]
    np.testing.assert_array_equal(
        quantize(values, weight_format, path=path), define(values, weight_format)
    )


@pytest.mark.parametrize("path", PATHS)
def test_every_half_becomes_its_own_number(path) -> None:
    # A bf16 store of float16 numbers is their rounding to bf16: every finite float16 occurs.
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    halves = torch.where(halves.isfinite(), halves, 0).reshape(256, 256).contiguous()
    values = [halves] * 3
    np.testing.assert_array_equal(quantize(values, "bf16", path=path), define(values, "bf16"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_weights_that_no_format_holds_are_refused(place, path) -> None:
    for weight_format, number, message in (
        *((weight_format, np.nan, "a value is not finite") for weight_format in FORMATS),
        *((weight_format, -np.inf, "a value is not finite") for weight_format in FORMATS),
        ("q8_0", 65520 * 127.0, "a block's scale overflows float16"),
        ("q4_0", -65520 * 8.0, "a block's scale overflows float16"),
        ("bf16", 3.4e38, "a value overflows bf16"),
    ):
        values = make_values(1, 64, 32, "float32", 0.1)
        values[place][5, 9] = number
        with pytest.raises(ValueError, match=f"weights: {message}"):
            quantize(values, weight_format, path=path)
        with pytest.raises(ValueError, match=f"weights: {message}"):
            define(values, weight_format)


def test_sizes_and_types_are_checked() -> None:
    packed = np.zeros(native.expert_bytes(64, 32, "q8_0", False), np.uint8)
    with pytest.raises(ValueError, match="packed expert: bytes: 8192 expected, got 8191"):
        quantize_expert(0, 0, 0, "float32", 64, 32, "q8_0", packed[:-1], WORKERS)
    with pytest.raises(ValueError, match="width: 40, expected a positive multiple of 32"):
        quantize_expert(0, 0, 0, "float32", 64, 40, "q8_0", packed, WORKERS)
    with pytest.raises(ValueError, match="number type: 'float8'"):
        quantize_expert(0, 0, 0, "float8", 64, 32, "q8_0", packed, WORKERS)


def test_host_memory_is_zeroed_aligned_and_outlives_its_owner() -> None:
    size = (5 << 20) + 3
    memory = HostMemory(size)
    assert memory.address % (2 << 20) == 0
    array = memory.array()
    assert array.shape == (size,) and array.ctypes.data == memory.address
    assert not array.any()
    array[:] = 7
    assert 0 <= memory.huge_bytes <= size == memory.num_bytes
    del memory
    assert (array == 7).all()


HELD_TO_THE_END = """
import torch
from moeprof.native import ExpertLayer, HostMemory, expert_bytes
size = expert_bytes(64, 32, "bf16", False)
whole = torch.from_numpy(HostMemory(2 * size).array())
view = whole[:size]
layer = ExpertLayer(64, 32, 4, 2, "bf16")
layer.set_expert(0, view.numpy())
"""


def test_memory_that_is_held_when_the_interpreter_ends_is_not_reported_as_a_leak() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELD_TO_THE_END], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_host_memory_of_no_bytes_is_empty_and_of_too_many_is_refused() -> None:
    assert HostMemory(0).array().size == 0
    with pytest.raises(MemoryError):
        HostMemory(1 << 60)
