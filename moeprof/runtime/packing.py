"""From an expert's parameters, as its module lays them out, to the packed bytes of the kernels."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeprof.checkpoint.packed_shape import PackableExperts
from moeprof.native import Workers, quantize_expert
from moeprof.runtime.kernel_call import ELEMENT_NAMES


class ExpertPacker(PackableExperts):
    """Packs the experts of one layer."""

    __slots__ = ()

    def pack(
        self, values: Mapping[str, Tensor], packed: NDArray[np.uint8], workers: Workers
    ) -> None:
        """Quantise and pack one expert.

        Args:
            values: its parameters in the module's layout, in any floating type.
            packed: [shape.num_bytes] uint8, written.
            workers: threads that share the work.

        Raises:
            ValueError: a parameter is missing or unknown, has another shape, or holds a value
                that the format cannot.
        """
        names = self.layout.parameter_names
        if set(values) != set(names):
            raise ValueError(f"expected parameters {sorted(names)}, got {sorted(values)}")
        hidden, width = self.shape.hidden_size, self.width
        gate_up = self._matrix(names[0], values, (2 * width, hidden))
        down = self._matrix(names[1], values, (hidden, width))
        gate, up = self._halves(gate_up)
        matrices = [self._fill(gate, 0), self._fill(up, 0), self._fill(down, 1)]
        biases = self._biases(values)
        kind = _common_type([*matrices, *biases])
        gate, up, down = (matrix.to(kind).contiguous() for matrix in matrices)
        biases = [bias.to(kind).contiguous() for bias in biases]
        quantize_expert(
            gate.data_ptr(),
            up.data_ptr(),
            down.data_ptr(),
            ELEMENT_NAMES[kind],
            hidden,
            self.shape.width,
            self.shape.weight_format,
            packed,
            workers,
            _addresses(biases),
        )

    def _matrix(self, name: str, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """A matrix as [out, in]."""
        matrix = values[name].T if self.layout.is_transposed else values[name]
        if tuple(matrix.shape) != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(matrix.shape)}")
        return matrix

    def _halves(self, gate_up: Tensor) -> tuple[Tensor, Tensor]:
        if self.gating.is_interleaved:
            return gate_up[::2], gate_up[1::2]
        return gate_up[: self.width], gate_up[self.width :]

    def _fill(self, matrix: Tensor, axis: int) -> Tensor:
        """Zeros up to the packed width: their products are zeros, so that no result changes."""
        missing = self.shape.width - self.width
        if not missing:
            return matrix
        size = list(matrix.shape)
        size[axis] = missing
        return torch.cat([matrix, matrix.new_zeros(size)], axis)

    def _biases(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Those of gate, up and down; none where there are none."""
        if not self.layout.has_bias:
            return []
        first, second = (f"{name}_bias" for name in self.layout.parameter_names[:2])
        gate, up = self._halves(values[first])
        return [self._fill(gate, 0), self._fill(up, 0), values[second]]


def _addresses(biases: list[Tensor]) -> tuple[int, int, int] | None:
    if not biases:
        return None
    gate, up, down = (bias.data_ptr() for bias in biases)
    return gate, up, down


def _common_type(values: list[Tensor]) -> torch.dtype:
    """The type to quantise from: that of all values if the kernel reads it, else float32."""
    kinds = {value.dtype for value in values}
    only = next(iter(kinds))
    return only if len(kinds) == 1 and only in ELEMENT_NAMES else torch.float32
