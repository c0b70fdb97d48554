"""The definition of the expert arithmetic: against the gguf package, exact sums and bounds."""

import math
from fractions import Fraction

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moeprof.native import reference
from moeprof.native.reference import GatedUnit

FORMATS = tuple(reference.BLOCK_BYTES)
LARGEST = 3.4028234663852886e38

blocks = arrays(
    np.float32,
    st.tuples(st.integers(0, 3), st.integers(1, 4).map(lambda n: 32 * n)),
    elements=st.floats(-1000, 1000, width=32),
)


def gguf_type(weight_format: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[weight_format.upper()]


def make_rows(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("weight_format", FORMATS)
@given(rows=blocks)
def test_stored_weights_are_ggufs_byte_for_byte(weight_format, rows) -> None:
    # gguf leaves open a block whose scale is so small that its inverse is infinite.
    largest = np.abs(rows.reshape(rows.shape[0], rows.shape[1] // 32, 32)).max(-1)
    rows = rows * np.repeat((largest == 0) | (largest > 1e-30), 32, axis=-1)
    stored = reference.quantize(rows, weight_format)
    if len(rows):
        expected = gguf.quantize(rows, gguf_type(weight_format))
        np.testing.assert_array_equal(stored, expected.reshape(stored.shape))
        values = gguf.dequantize(expected, gguf_type(weight_format)).reshape(rows.shape)
        np.testing.assert_array_equal(reference.dequantize(stored, weight_format), values)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_rows_without_blocks_or_tokens_are_empty(weight_format) -> None:
    stored = reference.quantize(np.zeros((0, 64), np.float32), weight_format)
    assert stored.shape == (0, 2 * reference.BLOCK_BYTES[weight_format])
    assert reference.dequantize(stored, weight_format).shape == (0, 64)
    assert reference.project(stored, np.zeros((3, 64), np.float32), weight_format).shape == (3, 0)


@given(rows=blocks)
def test_stored_weights_are_close(rows) -> None:
    magnitude = np.abs(rows)
    largest = magnitude.reshape(rows.shape[0], rows.shape[1] // 32, 32).max(-1)
    largest = np.repeat(largest, 32, axis=-1).astype(np.float64)
    tiny = 2.0**-24 * 128  # below it a float16 scale is coarse: one unit, times the largest q
    # Half a step, the float16 scale's error, and for q4_0 the side that has only 7 steps.
    steps = {"q8_0": 0.5 / 127 + 2**-10, "q4_0": 1 / 8 + 2**-10}
    for weight_format, step in steps.items():
        error = np.abs(
            reference.dequantize(reference.quantize(rows, weight_format), weight_format) - rows
        )
        assert (error <= largest * step + tiny).all()
    error = np.abs(reference.dequantize(reference.quantize(rows, "bf16"), "bf16") - rows)
    assert (error <= magnitude * 2.0**-8 + 2.0**-133).all()


def test_a_scale_without_an_inverse_makes_a_zero_block() -> None:
    rows = np.full((1, 32), 1e-42, np.float32)
    for weight_format in ("q8_0", "q4_0"):
        assert not reference.dequantize(
            reference.quantize(rows, weight_format), weight_format
        ).any()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_weights_that_cannot_be_stored_are_refused(weight_format) -> None:
    row = np.zeros(32, np.float32)
    for value in (np.inf, -np.inf, np.nan):
        row[5] = value
        with pytest.raises(ValueError, match="weights: a value is not finite"):
            reference.quantize(row, weight_format)
    row[5] = LARGEST
    with pytest.raises(ValueError, match=r"weights: a .* overflows"):
        reference.quantize(row, weight_format)
    with pytest.raises(ValueError, match="row size: 33, expected a multiple of 32"):
        reference.quantize(np.zeros(33, np.float32), weight_format)
    with pytest.raises(ValueError, match="expected one of q8_0, q4_0, bf16"):
        reference.quantize(row, "q5_1")


def test_the_largest_scale_is_stored() -> None:
    row = np.zeros(32, np.float32)
    row[0] = 65504 * 127
    assert reference.dequantize(reference.quantize(row, "q8_0"), "q8_0")[0] == 65504 * 127


def test_activations_by_hand() -> None:
    rows = np.zeros((1, 64), np.float32)
    rows[0, :4] = [127, 2.5, -3.5, 0.5]
    quants, scales = reference.quantize_activations(rows)
    assert scales.tolist() == [[1.0, 0.0]]
    assert quants[0, 0, :4].tolist() == [127, 2, -4, 0]  # half to even
    assert not quants[0, 1].any()


@given(
    arrays(np.float32, 32, elements=st.floats(-LARGEST, LARGEST, width=32)), st.integers(-140, 0)
)
def test_activations_are_within_half_a_step(values, exponent) -> None:
    values = np.ldexp(values, exponent)
    quants, scales = reference.quantize_activations(values)
    assert np.abs(quants).max() <= 127
    step = float(scales[0])
    if step > 2.0**-126:
        error = np.abs(quants[0] * step - values.astype(np.float64))
        assert (error <= step * (0.5 + 1e-4)).all()


def test_activations_of_subnormal_size_stay_in_range() -> None:
    smallest = float(np.float32(2.0**-149))
    sizes = np.array([[60], [190], [1]]) * smallest
    quants, scales = reference.quantize_activations(np.tile(sizes, 32).astype(np.float32))
    assert scales[:, 0].tolist() == [0.0, smallest, 0.0]
    assert quants[:, 0, 0].tolist() == [0, 127, 0]


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_activations_that_are_not_finite_are_refused(weight_format, value) -> None:
    rows = np.zeros((2, 32), np.float32)
    rows[1, 31] = value
    stored = reference.quantize(np.ones((1, 32), np.float32), weight_format)
    with pytest.raises(ValueError, match="activations: a value is not finite"):
        reference.project(stored, rows, weight_format)


@given(
    arrays(np.int8, (2, 3, 32), elements=st.integers(-128, 127)),
    arrays(np.int8, (4, 3, 32), elements=st.integers(-127, 127)),
)
def test_block_dots_are_exact(weights, activations) -> None:
    expected = np.einsum("rbi,tbi->trb", weights.astype(np.int64), activations.astype(np.int64))
    np.testing.assert_array_equal(reference.block_dots(weights, activations), expected)


def test_the_largest_block_dot_is_exact() -> None:
    weights = np.full((1, 1, 32), -128, np.int8)
    activations = np.full((1, 1, 32), -127, np.int8)
    assert reference.block_dots(weights, activations).item() == 32 * 128 * 127


@pytest.mark.parametrize("num_terms", [0, 1, 7, 8, 9, 24, 65])
def test_terms_are_summed_in_the_stated_order(num_terms) -> None:
    terms = make_rows(num_terms, num_terms) * np.float32(1e3) ** make_rows(9, num_terms)
    accumulators = [np.float32(0)] * 8
    for index, term in enumerate(terms):
        accumulators[index % 8] = accumulators[index % 8] + term
    a = accumulators
    expected = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    assert reference.accumulate(terms) == expected


def test_the_tree_adds_lanes_four_apart_first() -> None:
    big = np.float32(2.0**24)
    total = reference.tree_sum(np.array([big, 1, 0, 0, -big, 0, 0, 0], np.float32))
    assert total == 1  # any order that adds 1 to 2**24 loses it
    assert reference.tree_sum(np.array([big, 1, -big, 0, 1, 0, 0, 0], np.float32)) == 1


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("row_size", [32, 96, 768, 2048])
def test_projections_are_those_of_the_dequantised_weights(weight_format, row_size) -> None:
    stored = reference.quantize(make_rows(1, 5, row_size), weight_format)
    weights = reference.dequantize(stored, weight_format).astype(np.float64)
    rows = make_rows(2, 3, row_size)
    got = reference.project(stored, rows, weight_format)
    size = np.abs(rows) @ np.abs(weights).T
    assert (np.abs(got - rows @ weights.T) <= size * 0.02).all()
    if weight_format != "bf16":
        quants, scales = reference.quantize_activations(rows)
        seen = (quants * scales[..., None].astype(np.float64)).reshape(rows.shape)
        assert (np.abs(got - seen @ weights.T) <= size * row_size / 32 * 2.0**-22).all()


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
def test_bf16_products_are_exact_unless_they_underflow(first, second) -> None:
    pair = np.array([first, second], np.uint32) << np.uint32(16)
    a, b = (float(value) for value in pair.view(np.float32))
    exact = math.isfinite(a) and math.isfinite(b) and Fraction(a) * Fraction(b)
    if exact and Fraction(2) ** -126 <= abs(exact) < Fraction(2) ** 127:
        assert Fraction(float(np.float32(a) * np.float32(b))) == exact


def test_the_exponential_is_within_one_unit_of_the_true_one() -> None:
    x = np.linspace(-87, 88, 1 << 20, dtype=np.float32)
    true = np.exp(x.astype(np.float64))
    unit = np.spacing(true.astype(np.float32)).astype(np.float64)
    assert (np.abs(reference.exponential(x) - true) <= unit).all()


@given(st.floats(-90, 90, width=32), st.integers(1, 1000))
def test_the_exponential_never_falls(x, steps) -> None:
    bits = np.float32(x).view(np.int32)
    later = bits + np.int32(steps if x >= 0 and bits >= 0 else -min(steps, bits - (-(2**31))))
    pair = np.array([bits, later], np.int32).view(np.float32)
    low, high = reference.exponential(pair)
    assert low <= high


def test_the_exponential_at_its_ends() -> None:
    x = np.array([0.0, -0.0, -np.inf, np.inf, np.nan, -87, 88], np.float32)
    one, same, lowest, highest, nothing, low, high = reference.exponential(x)
    assert one == same == 1
    assert lowest == low >= 2.0**-126
    assert highest == high < np.inf
    assert np.isnan(nothing)


def test_gated_units_are_close_to_their_formulas() -> None:
    gate, up = make_rows(3, 2, 10_000) * np.float32(4)
    g, u = gate.astype(np.float64), up.astype(np.float64)
    silu = g / (1 + np.exp(-g))
    gelu = 0.5 * g * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
    cut, side = np.minimum(g, 7.0), np.clip(u, -7.0, 7.0)
    clamped = (side + 1) * cut / (1 + np.exp(-1.702 * cut))
    clamped_silu = cut / (1 + np.exp(-cut)) * side
    for kind, true in (
        ("silu", silu * u),
        ("gelu_tanh", gelu * u),
        ("clamped", clamped),
        ("clamped_silu", clamped_silu),
    ):
        got = GatedUnit(kind)(gate, up)
        np.testing.assert_allclose(got, true, rtol=2e-6, atol=1e-6)


def test_gated_units_of_large_values_have_limits() -> None:
    x = np.array([-LARGEST, -1e20, 1e20, LARGEST], np.float32)
    for function in (reference.silu, reference.gelu_tanh):
        assert np.abs(function(x)[:2]).max() < 5
        assert function(x)[2:].tolist() == x[2:].tolist()
    with pytest.raises(ValueError, match="gated unit: 'relu', expected one of silu"):
        GatedUnit("relu")


def test_slots_are_summed_in_order_and_empty_ones_left_out() -> None:
    outputs = np.array([[[2.0**24], [1.0], [-(2.0**24)], [np.nan]]], np.float32)
    ids = np.array([[3, 1, 2, 65535]], np.uint16)
    weights = np.ones((1, 4), np.float32)
    assert reference.slot_sum(outputs, ids, weights).tolist() == [[0.0]]
    swapped = reference.slot_sum(outputs[:, [0, 2, 1, 3]], ids, weights)
    assert swapped.tolist() == [[1.0]]


def test_a_layer_is_the_sum_of_its_experts() -> None:
    def expert(seed: int) -> reference.ExpertWeights:
        gate, up = (reference.quantize(make_rows(seed + i, 32, 64), "q8_0") for i in (0, 1))
        return reference.ExpertWeights(
            gate, up, reference.quantize(make_rows(seed + 2, 64, 32), "q8_0"), "q8_0"
        )

    experts, unit = [expert(10), expert(20)], GatedUnit("silu")
    rows = make_rows(1, 2, 64)
    ids = np.array([[1, 0], [65535, 1]], np.uint16)
    weights = np.array([[0.25, 0.75], [9, 0.5]], np.float32)
    sums, outputs = reference.decode_layer(experts, rows, ids, weights, unit)
    first, second = (reference.expert_forward(e, rows, unit) for e in experts)
    quarter, half = np.float32(0.25), np.float32(0.5)
    np.testing.assert_array_equal(sums[0], quarter * second[0] + np.float32(0.75) * first[0])
    np.testing.assert_array_equal(sums[1], half * second[1])
    np.testing.assert_array_equal(outputs, [[second[0], first[0]], [0 * first[0], second[1]]])


def test_an_expert_with_some_biases_only_is_refused() -> None:
    stored = reference.quantize(np.ones((32, 32), np.float32), "q4_0")
    with pytest.raises(ValueError, match="some of gate, up and down have one"):
        reference.ExpertWeights(stored, stored, stored, "q4_0", np.ones(32, np.float32))
