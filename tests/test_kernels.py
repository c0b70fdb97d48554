"""The compiled kernels against the definition, bit for bit, on every path of this machine."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import FORMATS, PATHS, assert_same_bits, make_expert, make_rows, on_a_line

from moeprof import native
from moeprof.native import NO_EXPERT, ExpertLayer, Workers, reference
from moeprof.native.cores import physical_cores

UNITS = ("silu", "gelu_tanh", "clamped", "clamped_silu")


def test_both_languages_mean_the_same_by_no_expert() -> None:
    assert reference.experts.NO_EXPERT == NO_EXPERT


def test_the_plain_path_comes_first() -> None:
    assert PATHS[0] == "scalar"
    assert len(set(PATHS)) == len(PATHS)


@pytest.mark.parametrize("weight_format", FORMATS)
@given(st.integers(0, 13), st.integers(1, 20), st.integers(0, 2**32))
@settings(max_examples=25)
def test_packing_equals_the_definition_and_is_undone(weight_format, num_rows, num_blocks, seed):
    row_bytes = num_blocks * reference.BLOCK_BYTES[weight_format]
    stored = np.random.default_rng(seed).integers(0, 256, (num_rows, row_bytes), np.uint8)
    packed = native.pack_rows(stored, weight_format)
    np.testing.assert_array_equal(packed, reference.pack_rows(stored, weight_format))
    for unpack in (native.unpack_rows, reference.unpack_rows):
        np.testing.assert_array_equal(
            unpack(packed, num_rows, num_blocks * 32, weight_format), stored
        )


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_packed_expert_equals_the_definition(weight_format) -> None:
    expert = make_expert(1, 160, 96, weight_format)
    packed = np.zeros(native.expert_bytes(160, 96, weight_format, False), np.uint8)
    native.pack_expert(expert.gate, expert.up, expert.down, weight_format, packed)
    np.testing.assert_array_equal(packed, reference.pack_expert(expert))
    biased = reference.pack_expert(make_expert(1, 160, 96, weight_format, biases=True))
    assert biased.size == native.expert_bytes(160, 96, weight_format, True)
    assert biased.size == reference.expert_bytes(160, 96, weight_format, True)
    np.testing.assert_array_equal(biased[: packed.size], packed)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize(
    ("num_rows", "row_size"), [(1, 32), (5, 96), (8, 160), (3, 256), (6, 768), (9, 2048), (0, 64)]
)
def test_projections_equal_the_definition(path, weight_format, num_rows, row_size) -> None:
    stored = reference.quantize(make_rows(row_size, num_rows, row_size), weight_format)
    packed = native.pack_rows(stored, weight_format)
    for num_tokens in range(1, 9):
        rows = make_rows(num_tokens, num_tokens, row_size)
        got = native.project(packed, rows, num_rows, weight_format, path)
        assert_same_bits(got, reference.project(stored, rows, weight_format))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", FORMATS)
@given(st.integers(1, 19), st.integers(-149, 90), st.integers(0, 2**32))
@settings(max_examples=25)
def test_stored_rows_of_any_bits_and_activations_of_any_size_give_the_same_bits(
    path, weight_format, num_blocks, exponent, seed
) -> None:
    rng = np.random.default_rng(seed)
    row_bytes = num_blocks * reference.BLOCK_BYTES[weight_format]
    stored = rng.integers(0, 256, (4, row_bytes), np.uint8)
    if weight_format == "bf16":
        stored[:, 1::2] &= 0xBF  # exponents below 128: finite, and so are the sums
    else:  # a finite scale
        stored.reshape(4, num_blocks, -1)[..., 1] &= 0xBF
    rows = np.ldexp(rng.uniform(-1, 1, (2, num_blocks * 32)), exponent).astype(np.float32)
    got = native.project(native.pack_rows(stored, weight_format), rows, 4, weight_format, path)
    assert_same_bits(got, reference.project(stored, rows, weight_format))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
def test_the_largest_integers_are_exact(path, weight_format) -> None:
    stored = np.full((4, reference.BLOCK_BYTES[weight_format]), 0x80, np.uint8)
    stored[2:] = 0x7F
    stored[:, :2] = np.array([1], np.float16).view(np.uint8)  # scale 1
    rows = np.full((2, 32), 127, np.float32)
    rows[1] = -127
    # Sums of the weights: of the bytes 0x80 and 0x7F, or of their low and high nibbles, less 8.
    low, high = {"q8_0": (-128 * 32, 127 * 32), "q4_0": ((-8 + 0) * 16, (7 - 1) * 16)}[
        weight_format
    ]
    sums = np.array([low, low, high, high])
    got = native.project(native.pack_rows(stored, weight_format), rows, 4, weight_format, path)
    np.testing.assert_array_equal(got, [127.0 * sums, -127.0 * sums])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", UNITS)
def test_gated_units_equal_the_definition(path, kind) -> None:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, 1 << 16, np.uint32)
    numbers = bits[(bits & 0x7F800000) != 0x7F800000].view(np.float32)
    gate = np.concatenate([rng.uniform(-100, 100, 1 << 15), [0.0, -0.0], numbers])
    gate = np.resize(gate.astype(np.float32), 1 << 16)
    up = rng.standard_normal(1 << 16).astype(np.float32) * 4
    got = native.gated_unit(gate, up, kind, 1.702, 7.0, path)
    assert_same_bits(got, reference.GatedUnit(kind, 1.702, 7.0)(gate, up))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize(
    ("hidden_size", "width", "unit", "biases"),
    [(32, 32, "silu", False), (96, 160, "gelu_tanh", False), (288, 96, "clamped", True)],
)
def test_a_layer_equals_the_definition(
    path, weight_format, hidden_size, width, unit, biases
) -> None:
    num_experts, top_k = 6, 3
    experts = [make_expert(i, hidden_size, width, weight_format, biases) for i in range(5)]
    packed = [on_a_line(reference.pack_expert(expert)) for expert in experts]
    layer = ExpertLayer(
        hidden_size, width, num_experts, top_k, weight_format, biases, unit, path=path
    )
    assert layer.path == path
    for expert_id, memory in enumerate(packed):
        layer.set_expert(expert_id, memory)
    workers = [Workers(n, spin_us=spin) for n, spin in ((1, 0), (2, 0), (3, 1000))]
    for num_tokens, pool in itertools.product((0, 1, 5, 8), workers):
        rng = np.random.default_rng(num_tokens)
        rows = make_rows(num_tokens, num_tokens, hidden_size)
        ids = rng.random((num_tokens, 5)).argsort(1)[:, :top_k].astype(np.uint16)
        ids[rng.random(ids.shape) < 0.2] = NO_EXPERT
        weights = rng.random(ids.shape, np.float32)
        outputs = np.full((num_tokens, top_k, hidden_size), np.nan, np.float32)
        sums = np.full((num_tokens, hidden_size), np.nan, np.float32)
        layer.decode(pool, rows, ids, weights, outputs, sums)
        expected = reference.decode_layer(experts, rows, ids, weights, reference.GatedUnit(unit))
        assert_same_bits(sums, expected[0])
        assert_same_bits(outputs, expected[1])


@pytest.mark.parametrize("path", PATHS)
def test_the_plain_read_covers_every_byte_of_the_chosen_experts(path) -> None:
    layer = ExpertLayer(256, 96, 3, 3, "q8_0", path=path)
    packed = [reference.pack_expert(make_expert(i, 256, 96, "q8_0")) for i in range(3)]
    for expert_id, memory in enumerate(packed):
        layer.set_expert(expert_id, on_a_line(memory))
    for ids in ([0, 1, 2], [2, NO_EXPERT, NO_EXPERT], [NO_EXPERT] * 3):
        expected = 0
        for expert_id in ids:
            expected ^= 0 if expert_id == NO_EXPERT else reference.xor_words(packed[expert_id])
        assert layer.xor_experts(Workers(2), np.array(ids, np.uint16)) == expected


def make_layer(weight_format: str = "q8_0") -> tuple[ExpertLayer, Workers]:
    layer = ExpertLayer(64, 32, 4, 2, weight_format)
    for expert_id in range(3):
        expert = make_expert(expert_id, 64, 32, weight_format)
        layer.set_expert(expert_id, on_a_line(reference.pack_expert(expert)))
    return layer, Workers(2)


def decode(layer: ExpertLayer, workers: Workers, rows: np.ndarray, ids: list) -> np.ndarray:
    chosen = np.array(ids, np.uint16)
    weights = np.ones(chosen.shape, np.float32)
    outputs = np.empty((*chosen.shape, 64), np.float32)
    sums = np.empty((len(chosen), 64), np.float32)
    layer.decode(workers, rows, chosen, weights, outputs, sums)
    return sums


def test_ids_without_weights_or_twice_are_refused_and_the_layer_goes_on() -> None:
    layer, workers = make_layer()
    rows = make_rows(3, 2, 64)
    before = decode(layer, workers, rows, [[0, 1], [2, 0]])
    for ids in ([[0, 1], [3, 1]], [[0, 1], [4, 1]]):
        with pytest.raises(IndexError, match="ids: an expert of which this layer has no weights"):
            decode(layer, workers, rows, ids)
    with pytest.raises(ValueError, match="ids: an expert stands twice in a row"):
        decode(layer, workers, rows, [[0, 1], [2, 2]])
    assert_same_bits(decode(layer, workers, rows, [[0, 1], [2, 0]]), before)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_activations_that_are_not_finite_are_refused(weight_format, value) -> None:
    layer, workers = make_layer(weight_format)
    rows = make_rows(3, 2, 64)
    rows[1, 40] = value
    with pytest.raises(ValueError, match="activations: a value is not finite"):
        decode(layer, workers, rows, [[0, 1], [2, 0]])


@pytest.mark.parametrize("weight_format", FORMATS)
def test_an_overflow_between_the_projections_is_refused(weight_format) -> None:
    layer, workers = make_layer(weight_format)
    rows = make_rows(3, 1, 64) * np.float32(1e30)
    with pytest.raises(ValueError, match="activations: a value is not finite"):
        decode(layer, workers, rows, [[0, 1]])
    expert = make_expert(0, 64, 32, weight_format)
    with pytest.raises(ValueError, match="activations: a value is not finite"):
        reference.expert_forward(expert, rows, reference.GatedUnit())


def test_arrays_of_another_kind_are_refused() -> None:
    layer, workers = make_layer()
    rows = make_rows(3, 2, 64)
    with pytest.raises(TypeError):
        decode(layer, workers, rows.astype(np.float64), [[0, 1], [2, 0]])
    with pytest.raises(TypeError):
        decode(layer, workers, np.asfortranarray(rows), [[0, 1], [2, 0]])
    with pytest.raises(ValueError, match="ids: tokens: 2 expected, got 1"):
        decode(layer, workers, rows, [[0, 1]])
    with pytest.raises(ValueError, match="rows: 9 tokens, at most 8 expected"):
        decode(layer, workers, make_rows(3, 9, 64), [[0, 1]] * 9)
    packed = on_a_line(reference.pack_expert(make_expert(0, 64, 32, "q8_0")))
    with pytest.raises(ValueError, match="packed expert: bytes: 8192 expected, got 8191"):
        layer.set_expert(0, packed[:-1])
    shifted = on_a_line(np.zeros(8256, np.uint8))[1:8193]
    with pytest.raises(ValueError, match="its address is no multiple of 64"):
        layer.set_expert(0, shifted)
    with pytest.raises(IndexError, match="expert id 4, expected below 4"):
        layer.set_expert(4, packed)


def test_what_no_kernel_supports_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="hidden size: 72, expected a positive multiple of 32"):
        ExpertLayer(72, 32, 4, 2, "q8_0")
    with pytest.raises(ValueError, match="weight format: 'q5_1', expected one of q8_0"):
        ExpertLayer(64, 32, 4, 2, "q5_1")
    with pytest.raises(ValueError, match="gated unit: 'gelu', expected one of silu"):
        ExpertLayer(64, 32, 4, 2, "q8_0", unit="gelu")
    with pytest.raises(ValueError, match="top_k: 5, expected 1 to 4"):
        ExpertLayer(64, 32, 4, 5, "q8_0")
    with pytest.raises(ValueError, match="path: 'mmx', this machine has scalar"):
        ExpertLayer(64, 32, 4, 2, "q8_0", path="mmx")
    with pytest.raises(ValueError, match="num_threads: 0, expected 1 to 1024"):
        Workers(0)


def test_subnormal_numbers_are_kept_whatever_the_calling_thread_is_set_to() -> None:
    layer, workers = make_layer()
    rows, ids = make_rows(3, 1, 64), np.array([[0, 1]], np.uint16)
    weights = np.full((1, 2), 2.0**-135, np.float32)
    outputs = np.empty((1, 2, 64), np.float32)
    before, after = np.empty((2, 1, 64), np.float32)
    layer.decode(workers, rows, ids, weights, outputs, before)
    assert before.any()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        layer.decode(workers, rows, ids, weights, outputs, after)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(after, before)


def test_a_layer_in_use_refuses_a_second_thread_and_stays_right() -> None:
    layer, workers = make_layer()
    rows = make_rows(3, 2, 64)
    ids = [[0, 1], [2, 0]]
    expected = decode(layer, workers, rows, ids)

    def attempts(_: int) -> int:
        done = 0
        for _ in range(200):
            try:
                got = decode(layer, workers, rows, ids)
            except RuntimeError as error:
                assert str(error).endswith("at work for another thread")
                continue
            assert_same_bits(got, expected)
            done += 1
        return done

    with ThreadPoolExecutor(3) as threads:
        assert sum(threads.map(attempts, range(3))) > 0


def test_pinned_workers_give_the_same_bits() -> None:
    layer, workers = make_layer()
    rows = make_rows(3, 2, 64)
    pinned = Workers(3, physical_cores())
    assert pinned.num_threads == 3
    ids = [[0, 1], [2, 0]]
    assert_same_bits(decode(layer, pinned, rows, ids), decode(layer, workers, rows, ids))
