"""Where experts live during a run: one store per tier, sized exactly as the placement says."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeprof.errors import CapacityError, PlacementError
from moeprof.native import HostMemory
from moeprof.placement.tier import Tier
from moeprof.units import format_size

SLOT_ALIGNMENT = 256  # bytes; what one request of a GPU reads begins on such a border


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """Shape and element type of one parameter of one expert.

    Attributes:
        name: inside its experts module, such as `gate_up_proj`.
        shape: of one expert.
        dtype: element type in the store.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of one expert's parameter."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Store(Protocol):
    """The experts of one tier."""

    @property
    def tier(self) -> Tier:
        """The tier."""

    @property
    def device(self) -> torch.device:
        """Where its bytes are."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all its experts."""


class ExpertStore:
    """The experts of one tier: for each layer and parameter one buffer of `[slots, ...]`.

    Attributes:
        tier: the tier.
        device: where its buffers are.
        num_bytes: bytes of all buffers.

    Args:
        tier: the tier.
        device: where to allocate.
        slots: for each layer the number of experts.
        specs: for each layer the parameters of one expert.
    """

    def __init__(
        self,
        tier: Tier,
        device: torch.device,
        slots: Sequence[int],
        specs: Sequence[Sequence[ParameterSpec]],
    ) -> None:
        self.tier = tier
        self.device = device
        self._buffers: list[dict[str, Tensor]] = [
            {
                spec.name: torch.empty((count, *spec.shape), dtype=spec.dtype, device=device)
                for spec in layer
            }
            if count
            else {}
            for count, layer in zip(slots, specs, strict=True)
        ]
        self.num_bytes = sum(b.nbytes for layer in self._buffers for b in layer.values())

    def put(self, row: int, slot: int, values: Mapping[str, Tensor]) -> None:
        """Copy the parameters of one expert into its slot.

        Args:
            row: index of the layer in `moe_layers`.
            slot: the expert's slot in this layer.
            values: for each parameter a tensor of its shape, of any floating type.

        Raises:
            ValueError: a parameter is missing or unknown, has another shape, or holds a value that
                is not finite in the store's element type.
        """
        targets = self.expert(row, slot)
        if targets.keys() != values.keys():
            raise ValueError(f"expected parameters {sorted(targets)}, got {sorted(values)}")
        for name, target in targets.items():
            if target.shape != values[name].shape:
                raise ValueError(
                    f"{name}: expected shape {list(target.shape)}, got {list(values[name].shape)}"
                )
            target.copy_(values[name])
            extremes = torch.stack(torch.aminmax(target))  # both are NaN where any value is
            if not bool(extremes.isfinite().all()):
                kind = "" if values[name].dtype == target.dtype else f" in {target.dtype}"
                raise ValueError(f"weights: a value is not finite{kind.replace('torch.', '')}")

    def expert(self, row: int, slot: int) -> dict[str, Tensor]:
        """The parameters of the expert in a slot; views, no copies."""
        return {name: buffer[slot] for name, buffer in self._buffers[row].items()}


class PackedStore:
    """The packed experts of one tier, one run of bytes: layer after layer, slot after slot.

    Attributes:
        tier: the tier.
        device: where its bytes are.
        num_bytes: bytes of all slots.
        memory: [at least num_bytes] uint8 that holds them.

    Args:
        tier: the tier.
        device: where to allocate.
        slots: for each layer the number of experts.
        sizes: for each layer the bytes of one packed expert.
        memory: [n] uint8 on the device to use; None to allocate.

    Raises:
        CapacityError: `memory` is too small.
    """

    def __init__(
        self,
        tier: Tier,
        device: torch.device,
        slots: Sequence[int],
        sizes: Sequence[int],
        memory: Tensor | None = None,
    ) -> None:
        self.tier = tier
        self.device = device
        self._sizes = tuple(sizes)
        self._strides = tuple(-(-size // SLOT_ALIGNMENT) * SLOT_ALIGNMENT for size in sizes)
        spans = [count * stride for count, stride in zip(slots, self._strides, strict=True)]
        self._starts = (0, *accumulate(spans))
        self.num_bytes = self._starts[-1]
        if memory is not None and len(memory) < self.num_bytes:
            raise CapacityError(
                f"tier {tier.label}: {format_size(self.num_bytes)} are needed, "
                f"{format_size(len(memory))} were set aside",
                "use a placement with fewer experts there",
            )
        self.memory = _allocate(device, self.num_bytes) if memory is None else memory

    def expert(self, row: int, slot: int) -> Tensor:
        """[bytes of a packed expert] uint8, a view.

        Args:
            row: index of the layer in `moe_layers`.
            slot: the expert's slot in this layer.
        """
        start = self._starts[row] + slot * self._strides[row]
        return self.memory[start : start + self._sizes[row]]

    def stride(self, row: int) -> int:
        """Bytes from slot to slot of a layer."""
        return self._strides[row]

    def start(self, row: int) -> int:
        """Where a layer's slots begin, in bytes."""
        return self._starts[row]


def _allocate(device: torch.device, num_bytes: int) -> Tensor:
    if device.type == "cpu":
        return torch.from_numpy(HostMemory(max(num_bytes, 1)).array())
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Which slot of which store holds each cell.

    Attributes:
        tier: [L, E] uint8, the value of `Tier`.
        slot: [L, E] int32, index in that tier's buffers of the layer; a tier's experts fill its
            slots in ascending order.
    """

    tier: NDArray[np.uint8]
    slot: NDArray[np.int32]

    @classmethod
    def from_tiers(cls, tier_of: NDArray[np.uint8]) -> "SlotTable":
        """The table of a placement.

        Args:
            tier_of: [L, E] uint8.
        """
        slot = np.zeros(tier_of.shape, np.int32)
        for tier in Tier:
            held = tier_of == tier
            slot[held] = (np.cumsum(held, axis=1) - 1)[held]
        return cls(tier_of, slot)

    def slots_in(self, tier: Tier) -> list[int]:
        """For each layer the number of experts in a tier."""
        return [int(count) for count in (self.tier == tier).sum(axis=1)]


def allocate_stores(
    table: SlotTable, specs: Sequence[Sequence[ParameterSpec]], device: torch.device
) -> Mapping[Tier, ExpertStore]:
    """The stores of the vram and the ram tier for experts as torch computes them, empty.

    Without a CUDA device both are in host memory.

    Args:
        table: which tier holds which cell.
        specs: for each layer the parameters of one expert.
        device: the device of the vram tier.

    Raises:
        PlacementError: the placement uses the nvme tier.
        CapacityError: a tier does not fit the memory it is to live in.
    """
    sizes = [sum(spec.num_bytes for spec in layer) for layer in specs]
    return {
        tier: ExpertStore(tier, place, table.slots_in(tier), specs)
        for tier, place in _checked_places(table, sizes, device)
    }


def allocate_packed_stores(
    table: SlotTable,
    sizes: Sequence[int],
    device: torch.device,
    tiers: Sequence[Tier] = (Tier.VRAM, Tier.RAM),
) -> Mapping[Tier, PackedStore]:
    """The stores of the vram and the ram tier for packed experts, empty.

    Without a CUDA device both are in host memory.

    Args:
        table: which tier holds which cell.
        sizes: for each layer the bytes of one packed expert.
        device: the device of the vram tier.
        tiers: those to allocate.

    Raises:
        PlacementError: the placement uses the nvme tier.
        CapacityError: a tier does not fit the memory it is to live in.
    """
    return {
        tier: PackedStore(tier, place, table.slots_in(tier), sizes)
        for tier, place in _checked_places(table, sizes, device, tiers)
    }


def _checked_places(
    table: SlotTable,
    sizes: Sequence[int],
    device: torch.device,
    tiers: Sequence[Tier] = (Tier.VRAM, Tier.RAM),
) -> list[tuple[Tier, torch.device]]:
    """Where each tier lives, once it is known that it fits there."""
    if (table.tier == Tier.NVME).any():
        raise PlacementError(
            "placement: has experts in tier nvme, which this version of moeprof cannot run",
            "make a placement with moeprof plan, which uses vram and ram only",
        )
    places = [(tier, device if tier is Tier.VRAM else torch.device("cpu")) for tier in tiers]
    needed: dict[str, int] = {}
    for tier, place in places:
        slots = table.slots_in(tier)
        here = sum(count * size for count, size in zip(slots, sizes, strict=True))
        needed[place.type] = needed.get(place.type, 0) + here
        _check_capacity(tier, place, needed[place.type])
    return places


def _check_capacity(tier: Tier, device: torch.device, needed: int) -> None:
    on_card = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_card else host_memory_bytes()
    if needed > free:
        raise CapacityError(
            f"tier {tier.label} needs {format_size(needed)} on {device}, "
            f"{format_size(free)} are free",
            "plan with a smaller budget, or load with a smaller --format or --dtype",
        )


def host_memory_bytes() -> int:
    """Bytes of host memory that can be had without swapping; of the whole machine off Linux."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
