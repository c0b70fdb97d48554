"""The order of the bytes of packed weights, which serve both devices.

Rows are packed in quads of four; a last quad is filled up with stored rows of zero bytes. Within a
quad one stream is read from front to back:

- Block formats: the row's blocks in groups of 8; the last group has what is left, b <= 8 blocks.
  A group is its float16 scales [4 rows, b], then its 4-byte words [words per block, 4 rows, b].
  Word k of a `q8_0` block is its bytes 4 k to 4 k + 3, each XOR 128 (value + 128, unsigned);
  word k of a `q4_0` block is its bytes as ggml stores them. So lane j of eight holds block j, and
  the words of a group of 8 are eight lanes for each of four rows: 128 bytes.
- `bf16`: 16 values of a row are 8 words, word j with value j in its lower half and value j + 8 in
  its upper one; the words stand as [row_size / 16, 4 rows, 8].

A quad is filled up with zero bytes to a multiple of 64, so that every full group begins on a cache
line. An expert is one run of bytes: a quad of gate, the same quad of up, the next of gate, and so
on; then the quads of down; then, if it has biases, those of gate, up and down as float32, filled
up to a multiple of 64.
"""

import numpy as np
from numpy.typing import NDArray

from moeprof.native.reference.experts import ExpertWeights
from moeprof.native.reference.formats import BLOCK_BYTES, BLOCK_SIZE, check_format, check_row_size

QUAD = 4
GROUP = 8
LINE = 64


def quad_bytes(row_size: int, weight_format: str) -> int:
    """Bytes of four packed rows."""
    check_format(weight_format)
    check_row_size(row_size)
    return _padded(QUAD * (row_size // BLOCK_SIZE) * BLOCK_BYTES[weight_format])


def expert_bytes(hidden_size: int, width: int, weight_format: str, has_biases: bool) -> int:
    """Bytes of one packed expert, gate, up, down and biases."""
    weights = 2 * _quads(width) * quad_bytes(hidden_size, weight_format)
    weights += _quads(hidden_size) * quad_bytes(width, weight_format)
    return weights + (_padded(4 * (2 * width + hidden_size)) if has_biases else 0)


def pack_rows(stored: NDArray[np.uint8], weight_format: str) -> NDArray[np.uint8]:
    """Rows in the packed order.

    Args:
        stored: [num_rows, num_blocks * BLOCK_BYTES[weight_format]] uint8.
        weight_format: "q8_0", "q4_0" or "bf16".

    Returns:
        [num_quads, quad_bytes] uint8.
    """
    num_quads, row_bytes = _quads(stored.shape[0]), stored.shape[1]
    row_size = row_bytes // BLOCK_BYTES[weight_format] * BLOCK_SIZE
    rows = np.zeros((num_quads * QUAD, row_bytes), np.uint8)
    rows[: stored.shape[0]] = stored
    if weight_format == "q8_0":
        rows.reshape(-1, BLOCK_BYTES["q8_0"])[:, 2:] ^= 128
    places = _places(row_bytes, weight_format)
    packed = np.zeros((num_quads, quad_bytes(row_size, weight_format)), np.uint8)
    packed[:, : places.size] = rows.reshape(num_quads, QUAD * row_bytes)[:, places]
    return packed


def unpack_rows(
    packed: NDArray[np.uint8], num_rows: int, row_size: int, weight_format: str
) -> NDArray[np.uint8]:
    """The inverse of `pack_rows`.

    Returns:
        [num_rows, row_size / 32 * BLOCK_BYTES[weight_format]] uint8.
    """
    row_bytes = row_size // BLOCK_SIZE * BLOCK_BYTES[weight_format]
    places = _places(row_bytes, weight_format)
    quads = np.zeros((len(packed), QUAD * row_bytes), np.uint8)
    quads[:, places] = packed[:, : places.size]
    rows = quads.reshape(-1, row_bytes)[:num_rows]
    if weight_format == "q8_0":
        rows.reshape(-1, BLOCK_BYTES["q8_0"])[:, 2:] ^= 128
    return rows


def pack_expert(expert: ExpertWeights) -> NDArray[np.uint8]:
    """[expert_bytes] uint8, the order that the module's docstring states."""
    gate_up = [pack_rows(rows, expert.weight_format) for rows in (expert.gate, expert.up)]
    parts = [np.stack(gate_up, axis=1), pack_rows(expert.down, expert.weight_format)]
    biases = (expert.gate_bias, expert.up_bias, expert.down_bias)
    flat = np.concatenate(
        [bias for bias in biases if bias is not None] or [np.zeros(0, np.float32)]
    )
    padded = np.zeros(_padded(4 * flat.size) // 4, "<f4")
    padded[: flat.size] = flat
    return np.concatenate([*(part.ravel() for part in parts), padded.view(np.uint8)])


def xor_words(packed: NDArray[np.uint8]) -> int:
    """XOR of the little-endian 64-bit words of [n] uint8, a last one filled up with zeros."""
    words = np.zeros(-(-packed.size // 8), "<u8")
    words.view(np.uint8)[: packed.size] = packed
    return int(np.bitwise_xor.reduce(words))


def _places(row_bytes: int, weight_format: str) -> NDArray[np.int64]:
    """Where each packed byte of a quad comes from, as an index into its four stored rows."""
    places = np.arange(QUAD * row_bytes, dtype=np.int64)
    if weight_format == "bf16":
        halves = places.reshape(QUAD, -1, 2, GROUP, 2)  # [row, chunk, half, lane, byte]
        return halves.transpose(1, 0, 3, 2, 4).ravel()
    blocks = places.reshape(QUAD, -1, BLOCK_BYTES[weight_format])
    parts = []
    for start in range(0, blocks.shape[1], GROUP):
        group = blocks[:, start : start + GROUP]
        words = group[..., 2:].reshape(QUAD, group.shape[1], -1, 4)
        parts += [group[..., :2].ravel(), words.transpose(2, 0, 1, 3).ravel()]
    return np.concatenate(parts)


def _quads(num_rows: int) -> int:
    return -(-num_rows // QUAD)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // LINE) * LINE
