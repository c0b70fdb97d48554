"""Linear layers outside the experts in `q8_0`, quantised while a model is loaded."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moeprof.checkpoint.dense_layers import DEQUANTIZED_VALUES, quantizable_linears
from moeprof.checkpoint.modules import ExpertsModule
from moeprof.errors import UnsupportedModelError
from moeprof.native import HostMemory, Workers, multiply_packed, quantize_matrix, unpack_rows
from moeprof.native.reference import BLOCK_BYTES, BLOCK_SIZE
from moeprof.native.reference.layout import QUAD, quad_bytes
from moeprof.runtime.dense_ops import HAS_KERNELS, q8_row_products, q8_values
from moeprof.runtime.kernel_call import ELEMENT_NAMES, OVERFLOWED

_FORMAT = "q8_0"
_SCALE_BYTES = 2
_SIGN = 128


class HostQ8Linear(nn.Module):
    """A linear layer of the host: packed weights, multiplied by the CPU kernels.

    As for experts, rows are quantised to int8 in blocks; the definition is `project` in
    `native/reference`. Few rows or many, the bits are the same.

    Attributes:
        in_features: K, a multiple of 32.
        out_features: N, a multiple of 32.

    Args:
        linear: the layer, in host memory.
        memory: [`packed_bytes` of it] uint8 on a cache line, to be filled.
        workers: threads that compute.
        name: of the layer, for errors.

    Raises:
        ValueError: `q8_0` cannot hold a weight.
    """

    def __init__(self, linear: nn.Linear, memory: Tensor, workers: Workers, name: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._dtype = linear.weight.dtype
        self._workers = workers
        self._name = name
        packed = _pack(linear.weight, memory, workers)
        self.packed = nn.Parameter(packed, requires_grad=False)
        bias = None if linear.bias is None else linear.bias.to(torch.float32)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """[N, K] in the model's type: what the weights stand for, made anew each time."""
        return q8_values(*_planes(self.packed, self.out_features)).to(self._dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's product with the last dimension, K, of `input`.

        Raises:
            UnsupportedModelError: activations overflowed.
        """
        rows = input.reshape(-1, self.in_features).contiguous()
        output = rows.new_empty((len(rows), self.out_features))
        if len(rows):
            try:
                multiply_packed(
                    self._workers,
                    self.packed.data_ptr(),
                    0 if self.bias is None else self.bias.data_ptr(),
                    self.out_features,
                    self.in_features,
                    _FORMAT,
                    rows.data_ptr(),
                    ELEMENT_NAMES[rows.dtype],
                    len(rows),
                    output.data_ptr(),
                )
            except ValueError as error:
                raise UnsupportedModelError(
                    f"{self._name}: cannot be computed ({error})",
                    OVERFLOWED,
                ) from error
        return output.view(*input.shape[:-1], self.out_features)


class DeviceQ8Linear(nn.Module):
    """A linear layer of a device: one row goes through our kernel, many through torch.

    The kernel sums in float32; for many rows the weights are made anew in the model's type.

    Attributes:
        in_features: K, a multiple of 32.
        out_features: N, a multiple of 32.

    Args:
        linear: the layer, in host memory, as the new one is until it is moved.
        workers: threads that quantise.

    Raises:
        ValueError: `q8_0` cannot hold a weight.
    """

    def __init__(self, linear: nn.Linear, workers: Workers) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._dtype = linear.weight.dtype
        memory = torch.empty(packed_bytes(linear), dtype=torch.uint8)
        quants, scales = _planes(_pack(linear.weight, memory, workers), self.out_features)
        self.quants = nn.Parameter(quants, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """[N, K] in the model's type: what the weights stand for, made anew each time."""
        return q8_values(self.quants, self.scales).to(self._dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's product with the last dimension, K, of `input`."""
        if input.numel() == self.in_features:
            row = input.contiguous()
            product: Tensor = q8_row_products(row, [self.quants], [self.scales], [self.bias])[0]
            return product
        parts = []
        num_rows = max(1, DEQUANTIZED_VALUES // self.in_features)
        for at in range(0, self.out_features, num_rows):
            end = at + num_rows
            weight = q8_values(self.quants[at:end], self.scales[at:end]).to(input.dtype)
            bias = None if self.bias is None else self.bias[at:end]
            parts.append(nn.functional.linear(input, weight, bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def quantize_dense(
    model: PreTrainedModel, modules: list[ExpertsModule], device: torch.device, workers: Workers
) -> None:
    """Turn the linear layers outside the experts into `q8_0`, one by one, in host memory.

    Which ones: see `quantizable_linears`.

    Args:
        model: in host memory.
        modules: its experts modules.
        device: that it will run on.
        workers: threads that quantise, and on the host compute.

    Raises:
        UnsupportedModelError: a weight cannot be held, or the device has no kernel.
    """
    is_host = device.type == "cpu"
    if not is_host and not HAS_KERNELS:
        raise UnsupportedModelError(
            f"weights outside the experts in {_FORMAT} on {device}: moeprof was built without a "
            "CUDA compiler",
            "install moeprof with nvcc on the PATH, or use --dense-format stored",
        )
    linears = quantizable_linears(model, modules)
    needed = sum(map(packed_bytes, linears.values())) if is_host else 0
    left = torch.from_numpy(HostMemory(max(needed, 1)).array())
    for name in list(linears):
        linear = linears.pop(name)  # of each, nothing is kept once it is turned
        size = packed_bytes(linear)
        made: nn.Module
        try:
            if is_host:
                made, left = HostQ8Linear(linear, left[:size], workers, name), left[size:]
            else:
                made = DeviceQ8Linear(linear, workers)
        except ValueError as error:
            raise UnsupportedModelError(
                f"{name}: cannot be kept in {_FORMAT} ({error})", "use --dense-format stored"
            ) from error
        model.set_submodule(name, made)


def packed_bytes(linear: nn.Linear) -> int:
    """Bytes of a layer's matrix as the kernels of the host read it, a multiple of 64."""
    return linear.out_features // QUAD * quad_bytes(linear.in_features, _FORMAT)


def _pack(weight: Tensor, memory: Tensor, workers: Workers) -> Tensor:
    """[quads, quad_bytes] uint8 in `memory`: a matrix as the kernels of the host read it."""
    rows, columns = weight.shape
    values = weight.detach().contiguous()
    if values.dtype not in ELEMENT_NAMES:
        values = values.to(torch.float32)
    element = ELEMENT_NAMES[values.dtype]
    quantize_matrix(values.data_ptr(), element, rows, columns, _FORMAT, memory.numpy(), workers)
    return memory.view(rows // QUAD, -1)


def _planes(packed: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """The two parts that `q8_row_products` takes, of a packed matrix in host memory."""
    num_blocks = packed.shape[1] // (QUAD * BLOCK_BYTES[_FORMAT])
    stored = unpack_rows(packed.numpy(), num_rows, num_blocks * BLOCK_SIZE, _FORMAT)
    blocks = torch.from_numpy(stored).view(num_rows, num_blocks, BLOCK_BYTES[_FORMAT])
    scales = blocks[..., :_SCALE_BYTES].contiguous().view(torch.float16)[..., 0].contiguous()
    quants = (blocks[..., _SCALE_BYTES:] ^ _SIGN).reshape(num_rows, -1)
    return quants, scales
