"""Experts in host memory as a prefill on a CUDA device uses them: copied there, or computed here.

A prefill uses almost every expert of a layer, so those in host memory are brought to the device,
the busiest first, while the workers compute the others; the device decides layer by layer with
costs measured here. Values do not depend on who computes them: `bf16`, whose sums depend on the
device, is always copied.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeprof.native import NO_EXPERT, ExpertLayer, PrefillAnswerer, Workers
from moeprof.units import format_size

if TYPE_CHECKING:
    from moeprof.native import _cuda
    from moeprof.runtime.device_experts import DeviceExperts

_MEASURED_LAYERS = 3
_MEASURED_EXPERTS = 8
_MEASURED_TOKENS = 64  # of an expert


@dataclass(frozen=True, slots=True)
class PrefillCosts:
    """What an expert in host memory costs a prefill, in nanoseconds.

    Attributes:
        copy_ns: of bringing it to the device.
        host_ns: of reading it here.
        host_token_ns: of computing one of its tokens here, besides.
    """

    copy_ns: float
    host_ns: float
    host_token_ns: float


@dataclass(frozen=True, slots=True)
class HostLayer:
    """One layer on the device and on the host.

    Attributes:
        on_device: computes it; none of its slots is told yet.
        kernel: of the CPU.
        experts: views of what lies in host memory, [bytes of a packed expert] uint8; None for
            experts that are elsewhere.
    """

    on_device: "DeviceExperts"
    kernel: ExpertLayer
    experts: Sequence[Tensor | None]

    @property
    def held(self) -> list[int]:
        """Ids of the experts in host memory."""
        return [expert for expert, place in enumerate(self.experts) if place is not None]


class HostLink:
    """The host's part in the prefills of a model.

    Attributes:
        notes: sentences on what prefills do without, and why.

    Args:
        memory: [n] uint8, the experts in host memory.
        is_exact: whether the host computes the very bits of the device.
    """

    def __init__(self, memory: Tensor, is_exact: bool) -> None:
        from moeprof.native import _cuda

        self.notes: tuple[str, ...] = ()
        self._is_exact = is_exact
        self._offset: int | None = None
        try:
            pin = _cuda.HostPin(memory, memory.data_ptr(), memory.nbytes)
        except RuntimeError as error:
            self.notes = (
                f"{format_size(memory.nbytes)} of experts in RAM cannot be pinned ({error}), so "
                "the processor computes all of them in a prefill, which may be slower",
            )
        else:
            self._pin = pin
            self._offset = pin.device_address - memory.data_ptr()

    def connect(
        self, layers: Sequence[HostLayer], exchange: "_cuda.Exchange", workers: Workers
    ) -> None:
        """Tell every layer where its experts are and who computes them, and measure the costs.

        Args:
            layers: all layers of the model, in order.
            exchange: where faults are told.
            workers: threads that compute experts.
        """
        for layer in layers:
            layer.on_device.set_host(self._addresses(layer), None, PrefillCosts(1.0, 1.0, 1.0))
        costs = PrefillCosts(1.0, 1.0, 1.0)
        room = None
        if self._is_exact or self._offset is None:
            room = self._make_room(layers, exchange, workers)
        if room is not None and self._offset is not None:
            largest = sorted(layers, key=lambda layer: -len(layer.held))[:_MEASURED_LAYERS]
            largest = [layer for layer in largest if layer.held]
            shape = (exchange.hidden_size, exchange.top_k)
            costs = PrefillCosts(measure_copies(largest), *measure_host(largest, workers, shape))
        for layer in layers:
            layer.on_device.set_host(self._addresses(layer), room, costs)

    def _make_room(
        self, layers: Sequence[HostLayer], exchange: "_cuda.Exchange", workers: Workers
    ) -> "_cuda.HostRoom":
        from moeprof.native import _cuda

        answerer = PrefillAnswerer(exchange.address, workers)
        for row, layer in enumerate(layers):
            answerer.set_layer(row, layer.kernel)
        sizes = (exchange.hidden_size, exchange.top_k)
        return _cuda.HostRoom(answerer, *sizes, answerer.function, answerer.address)

    def _addresses(self, layer: HostLayer) -> NDArray[np.int64]:
        """[E] int64: where the device sees each expert's packed bytes, 0 where it does not."""
        offset = self._offset
        if offset is None:
            return np.zeros(len(layer.experts), np.int64)
        found = [0 if e is None else e.data_ptr() + offset for e in layer.experts]
        return np.array(found, np.int64)


def measure_host(
    layers: Sequence[HostLayer], workers: Workers, shape: tuple[int, int]
) -> tuple[float, float]:
    """Nanoseconds of an expert, and of one of its tokens besides, computed by the workers.

    Args:
        layers: with experts in host memory.
        workers: threads that compute.
        shape: hidden size and experts per token.
    """
    most = _MEASURED_EXPERTS * _MEASURED_TOKENS
    rows = np.zeros((most, shape[0]), np.float32)
    outputs = np.zeros((most, *shape[::-1]), np.float32)
    outputs[:] = 1  # pages that nobody wrote before would be measured, too

    def run(kernel: ExpertLayer, experts: Sequence[int], num_tokens: int) -> float:
        ids = np.full((num_tokens * len(experts), shape[1]), NO_EXPERT, np.uint16)
        ids[:, 0] = np.repeat(np.array(experts, np.uint16), num_tokens)
        addresses = (ids.ctypes.data, len(ids), outputs.ctypes.data)
        begun = time.perf_counter_ns()
        kernel.prefill_slots(workers, rows.ctypes.data, "float32", *addresses)
        return time.perf_counter_ns() - begun

    fixed, per_token = [], []
    for layer in layers:
        one, some, many = _groups(layer.held)
        run(layer.kernel, many, _MEASURED_TOKENS)  # wakes the workers, makes room
        few = run(layer.kernel, one, 1)
        expert = _slope(few, len(one), run(layer.kernel, some, 1), len(some))
        whole = run(layer.kernel, many, _MEASURED_TOKENS) / len(many)
        fixed.append(expert)
        per_token.append(max(whole - expert, 0.0) / _MEASURED_TOKENS)
    return statistics.median(fixed), statistics.median(per_token)


def measure_copies(layers: Sequence[HostLayer]) -> float:
    """Nanoseconds of bringing an expert to the device and computing it there.

    Args:
        layers: with experts in host memory, all of which are copied where they are used.
    """

    def run(layer: "DeviceExperts", experts: Sequence[int]) -> float:
        ids = torch.tensor(experts, device=layer.device)
        torch.cuda.synchronize(layer.device)
        begun = time.perf_counter_ns()
        layer.compute_one_each(ids)
        torch.cuda.synchronize(layer.device)
        return time.perf_counter_ns() - begun

    found = []
    for layer in layers:
        one, some, _ = _groups(layer.held)
        run(layer.on_device, some)  # loads the kernels
        few = run(layer.on_device, one)
        found.append(_slope(few, len(one), run(layer.on_device, some), len(some)))
    return statistics.median(found)


def _groups(held: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """One expert, and twice several; others each time where there are enough."""
    size = max(1, min(_MEASURED_EXPERTS, (len(held) - 1) // 2))
    return held[:1], held[-size:], held[1 : 1 + size] or held[:1]


def _slope(time: float, count: int, longer: float, more: int) -> float:
    """Time for each one more, or the whole of it where there are no more."""
    return max((longer - time) / (more - count) if more > count else longer / more, 1.0)
