"""Stored formats of weights: ggml's `q8_0` and `q4_0` blocks, and `bf16`.

A stored row is uint8, its blocks of 32 consecutive values one after the other:

- `q8_0`: a float16 scale, then 32 int8; value = q * scale;
- `q4_0`: a float16 scale, then 16 bytes, byte i holding value i in its low nibble and value i + 16
  in its high one; value = (nibble - 8) * scale;
- `bf16`: 32 little-endian uint16, the upper halves of float32.

Source: ggml's public block formats (ggml-common.h); the `gguf` package's numpy quantizer is the
oracle of the tests.
"""

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 32
BLOCK_BYTES = {"q8_0": 34, "q4_0": 18, "bf16": 64}

_LARGEST_SCALE = 65519.99  # the next float32 values round to infinity in float16


def quantize(values: NDArray[np.float32], weight_format: str) -> NDArray[np.uint8]:
    """Weights in a stored format.

    `q8_0`: d = max|x| / 127; q = x * (1 / d), rounded half away from zero. `q4_0`: m = the value
    of largest magnitude, the first of equals; d = m / -8; q = x * (1 / d) + 8.5, truncated and
    clipped to [0, 15]. d is stored as float16. Where d is 0, or so small that 1 / d is infinite,
    1 / d is taken as 0. `bf16`: rounded half to even.

    Args:
        values: [..., row_size] float32, `row_size` a multiple of 32.
        weight_format: "q8_0", "q4_0" or "bf16".

    Returns:
        [..., row_size / 32 * BLOCK_BYTES[weight_format]] uint8.

    Raises:
        ValueError: a value is not finite, a scale overflows float16 (or a value bf16), the format
            is unknown, or `row_size` is not a multiple of 32.
    """
    check_format(weight_format)
    check_row_size(values.shape[-1])
    if not np.isfinite(values).all():
        raise ValueError("weights: a value is not finite")
    blocks = values.reshape(-1, BLOCK_SIZE)
    stored = {"q8_0": _q8_0, "q4_0": _q4_0, "bf16": _bf16}[weight_format](blocks)
    num_blocks = values.shape[-1] // BLOCK_SIZE
    return stored.reshape(*values.shape[:-1], num_blocks * BLOCK_BYTES[weight_format])


def dequantize(stored: NDArray[np.uint8], weight_format: str) -> NDArray[np.float32]:
    """The values that stored weights stand for; each product is exact in float32.

    Args:
        stored: [..., num_blocks * BLOCK_BYTES[weight_format]] uint8.
        weight_format: "q8_0", "q4_0" or "bf16".

    Returns:
        [..., num_blocks * 32] float32.
    """
    if weight_format == "bf16":
        return bf16_values(stored)
    quants, scales = quants_and_scales(stored, weight_format)
    values = quants.astype(np.float32) * scales[..., None]
    return values.reshape(*stored.shape[:-1], quants.shape[-2] * BLOCK_SIZE)


def quants_and_scales(
    stored: NDArray[np.uint8], weight_format: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Signed integers and float32 scales of a block format.

    Args:
        stored: [..., num_blocks * BLOCK_BYTES[weight_format]] uint8.
        weight_format: "q8_0" or "q4_0".

    Returns:
        [..., num_blocks, 32] int8 and [..., num_blocks] float32.
    """
    block_bytes = BLOCK_BYTES[weight_format]
    blocks = stored.reshape(*stored.shape[:-1], stored.shape[-1] // block_bytes, block_bytes)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
    if weight_format == "q8_0":
        return np.ascontiguousarray(blocks[..., 2:]).view(np.int8), scales
    nibbles = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    return nibbles.astype(np.int8) - np.int8(8), scales


def bf16_values(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[..., n] float32 of [..., 2 n] uint8 in `bf16`."""
    halves = np.ascontiguousarray(stored).view("<u2").astype(np.uint32)
    values: NDArray[np.float32] = (halves << np.uint32(16)).view(np.float32)
    return values


def round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nearest bf16 values, half to even, as float32; finite values may become infinite."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    nearest: NDArray[np.float32] = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    return nearest


def check_format(weight_format: str) -> None:
    """Raise ValueError for an unknown format."""
    if weight_format not in BLOCK_BYTES:
        expected = ", ".join(BLOCK_BYTES)
        raise ValueError(f"weight format: {weight_format!r}, expected one of {expected}")


def check_row_size(row_size: int) -> None:
    """Raise ValueError unless rows divide into blocks."""
    if row_size % BLOCK_SIZE:
        raise ValueError(f"row size: {row_size}, expected a multiple of {BLOCK_SIZE}")


def _scales(scales: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    if (np.abs(scales) > _LARGEST_SCALE).any():
        raise ValueError("weights: a block's scale overflows float16")
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    inverse = np.where(np.isinf(inverse), np.float32(0), inverse)
    return scales.astype("<f2").view(np.uint8), inverse


def _q8_0(blocks: NDArray[np.float32]) -> NDArray[np.uint8]:
    scales, inverse = _scales(np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127))
    scaled = blocks * inverse
    magnitude = np.floor(np.abs(scaled))
    magnitude += np.abs(scaled) - magnitude >= 0.5
    quants = np.copysign(magnitude, scaled).astype(np.int8)
    return np.concatenate([scales, quants.view(np.uint8)], axis=1)


def _q4_0(blocks: NDArray[np.float32]) -> NDArray[np.uint8]:
    largest = np.abs(blocks).argmax(axis=1, keepdims=True)
    scales, inverse = _scales(np.take_along_axis(blocks, largest, axis=1) / np.float32(-8))
    nibbles = np.trunc(blocks * inverse + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    return np.concatenate([scales, nibbles[:, :16] | nibbles[:, 16:] << 4], axis=1)


def _bf16(blocks: NDArray[np.float32]) -> NDArray[np.uint8]:
    rounded = round_to_bf16(blocks)
    if not np.isfinite(rounded).all():
        raise ValueError("weights: a value overflows bf16")
    halves = (rounded.view(np.uint32) >> np.uint32(16)).astype("<u2")
    return halves.view(np.uint8)
