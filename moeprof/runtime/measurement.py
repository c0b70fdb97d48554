"""Measuring a machine with a model: what the cost model of planning needs to know.

Times are taken through the very code that runs, on the model's own experts, and are medians.
"""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.checkpoint.modules import ExpertsModule, find_moe_layers
from moeprof.hardware import HardwareProfile, LinkProfile, TierProfile, Time
from moeprof.model_shape import ModelShape
from moeprof.placement.tier import Tier
from moeprof.runtime.experts import experts_forward
from moeprof.runtime.loader import load_split, resolve_device
from moeprof.runtime.model import SplitModel
from moeprof.runtime.stores import host_memory_bytes

_WARM_UPS = 3
_REPEATS = 25
_DECODED_TOKENS = 24
_BANDWIDTH_BYTES = 256 * 2**20  # beyond the last-level cache of common processors


def measure_hardware(
    model: str | Path | Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    name: str | None = None,
) -> HardwareProfile:
    """Measure this machine with a model's own experts and layers.

    The time of one expert is the slope of a layer's time over the number of experts it computes
    for one token; what does not grow with it counts as time outside the experts. Times are split
    into a time per byte, that of the measured bandwidth, and a fixed rest.

    Args:
        model: directory, hub id or checkpoint.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA where there is one.
        dtype: element type to run in; the profile's bytes stay those of the checkpoint.
        name: of the machine; None for its processor and device.

    Raises:
        UnsupportedModelError: the model cannot be found or run.
        CapacityError: no such device, or the model does not fit.
    """
    place = resolve_device(device)
    context_bytes = _device_context_bytes(place)
    checkpoint = model if isinstance(model, Checkpoint) else read_checkpoint(model)
    loaded = load_split(checkpoint, _tiers(checkpoint.shape), str(place), dtype)
    shape, host = checkpoint.shape, torch.device("cpu")
    bandwidth = {Tier.VRAM: _read_bandwidth(place), Tier.RAM: _read_bandwidth(host)}
    lines = {tier: _line(loaded, tier, bandwidth[tier]) for tier in bandwidth}
    return HardwareProfile(
        name=name or _machine_name(place),
        source="measured",
        date=date.today().isoformat(),
        tiers={
            tier.label: TierProfile(
                capacity_bytes=_capacity(place if tier is Tier.VRAM else host),
                read_bytes_per_s=bandwidth[tier],
                expert_time={
                    shape.dtype: _split(
                        lines[tier].slope, shape.expert_bytes[0], bandwidth[tier], 1
                    )
                },
            )
            for tier in bandwidth
        },
        links=_links(place),
        round_trip_s=max(0.0, lines[Tier.RAM].fixed - lines[Tier.VRAM].fixed),
        device_context_bytes=context_bytes,
        dense_time=_split(
            _dense_seconds(loaded) + shape.num_moe_layers * lines[Tier.VRAM].fixed,
            shape.dense_bytes,
            bandwidth[Tier.VRAM],
            shape.num_layers,
        ),
        tiers_overlap=place.type == "cuda",
    )


def _tiers(shape: ModelShape) -> NDArray[np.uint8]:
    """[L, E] uint8: in each layer enough experts in VRAM to choose several sets from."""
    in_vram = min(shape.num_experts // 2, 2 * shape.top_k)
    tiers = np.full((shape.num_moe_layers, shape.num_experts), Tier.RAM, np.uint8)
    tiers[:, :in_vram] = Tier.VRAM
    return tiers


@dataclass(frozen=True, slots=True)
class _Line:
    """Seconds of a layer with k experts for one token: `fixed + slope * k`."""

    fixed: float
    slope: float


def _line(loaded: SplitModel, tier: Tier, bytes_per_s: float) -> _Line:
    """The line through a layer's times with one and with K experts of a tier.

    Both are timed in turns, so that what disturbs one disturbs the other; the slope is the median
    over turns, and at least the time of reading the expert at the measured bandwidth.
    """
    shape = loaded.checkpoint.shape
    owned = np.flatnonzero(loaded.table.tier[0] == tier)
    most = min(shape.top_k, len(owned))
    floor = loaded.expert_bytes[0] / bytes_per_s
    one, many = _layer_seconds(loaded, owned, (1, most))
    slope = float(np.median(many - one)) / (most - 1) if most > 1 else float(np.median(one))
    slope = max(slope, floor)
    return _Line(max(0.0, float(np.median(one)) - slope), slope)


def _layer_seconds(
    loaded: SplitModel, owned: NDArray[np.int64], sizes: tuple[int, ...]
) -> NDArray[np.float64]:
    """Seconds of the experts of one layer for one token, mean over the layers.

    Every call takes other experts, so that caches serve no more than they do while decoding.

    Args:
        loaded: the model.
        owned: [n] int64, experts to choose from.
        sizes: how many experts the token uses.

    Returns:
        [num_sizes, repeats] float64.
    """
    modules = find_moe_layers(loaded.model)
    turns = np.random.default_rng(0)
    shape = (1, loaded.checkpoint.shape.hidden_size)
    hidden = torch.randn(shape, dtype=loaded.dtype, device=loaded.device)
    seconds = np.zeros((len(sizes), _WARM_UPS + _REPEATS))
    with torch.inference_mode():
        for turn, row in product(range(_WARM_UPS + _REPEATS), range(len(sizes))):
            chosen = [turns.choice(owned, sizes[row], replace=False) for _ in modules]
            indices = [torch.from_numpy(ids)[None].to(loaded.device) for ids in chosen]
            weights = torch.ones(indices[0].shape, dtype=loaded.dtype, device=loaded.device)
            loaded.synchronize()
            begin = time.perf_counter()
            for experts, index in zip(modules, indices, strict=True):
                experts_forward(experts.module, hidden, index, weights)
            loaded.synchronize()
            seconds[row, turn] = (time.perf_counter() - begin) / len(modules)
    return seconds[:, _WARM_UPS:]


def _dense_seconds(loaded: SplitModel) -> float:
    """Median seconds of one decoded token outside the experts modules."""
    inside = _Stopwatch(loaded, find_moe_layers(loaded.model))
    seconds = []
    step = loaded.forward([1, 2, 3, 4], "prefill")
    for turn in range(_DECODED_TOKENS):
        inside.seconds = 0.0
        loaded.synchronize()
        begin = time.perf_counter()
        step = loaded.forward([turn], "decode", step.cache, 4 + turn)
        loaded.synchronize()
        if turn >= _WARM_UPS:
            seconds.append(time.perf_counter() - begin - inside.seconds)
    inside.remove()
    return statistics.median(seconds)


class _Stopwatch:
    """Adds up the time inside some modules; the device is waited for at both ends."""

    def __init__(self, loaded: SplitModel, modules: Sequence[ExpertsModule]) -> None:
        self.seconds = 0.0
        self._loaded = loaded
        self._begin = 0.0
        self._hooks = [experts.module.register_forward_pre_hook(self._start) for experts in modules]
        self._hooks += [experts.module.register_forward_hook(self._stop) for experts in modules]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_: object) -> None:
        self._loaded.synchronize()
        self._begin = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self._loaded.synchronize()
        self.seconds += time.perf_counter() - self._begin


def _split(seconds: float, num_bytes: int, bytes_per_s: float, calls: int) -> Time:
    """A time per byte at the measured bandwidth and a fixed rest per call, exact for `seconds`."""
    per_byte = min(1 / bytes_per_s, seconds / num_bytes)
    return Time(max(0.0, seconds - per_byte * num_bytes) / calls, per_byte)


def _read_bandwidth(device: torch.device) -> float:
    """Bytes per second of a matrix-vector product whose matrix does not fit the caches."""
    columns = 4096
    matrix = torch.ones((_BANDWIDTH_BYTES // 4 // columns, columns), device=device)
    vector = torch.ones(columns, device=device)
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        (matrix @ vector)[0].item()
        seconds.append(time.perf_counter() - begin)
    return matrix.nbytes / statistics.median(seconds)


def _links(device: torch.device) -> dict[str, LinkProfile]:
    """The link between host and device; none where there is only the host."""
    if device.type != "cuda":
        return {}
    small, large = (
        _copy_seconds(torch.ones(size, dtype=torch.uint8, pin_memory=True), device)
        for size in (1, _BANDWIDTH_BYTES)
    )
    return {"ram-vram": LinkProfile(small, _BANDWIDTH_BYTES / max(large - small, 1e-9))}


def _copy_seconds(source: torch.Tensor, device: torch.device) -> float:
    seconds = []
    for _ in range(_REPEATS):
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        source.to(device, non_blocking=True)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _device_context_bytes(device: torch.device) -> int:
    """Bytes in use on the device before anything of ours is loaded; 0 on the host."""
    if device.type != "cuda":
        return 0
    torch.ones(1, device=device) @ torch.ones(1, device=device)
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _capacity(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return host_memory_bytes()


def _machine_name(device: torch.device) -> str:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    name = f"{processor}, {os.cpu_count()} cores"
    return f"{name}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else name
