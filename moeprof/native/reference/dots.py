"""Dot products of stored rows with activations, and the one order in which they are summed."""

import numpy as np
from numpy.typing import NDArray

from moeprof.native.reference.formats import (
    BLOCK_SIZE,
    bf16_values,
    check_format,
    check_row_size,
    quants_and_scales,
    round_to_bf16,
)

NUM_ACCUMULATORS = 8


def quantize_activations(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Activations as int8 in blocks of 32 consecutive values.

    The scale is max|x| / 127 in float32. Where it is 0 (also by underflow) the block is 0.
    Elsewhere q = x / scale in float32, rounded half to even, clipped to [-127, 127]; the clip
    matters only where the scale is subnormal and therefore imprecise.

    Args:
        rows: [..., row_size] float32, `row_size` a multiple of 32.

    Returns:
        [..., num_blocks, 32] int8 and [..., num_blocks] float32 scales.

    Raises:
        ValueError: a value is not finite, or `row_size` is not a multiple of 32.
    """
    check_row_size(rows.shape[-1])
    _check_finite(rows)
    blocks = rows.reshape(*rows.shape[:-1], rows.shape[-1] // BLOCK_SIZE, BLOCK_SIZE)
    scales = np.abs(blocks).max(axis=-1) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
    quants = np.rint(blocks / divisor).clip(-127, 127)
    return np.where(scales[..., None] == 0, 0, quants).astype(np.int8), scales


def block_dots(weights: NDArray[np.int8], activations: NDArray[np.int8]) -> NDArray[np.int32]:
    """Exact integer dot products, block by block; |dot| <= 32 * 128 * 127 < 2**24.

    Args:
        weights: [num_rows, num_blocks, 32] int8.
        activations: [num_tokens, num_blocks, 32] int8.

    Returns:
        [num_tokens, num_rows, num_blocks] int32.
    """
    # [num_blocks, num_tokens, 32] @ [num_blocks, 32, num_rows]: exact in float32, being < 2**24
    exact = activations.transpose(1, 0, 2).astype(np.float32) @ weights.transpose(1, 2, 0).astype(
        np.float32
    )
    return exact.transpose(1, 2, 0).astype(np.int32)


def accumulate(terms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Term i added into accumulator i mod 8, in increasing order of i, from +0; then `tree_sum`.

    Args:
        terms: [..., num_terms] float32; `num_terms` need not be a multiple of 8 and may be 0.

    Returns:
        [...] float32.
    """
    accumulators = np.zeros((*terms.shape[:-1], NUM_ACCUMULATORS), np.float32)
    for start in range(0, terms.shape[-1], NUM_ACCUMULATORS):
        group = terms[..., start : start + NUM_ACCUMULATORS]
        accumulators[..., : group.shape[-1]] += group
    return tree_sum(accumulators)


def tree_sum(accumulators: NDArray[np.float32]) -> NDArray[np.float32]:
    """((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7)), each addition rounded to float32.

    Args:
        accumulators: [..., 8] float32.

    Returns:
        [...] float32.
    """
    fours = accumulators[..., :4] + accumulators[..., 4:]
    twos = fours[..., :2] + fours[..., 2:]
    total: NDArray[np.float32] = twos[..., 0] + twos[..., 1]
    return total


def project(
    stored: NDArray[np.uint8], rows: NDArray[np.float32], weight_format: str
) -> NDArray[np.float32]:
    """Dot product of every stored row with every activation row.

    Block formats: the activations are quantised (`quantize_activations`); the term of a block is
    float32(dot) * (weight scale * activation scale), both products rounded to float32. `bf16`: the
    activations are rounded to bf16, half to even; the term of a value is its product with the
    weight in float32, exact unless it underflows. The terms are summed by `accumulate`.

    Args:
        stored: [num_rows, num_blocks * BLOCK_BYTES[weight_format]] uint8.
        rows: [num_tokens, num_blocks * 32] float32.
        weight_format: "q8_0", "q4_0" or "bf16".

    Returns:
        [num_tokens, num_rows] float32; a sum that overflows is infinite or NaN.

    Raises:
        ValueError: an activation is not finite (for `bf16`: once rounded), or a size or the format
            is not supported.
    """
    check_format(weight_format)
    if weight_format == "bf16":
        check_row_size(rows.shape[-1])
        rounded = round_to_bf16(rows)
        _check_finite(rounded)
        with np.errstate(over="ignore", invalid="ignore"):
            return accumulate(bf16_values(stored) * rounded[:, None])
    quants, weight_scales = quants_and_scales(stored, weight_format)
    activations, scales = quantize_activations(rows)
    dots = block_dots(quants, activations).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return accumulate(dots * (weight_scales[None] * scales[:, None]))


def _check_finite(rows: NDArray[np.float32]) -> None:
    if not np.isfinite(rows).all():
        raise ValueError("activations: a value is not finite")
