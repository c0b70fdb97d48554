"""Weights as a checkpoint stores them: plain, or as small values with a scale for each block.

Formats that are read: FP8 with block scales (DeepSeek-V3 technical report, section 3.3, and the
`weight_scale_inv` tensors of its checkpoints; the Qwen3 FP8 checkpoints are of the same kind), the
same with E2M1 values, two to a byte (DeepSeek-V4), and MXFP4 (OCP Microscaling Formats 1.0,
sections 5.3.3 and 6.3) as gpt-oss stores it. Scales that are bytes are powers of two, E8M0.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from moeprof.checkpoint.headers import TensorEntry
from moeprof.checkpoint.quantization import Quantization
from moeprof.errors import UnsupportedModelError

# E2M1, one sign bit, two of exponent, one of mantissa; Microscaling Formats 1.0, table 5.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E8M0_BIAS = 127
_BLOCKS, _BLOCK_SCALES = "_blocks", "_scales"

# (end of a weight's name, end of its scales' name): DeepSeek-V3 and Qwen3, DeepSeek-V4, Mistral
# Large 4; then for stacked experts, whose names have no `.weight`.
_SCALE_NAMES = (
    (".weight", ".weight_scale_inv"),
    (".weight", ".scale"),
    (".weight", ".qscale_weight"),
    ("", "_scale_inv"),
    ("", "_scale"),
)

_FP8 = ("F8_E4M3", "F8_E5M2")
_COPY_AGAIN = "copy or download the checkpoint again"

_TORCH_NAMES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One weight of a model as its checkpoint stores it.

    Attributes:
        name: of the weight, without the endings of the tensors that hold it.
        values: its elements.
        scales: of its blocks; None for a plain tensor.
        block: rows and columns of a block where the config says so; None for the size that
            follows from the number of scales.
        dtype: element type, in torch's spelling where it has one; `mxfp4` for that format.
    """

    name: str
    values: TensorEntry
    scales: TensorEntry | None
    block: tuple[int, int] | None
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes as stored, scales included."""
        return self.values.num_bytes + (0 if self.scales is None else self.scales.num_bytes)

    @property
    def num_weights(self) -> int:
        """Elements of the weight."""
        packed = self.dtype in ("mxfp4", "float4_e2m1")
        return math.prod(self.values.shape) * (2 if packed else 1)

    @property
    def has_scales_by_expert(self) -> bool:
        """Whether the scales of a stack of experts are a stack, too."""
        if self.scales is None or not self.scales.shape:
            return False
        return len(self.values.shape) > 2 and self.scales.shape[0] == self.values.shape[0]

    def decode(self, values: Tensor, scales: Tensor | None) -> Tensor:
        """The weight, from its tensors or, of a stack of experts, from the same rows of both.

        Args:
            values: as stored.
            scales: as stored; None for a plain tensor.

        Returns:
            the values of a plain tensor; else each times its block's scale, in float32 (FP8:
            rounded once) or bfloat16 (MXFP4: exact).

        Raises:
            UnsupportedModelError: the scales do not fit the values.
        """
        if scales is None:
            return values
        if self.dtype == "mxfp4":
            return _decode_mxfp4(self.name, values, scales)
        plain = unpack_e2m1(values) if self.dtype == "float4_e2m1" else values.to(torch.float32)
        return _scale_blocks(self.name, plain, _as_float32(scales), self.block)


def plain_tensor(entry: TensorEntry) -> StoredTensor:
    """A tensor that is stored as it is used."""
    dtype = _TORCH_NAMES.get(entry.dtype, entry.dtype.lower())
    return StoredTensor(entry.name, entry, None, None, dtype)


def stored_tensors(
    entries: Iterable[TensorEntry], quantization: Quantization | None
) -> tuple[StoredTensor, ...]:
    """The weights of a checkpoint: each quantised one with its scales, the others as they are.

    Args:
        entries: what the safetensors headers list.
        quantization: what config.json says; None for plain weights.

    Raises:
        UnsupportedModelError: quantised values have no scales.
    """
    by_name = {entry.name: entry for entry in entries}
    if quantization is None:
        return tuple(plain_tensor(entry) for entry in by_name.values())
    found, used = [], set()
    for entry in by_name.values():
        scaled = _scaled(entry, by_name, quantization)
        if scaled is not None:
            assert scaled.scales is not None
            found.append(scaled)
            used |= {entry.name, scaled.scales.name}
    plain = [entry for entry in by_name.values() if entry.name not in used]
    for entry in plain:
        if entry.dtype in _FP8:
            raise _no_scales(entry, f"{entry.name}_scale_inv")
    return (*found, *map(plain_tensor, plain))


def _no_scales(entry: TensorEntry, expected: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{entry.file}: {entry.name!r} has no scales, expected {expected!r}", _COPY_AGAIN
    )


def _scaled(
    entry: TensorEntry, by_name: dict[str, TensorEntry], quantization: Quantization
) -> StoredTensor | None:
    """The weight whose values are in this tensor; None for a plain one and for scales."""
    if quantization.method == "mxfp4":
        if not entry.name.endswith(_BLOCKS):
            return None
        name = entry.name.removesuffix(_BLOCKS)
        scales = by_name.get(name + _BLOCK_SCALES)
        if scales is None:
            raise _no_scales(entry, name + _BLOCK_SCALES)
        return StoredTensor(name, entry, scales, None, "mxfp4")
    for ending, scale_ending in _SCALE_NAMES:
        if entry.name.endswith(ending):
            scales = by_name.get(entry.name.removesuffix(ending) + scale_ending)
            if scales is not None:
                return StoredTensor(
                    entry.name, entry, scales, quantization.block, _scaled_dtype(entry)
                )
    return None


def _scaled_dtype(entry: TensorEntry) -> str:
    if entry.dtype in ("I8", "U8"):
        return "float4_e2m1"
    if entry.dtype not in _FP8:
        raise UnsupportedModelError(
            f"{entry.file}: {entry.name!r} has scales and is of type {entry.dtype}, expected "
            "F8_E4M3, F8_E5M2, or I8 for two E2M1 values to a byte",
            "use the checkpoint with bfloat16 weights",
        )
    return _TORCH_NAMES[entry.dtype]


def _as_float32(scales: Tensor) -> Tensor:
    if scales.dtype == torch.uint8:
        return torch.exp2(scales.to(torch.float32) - _E8M0_BIAS)
    return scales.to(torch.float32)


def unpack_e2m1(packed: Tensor) -> Tensor:
    """Two E2M1 values from each byte, the low four bits first.

    Args:
        packed: [..., n], one byte each.

    Returns:
        [..., 2 n] float32.
    """
    magnitudes = torch.tensor(_E2M1, dtype=torch.float32)
    table = torch.cat([magnitudes, -magnitudes])
    pairs = torch.stack([table.repeat(16), table.repeat_interleave(16)], dim=1)  # [256, 2]
    index = packed.view(torch.uint8).to(torch.int32)
    return torch.nn.functional.embedding(index, pairs).flatten(-2)


def _decode_mxfp4(name: str, blocks: Tensor, scales: Tensor) -> Tensor:
    """[..., rows, groups, 16] bytes and [..., rows, groups] exponents -> [..., columns, rows].

    gpt-oss computes with the transposed matrix of the one it stores.
    """
    if blocks.shape[:-1] != scales.shape:
        raise UnsupportedModelError(
            f"{name}: blocks of shape {list(blocks.shape)} have scales of shape "
            f"{list(scales.shape)}, expected {list(blocks.shape[:-1])}",
            _COPY_AGAIN,
        )
    values = unpack_e2m1(blocks)
    values.mul_(_as_float32(scales)[..., None])
    return values.flatten(-2).to(torch.bfloat16).transpose(-1, -2)


def _scale_blocks(
    name: str, values: Tensor, scales: Tensor, block: tuple[int, int] | None
) -> Tensor:
    """Multiply each block of the last two dimensions by its scale, in place.

    A last block of a row or column may be short. Where the block size of the config does not give
    this number of scales (other formats within one checkpoint), blocks are of equal size.
    """
    if scales.numel() == 1:
        return values.mul_(scales.reshape(()))
    sizes, counts = values.shape[-2:], scales.shape[-2:]
    fits = len(counts) == 2 and (values.shape[:-2] == scales.shape[:-2])
    if fits and block is not None and counts == _num_blocks(sizes, block):
        rows, columns = block
    elif fits and not any(size % count for size, count in zip(sizes, counts, strict=True)):
        rows, columns = (size // count for size, count in zip(sizes, counts, strict=True))
    else:
        raise UnsupportedModelError(
            f"{name}: a weight of shape {list(values.shape)} has scales of shape "
            f"{list(scales.shape)}" + (f", its blocks are {list(block)}" if block else ""),
            _COPY_AGAIN,
        )
    for first in range(counts[0]):
        strip = values[..., first * rows : (first + 1) * rows, :]
        by_column = scales[..., first, :].repeat_interleave(columns, dim=-1)
        strip.mul_(by_column[..., None, : sizes[1]])
    return values


def _num_blocks(sizes: torch.Size, block: tuple[int, int]) -> torch.Size:
    return torch.Size(-(-size // length) for size, length in zip(sizes, block, strict=True))
