"""Computing routed experts on a CUDA device, those in host memory at the same time by the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.library import custom_op

from moeprof.errors import UnsupportedModelError
from moeprof.native import Answerer, ExpertLayer, Workers
from moeprof.native.cuda import check_faults, unavailable
from moeprof.runtime.host_link import PrefillCosts
from moeprof.runtime.kernel_call import KernelCall
from moeprof.runtime.layer_times import DeviceClock
from moeprof.runtime.meter import Meter
from moeprof.runtime.packing import ExpertPacker

if TYPE_CHECKING:
    from moeprof.native import _cuda

_LAYERS: "WeakValueDictionary[int, DeviceExperts]" = WeakValueDictionary()
_NUMBERS = count()


class HandOver:
    """What all layers of a model share: the exchange with the host, and who answers there.

    Args:
        packer: of the first layer; all have its hidden size.
        top_k: experts per token.
        workers: threads that compute experts in host memory.
        kernels: the CPU kernel of each layer.
        device: of the experts in VRAM.
        core: processor that the answering thread is pinned to.

    Raises:
        UnsupportedModelError: the kernels cannot run on this device.
    """

    def __init__(
        self,
        packer: ExpertPacker,
        top_k: int,
        workers: Workers,
        kernels: Sequence[ExpertLayer],
        device: torch.device,
        core: int,
    ) -> None:
        reason = unavailable()
        if reason is not None:
            raise UnsupportedModelError(
                f"experts on {device}: {reason}",
                "install moeprof with nvcc on the PATH, or compute with torch: --format stored",
            )
        from moeprof.native import _cuda

        hidden_size = packer.shape.hidden_size
        with torch.cuda.device(device):
            self.exchange = _cuda.Exchange(hidden_size, top_k)
        self._answerer = Answerer(self.exchange.address, hidden_size, top_k, workers, core)
        self._num_layers = len(kernels)
        for index, kernel in enumerate(kernels):
            self._answerer.set_layer(index, kernel)
        self._answerer.start()

    def take_answer_ns(self) -> list[int]:
        """For each layer the nanoseconds that timed questions took the host since the last call."""
        return [self._answerer.take_nanoseconds(index) for index in range(self._num_layers)]

    def check(self) -> None:
        """Raise what went wrong on the device or on the host since the last check.

        Raises:
            NativeError: something did; what was computed since then is of no use.
        """
        check_faults(self.exchange.take_faults())


@dataclass(frozen=True, slots=True)
class Counted:
    """Where layers on a device add up what they do.

    Attributes:
        meter: assignments.
        clock: times of decoding; None where nobody asked.
    """

    meter: Meter
    clock: DeviceClock | None = None

    def addresses(self, row: int) -> tuple[int, int]:
        """Of assignments and reads of a layer in the current forward."""
        return self.meter.device_addresses(row)

    def times_address(self, row: int) -> int:
        """Of a layer's times in the current forward; 0 where it is not timed."""
        return 0 if self.clock is None else self.clock.address(row)


class DeviceExperts:
    """One layer's experts.

    Attributes:
        handle: [] int64 in host memory, by which `experts_op` finds this layer: a value of a
            graph rather than a constant, so that one compiled layer serves all.
        device: of the experts in VRAM.

    Args:
        row: index of the layer in `moe_layers`.
        packer: of the layer's experts.
        num_experts: routed experts (E).
        hand_over: shared by all layers.
        counted: where assignments and times are added up.
        device: of the experts in VRAM.
    """

    def __init__(
        self,
        row: int,
        packer: ExpertPacker,
        num_experts: int,
        hand_over: HandOver,
        counted: Counted,
        device: torch.device,
    ) -> None:
        from moeprof.native import _cuda

        number = next(_NUMBERS)
        self.handle = torch.tensor(number)
        self.device = device
        self._num_experts = num_experts
        self._hidden_size = packer.shape.hidden_size
        self._row = row
        self._counted = counted
        self._hand_over = hand_over
        self._decode_tokens = _cuda.DECODE_TOKENS
        self._slot_of = torch.full((num_experts,), -1, dtype=torch.int32, device=device)
        unit, shape = packer.gating.unit, packer.shape
        with torch.cuda.device(device):
            self._kernel = _cuda.DeviceLayer(
                hand_over.exchange,
                row,
                shape.hidden_size,
                shape.width,
                num_experts,
                hand_over.exchange.top_k,
                shape.weight_format,
                shape.has_biases,
                unit.kind,
                unit.alpha,
                unit.limit,
            )
        # No expert is here yet.
        self._kernel.set_weights(0, 0, self._slot_of.data_ptr(), 0)
        _LAYERS[number] = self

    @property
    def workspace_bytes(self) -> int:
        """Bytes of device memory, zero at first, that layers of a stream may share."""
        return self._kernel.workspace_bytes

    def set_weights(self, packed: Tensor, stride: int, slots: Tensor, workspace: Tensor) -> None:
        """Say where experts in VRAM lie; captured graphs see other slots, but not other memory.

        Args:
            packed: uint8 on the device; slot s begins at byte s * stride.
            stride: bytes from slot to slot.
            slots: [E] int32, the slot of each expert, -1 for those in host memory.
            workspace: uint8 on the device.
        """
        self._slot_of.copy_(slots)
        self._kept = (packed, workspace)
        self._kernel.set_weights(
            packed.data_ptr(), stride, self._slot_of.data_ptr(), workspace.data_ptr()
        )

    def begin_step(self) -> None:
        """Mark on the current stream the moment from which the next timed layer counts."""
        self._kernel.begin_step(torch.cuda.current_stream(self._slot_of.device).cuda_stream)

    def set_host(
        self, addresses: NDArray[np.int64], room: "_cuda.HostRoom | None", costs: PrefillCosts
    ) -> None:
        """Say where experts in host memory lie, and what they cost a prefill.

        Args:
            addresses: [E] int64, of each expert's packed bytes as the device sees them, or 0.
            room: where the host is asked; None for experts that it must not compute.
            costs: of this layer.
        """
        self._addresses = torch.from_numpy(addresses).to(self._slot_of.device)
        self._kernel.set_host(
            self._addresses.data_ptr() if addresses.any() else 0,
            room,
            costs.copy_ns,
            costs.host_ns,
            costs.host_token_ns,
        )

    def compute_one_each(self, ids: Tensor) -> None:
        """A prefill of one token for each expert, not counted and of no use but for its time.

        Args:
            ids: [T] int64 on the device, expert ids.
        """
        top_k = self._hand_over.exchange.top_k
        rows = torch.zeros((len(ids), self._hidden_size), device=ids.device)
        index = torch.full((len(ids), top_k), self._num_experts, device=ids.device)
        index[:, 0] = ids
        self._prefill(KernelCall.of(rows, index, torch.ones_like(index, dtype=rows.dtype)), (0, 0))

    def forward(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        top_k_index: Tensor,
        top_k_weights: Tensor,
    ) -> Tensor:
        """Sum of the chosen experts' outputs, in slot order and in float32, rounded at the end.

        Nothing waits for the device; `HandOver.check` raises what went wrong.
        """
        output: Tensor = experts_op(hidden_states, top_k_index, top_k_weights, self.handle)
        return output

    def launch(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Enqueue the computation on the current stream."""
        call = KernelCall.of(hidden_states, top_k_index, top_k_weights)
        counts = self._counted.addresses(self._row)
        if len(call.rows) > self._decode_tokens:
            self._prefill(call, counts)
            return call.output
        stream = torch.cuda.current_stream(call.rows.device).cuda_stream
        times = self._counted.times_address(self._row)
        self._kernel.forward(stream, *call.arguments(), *counts, nanoseconds=times)
        return call.output

    def _prefill(self, call: KernelCall, counts: tuple[int, int]) -> None:
        size = self._kernel.prefill_workspace_bytes(len(call.rows))
        workspace = torch.empty(size, dtype=torch.uint8, device=call.rows.device)
        stream = torch.cuda.current_stream(call.rows.device).cuda_stream
        self._kernel.prefill(stream, *call.arguments(), workspace.data_ptr(), *counts)


@custom_op("moeprof::experts", mutates_args=())
def experts_op(hidden: Tensor, ids: Tensor, weights: Tensor, handle: Tensor) -> Tensor:
    """The routed experts of one layer, as one operation that compilers leave alone.

    Args:
        hidden: [T, H] on the device.
        ids: [T, K] integer.
        weights: [T, K] floating.
        handle: of the layer's `DeviceExperts`.

    Returns:
        [T, H] in the type of `hidden`.
    """
    return _LAYERS[int(handle)].launch(hidden, ids, weights)


@experts_op.register_fake
def _(hidden: Tensor, ids: Tensor, weights: Tensor, handle: Tensor) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)
