"""The experts of a whole model, split over tiers and ready to be filled and computed."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeprof.checkpoint.modules import ExpertsModule
from moeprof.errors import UnsupportedModelError
from moeprof.model_shape import ModelShape
from moeprof.native import ExpertLayer, Workers
from moeprof.native.cores import physical_cores, resident_workers, seats
from moeprof.placement.tier import Tier
from moeprof.runtime.device_experts import Counted, DeviceExperts, HandOver
from moeprof.runtime.experts import LayerExperts
from moeprof.runtime.formats import STORED
from moeprof.runtime.host_experts import HostExperts, TierTimes
from moeprof.runtime.host_link import HostLayer, HostLink
from moeprof.runtime.layer_times import DeviceClock, LayerClock
from moeprof.runtime.meter import Meter
from moeprof.runtime.packing import ExpertPacker
from moeprof.runtime.stored_experts import StoredExperts
from moeprof.runtime.stores import (
    PackedStore,
    SlotTable,
    Store,
    allocate_packed_stores,
)

_BANDWIDTH_REPEATS = 25


@dataclass(frozen=True, slots=True)
class ExpertsRequest:
    """What is to be split, and how.

    Attributes:
        modules: the experts modules, on the meta device.
        shape: the model's numbers.
        table: which slot of which tier holds each cell.
        device: of the vram tier.
        weight_format: `q8_0`, `q4_0`, `bf16` or `stored`.
        num_threads: threads that compute experts in host memory; None for one per physical core.
        meter: where assignments are counted.
        movable: whether other placements may follow within the same bytes of VRAM; all experts
            are kept in host memory, too.
        timed: whether to add up the time of decoding layer by layer.

    Raises:
        CapacityError: there are fewer processors than threads.
    """

    modules: list[ExpertsModule]
    shape: ModelShape
    table: SlotTable
    device: torch.device
    weight_format: str
    num_threads: int | None
    meter: Meter
    movable: bool = False
    timed: bool = False

    def __post_init__(self) -> None:
        seats(self.num_threads, self._has_device)

    @property
    def _has_device(self) -> bool:
        return self.device.type == "cuda"

    def start_workers(self) -> Workers:
        """The threads that compute experts in host memory."""
        return resident_workers(self.num_threads, self._has_device)


class SplitExperts(Protocol):
    """The experts of a model: first every one is put into its slot, then layers are taken."""

    @property
    def stores(self) -> Mapping[Tier, Store]:
        """The experts of each tier."""

    @property
    def table(self) -> SlotTable:
        """Which slot of which tier holds each cell."""

    @property
    def weight_format(self) -> str:
        """`q8_0`, `q4_0`, `bf16`, or `stored` for the model's own type and torch's arithmetic."""

    @property
    def workers(self) -> Workers:
        """Threads of the host that compute, one per core unless told otherwise."""

    @property
    def expert_bytes(self) -> tuple[int, ...]:
        """For each MoE layer the bytes that computing one expert reads."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what its layers do without, and why; known once they are taken."""

    @property
    def clock(self) -> LayerClock | None:
        """Where the time of decoding is added up; None where nobody asked."""

    def put(self, row: int, expert: int, values: Mapping[str, Tensor]) -> None:
        """Take over one expert.

        Args:
            row: index of the layer in `moe_layers`.
            expert: expert id.
            values: its parameters in the layout of its module, in any floating type.

        Raises:
            ValueError: a parameter is missing or unknown, has another shape, or holds values that
                the format cannot.
        """

    def put_packed(self, row: int, expert: int, packed: NDArray[np.uint8]) -> None:
        """Take over one expert as the kernels read it, [bytes of a packed expert] uint8.

        Raises:
            UnsupportedModelError: the experts are not computed by the kernels.
        """

    def packed(self, row: int, expert: int) -> NDArray[np.uint8]:
        """[bytes of a packed expert] uint8 in host memory, of an expert that was put.

        Raises:
            UnsupportedModelError: the experts are not computed by the kernels.
        """

    def layers(self) -> list[LayerExperts]:
        """What computes each layer, once all experts are there."""

    def place(self, tier_of: NDArray[np.uint8]) -> None:
        """Bring in another placement, [L, E] uint8 values of `Tier`.

        Raises:
            UnsupportedModelError: the experts were not loaded to be moved.
            CapacityError: the placement takes more VRAM than was set aside.
        """

    def check(self) -> None:
        """Raise what went wrong in kernels since the last check; the device must be done.

        Raises:
            NativeError: something did; what was computed since then is of no use.
        """

    def read_bandwidth(self) -> float:
        """Bytes per second of a plain read of experts in host memory, by the threads that compute.

        Raises:
            UnsupportedModelError: the experts are not computed by the kernels.
        """


def make_experts(request: ExpertsRequest) -> SplitExperts:
    """Allocate the tiers of a model's experts.

    Raises:
        PlacementError: the nvme tier is used.
        UnsupportedModelError: the experts cannot be computed in this format.
        CapacityError: a tier does not fit.
    """
    return StoredExperts(request) if request.weight_format == STORED else PackedExperts(request)


class PackedExperts:
    """Experts packed for the kernels; what is on the host is computed by the CPU's.

    Args:
        request: what is to be split.
    """

    def __init__(self, request: ExpertsRequest) -> None:
        self._request = request
        self.notes: tuple[str, ...] = ()
        self.table = request.table
        self.weight_format = request.weight_format
        self._packers = [
            ExpertPacker.of(experts, request.weight_format) for experts in request.modules
        ]
        self.expert_bytes = tuple(packer.shape.num_bytes for packer in self._packers)
        self._home = request.table
        if request.movable:
            everywhere = np.full_like(request.table.tier, Tier.RAM)
            self._home = SlotTable.from_tiers(everywhere)
        self.stores = allocate_packed_stores(self._home, self.expert_bytes, request.device)
        self._vram: Tensor | None = None
        if request.movable and request.device.type == "cuda":
            planned = allocate_packed_stores(
                request.table, self.expert_bytes, request.device, [Tier.VRAM]
            )
            self._vram = planned[Tier.VRAM].memory
        self.clock = _clock(request) if request.timed else None
        self._workspace: Tensor | None = None
        self._link: HostLink | None = None
        self._staging = np.empty(max(self.expert_bytes), np.uint8)

    @property
    def meter(self) -> Meter:
        """Where assignments are counted."""
        return self._request.meter

    @cached_property
    def workers(self) -> Workers:
        """See `SplitExperts.workers`."""
        return self._request.start_workers()

    def put(self, row: int, expert: int, values: Mapping[str, Tensor]) -> None:
        """See `SplitExperts.put`."""
        place = self._slot(row, expert)
        if place.is_cpu:
            self._packers[row].pack(values, place.numpy(), self.workers)
            return
        staged = self._staging[: len(place)]
        self._packers[row].pack(values, staged, self.workers)
        place.copy_(torch.from_numpy(staged))

    def put_packed(self, row: int, expert: int, packed: NDArray[np.uint8]) -> None:
        """See `SplitExperts.put_packed`."""
        place = self._slot(row, expert)
        if place.is_cpu:
            place.numpy()[:] = packed
            return
        staged = self._staging[: len(place)]
        staged[:] = packed
        place.copy_(torch.from_numpy(staged))

    def packed(self, row: int, expert: int) -> NDArray[np.uint8]:
        """See `SplitExperts.packed`."""
        found: NDArray[np.uint8] = self._slot(row, expert).cpu().numpy()
        return found

    def layers(self) -> list[LayerExperts]:
        """See `SplitExperts.layers`."""
        if self._request.device.type == "cuda":
            self._link_host()
            if self._request.movable:
                self.place(self._request.table.tier)
            else:
                self.tell_slots()
            return list(self._on_device)
        return [
            HostExperts(row, kernel, self.workers, self._request.meter, self._tier_times(row))
            for row, kernel in enumerate(self._kernels)
        ]

    def check(self) -> None:
        """See `SplitExperts.check`."""
        if self._request.device.type == "cuda":
            self._hand_over.check()

    def place(self, tier_of: NDArray[np.uint8]) -> None:
        """See `SplitExperts.place`."""
        if not self._request.movable:
            raise UnsupportedModelError("experts: were not loaded to be moved", "load them so")
        self.table = SlotTable.from_tiers(tier_of)
        if self._vram is None:
            return
        device, slots = self._request.device, self.table.slots_in(Tier.VRAM)
        vram = PackedStore(Tier.VRAM, device, slots, self.expert_bytes, self._vram)
        for row, expert in np.argwhere(tier_of == Tier.VRAM).tolist():
            vram.expert(row, int(self.table.slot[row, expert])).copy_(self._slot(row, expert))
        self.stores = {**self.stores, Tier.VRAM: vram}
        self.tell_slots()

    @cached_property
    def _hand_over(self) -> HandOver:
        request = self._request
        return HandOver(
            self._packers[0],
            request.shape.top_k,
            self.workers,
            self._kernels,
            request.device,
            physical_cores()[0],
        )

    @cached_property
    def _on_device(self) -> list[DeviceExperts]:
        request = self._request
        request.meter.count_on(request.device)
        clock = self.clock if isinstance(self.clock, DeviceClock) else None
        counted = Counted(request.meter, clock)
        layers = [
            DeviceExperts(
                row,
                packer,
                request.shape.num_experts,
                self._hand_over,
                counted,
                request.device,
            )
            for row, packer in enumerate(self._packers)
        ]
        if clock is not None:
            clock.stamp_with(layers[0].begin_step, self._hand_over.take_answer_ns)
        return layers

    def _link_host(self) -> None:
        """Let prefills use the experts in host memory; before any slot is told."""
        if not (self._home.tier == Tier.RAM).any():
            return
        experts = range(self._request.shape.num_experts)
        layers = [
            HostLayer(layer, kernel, [_if_on_host(self._slot(row, e)) for e in experts])
            for row, (layer, kernel) in enumerate(zip(self._on_device, self._kernels, strict=True))
        ]
        with torch.cuda.device(self._request.device):
            self._link = HostLink(self.stores[Tier.RAM].memory, self.weight_format != "bf16")
            self._link.connect(layers, self._hand_over.exchange, self.workers)
        self.notes = self._link.notes

    def tell_slots(self) -> None:
        """Tell the device which slot holds which expert.

        Slots are counted from the start of the tier where the layers are alike, so that another
        placement only changes numbers.
        """
        store = self.stores[Tier.VRAM]
        memory = store.memory
        largest = max(layer.workspace_bytes for layer in self._on_device)
        if self._workspace is None:
            self._workspace = torch.zeros(largest, dtype=torch.uint8, device=memory.device)
        for row, layer in enumerate(self._on_device):
            stride, start = store.stride(row), store.start(row)
            first = start // stride if start % stride == 0 else 0
            packed = memory if start % stride == 0 else memory[start:]
            slots = np.where(self.table.tier[row] == Tier.VRAM, self.table.slot[row] + first, -1)
            layer.set_weights(
                packed, stride, torch.from_numpy(slots.astype(np.int32)), self._workspace
            )

    def read_bandwidth(self) -> float:
        """See `SplitExperts.read_bandwidth`: of as many experts at a time as a token chooses."""
        top_k = self._request.shape.top_k
        rng = np.random.default_rng(0)
        speeds = []
        for _ in range(_BANDWIDTH_REPEATS):
            seconds, num_bytes = 0.0, 0
            for row, kernel in enumerate(self._kernels):
                held = np.flatnonzero(self._home.tier[row] == Tier.RAM)
                if len(held) < top_k:
                    continue
                ids = rng.choice(held, top_k, replace=False).astype(np.uint16)
                begun = time.perf_counter()
                kernel.xor_experts(self.workers, ids)
                seconds += time.perf_counter() - begun
                num_bytes += top_k * self.expert_bytes[row]
            speeds.append(num_bytes / seconds if seconds else math.nan)
        return statistics.median(speeds)

    def _tier_times(self, row: int) -> TierTimes | None:
        return None if self.clock is None else TierTimes(self.clock, self.table.tier[row])

    @cached_property
    def _kernels(self) -> list[ExpertLayer]:
        return [self._kernel(row) for row in range(len(self._packers))]

    def _slot(self, row: int, expert: int) -> Tensor:
        """Where an expert was loaded to."""
        store = self.stores[Tier(self._home.tier[row, expert])]
        return store.expert(row, int(self._home.slot[row, expert]))

    def _kernel(self, row: int) -> ExpertLayer:
        """The CPU kernel of a layer, with every expert that is in host memory."""
        packer, shape = self._packers[row], self._request.shape
        unit = packer.gating.unit
        kernel = ExpertLayer(
            packer.shape.hidden_size,
            packer.shape.width,
            shape.num_experts,
            shape.top_k,
            packer.shape.weight_format,
            packer.shape.has_biases,
            unit.kind,
            unit.alpha,
            unit.limit,
        )
        for expert in range(shape.num_experts):
            packed = _if_on_host(self._slot(row, expert))
            if packed is not None:
                kernel.set_expert(expert, packed.numpy())
        return kernel


def _if_on_host(packed: Tensor) -> Tensor | None:
    return packed if packed.is_cpu else None


def _clock(request: ExpertsRequest) -> LayerClock:
    num_layers = len(request.modules)
    if request.device.type == "cuda":
        return DeviceClock(num_layers, request.meter, request.device)
    return LayerClock(num_layers, request.meter, request.device)
