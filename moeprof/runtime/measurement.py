"""Measuring a machine with a model: what the cost model of planning needs to know.

Times are taken through the very code that runs, on the model's own experts, and are medians.
"""

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.checkpoint.device import resolve_device
from moeprof.checkpoint.modules import ExpertsModule, find_moe_layers
from moeprof.hardware import HardwareProfile, LinkProfile, TierProfile, Time
from moeprof.model_shape import ModelShape
from moeprof.placement.tier import Tier
from moeprof.runtime.loader import LoadOptions, load_split
from moeprof.runtime.model import SplitModel
from moeprof.runtime.stores import host_memory_bytes

_WARM_UPS = 3
_REPEATS = 25
_BANDWIDTH_BYTES = 256 * 2**20  # beyond the last-level cache of common processors


def measure_hardware(
    model: str | Path | Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    name: str | None = None,
    formats: Sequence[str] = (),
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
        formats: further formats of experts to time, `q8_0`, `q4_0` or `bf16`.

    Raises:
        UnsupportedModelError: the model cannot be found or run.
        CapacityError: no such device, or the model does not fit.
    """
    place = resolve_device(device)
    context_bytes = device_context_bytes(place)
    checkpoint = model if isinstance(model, Checkpoint) else read_checkpoint(model)
    loaded = load_split(checkpoint, _tiers(checkpoint.shape), device=str(place), dtype=dtype)
    shape, host = checkpoint.shape, torch.device("cpu")
    bandwidth = {Tier.VRAM: read_bandwidth(place), Tier.RAM: read_bandwidth(host)}
    most = min(shape.top_k, shape.num_experts // 2)
    decoding = _decode(loaded, most)
    lines = decoding.lines(most, loaded.experts.expert_bytes[0], bandwidth)
    slopes = {shape.dtype: (lines, shape.expert_bytes[0])}
    for weight_format in formats:
        options: LoadOptions = {"device": str(place), "dtype": dtype}
        options["weight_format"] = weight_format
        held = load_split(checkpoint, _tiers(shape), **options)
        size = held.experts.expert_bytes[0]
        slopes[weight_format] = (_decode(held, most).lines(most, size, bandwidth), size)
    return HardwareProfile(
        name=name or _machine_name(place),
        source="measured",
        date=date.today().isoformat(),
        tiers={
            tier.label: TierProfile(
                capacity_bytes=_capacity(place if tier is Tier.VRAM else host),
                read_bytes_per_s=bandwidth[tier],
                expert_time={
                    weight_format: _split(found[tier].slope_s, size, bandwidth[tier], 1)
                    for weight_format, (found, size) in slopes.items()
                },
            )
            for tier in bandwidth
        },
        links=_links(place),
        round_trip_s=max(0.0, lines[Tier.RAM].fixed_s - lines[Tier.VRAM].fixed_s),
        device_context_bytes=context_bytes,
        dense_time=_split(
            decoding.dense_s + shape.num_moe_layers * lines[Tier.VRAM].fixed_s,
            shape.dense_bytes,
            bandwidth[Tier.VRAM],
            shape.num_layers,
        ),
        tiers_overlap=place.type == "cuda" and _overlap(decoding, lines, most),
    )


def _tiers(shape: ModelShape) -> NDArray[np.uint8]:
    """[L, E] uint8: in each layer enough experts in VRAM to choose several sets from."""
    in_vram = min(shape.num_experts // 2, 2 * shape.top_k)
    tiers = np.full((shape.num_moe_layers, shape.num_experts), Tier.RAM, np.uint8)
    tiers[:, :in_vram] = Tier.VRAM
    return tiers


@dataclass(frozen=True, slots=True)
class _Line:
    """Seconds of a layer with k experts of one tier for one token: `fixed_s + slope_s * k`."""

    fixed_s: float
    slope_s: float


@dataclass(frozen=True, slots=True)
class _Decoding:
    """Median seconds while decoding.

    Attributes:
        dense_s: of one token outside the experts modules.
        layer_s: (experts in VRAM, experts in RAM) -> of the experts of one layer.
    """

    dense_s: float
    layer_s: dict[tuple[int, int], float]

    def lines(
        self, most: int, expert_bytes: int, bandwidth: Mapping[Tier, float]
    ) -> dict[Tier, _Line]:
        """The line of each tier, no flatter than memory allows; see `line`."""
        return {tier: self.line(tier, most, expert_bytes / bandwidth[tier]) for tier in bandwidth}

    def line(self, tier: Tier, most: int, shortest_s: float) -> _Line:
        """The line through the times with one and with `most` experts of a tier.

        Args:
            tier: vram or ram.
            most: the largest number of experts timed.
            shortest_s: what one expert takes at least, to be read.
        """
        one, many = (
            self.layer_s[(count, 0) if tier is Tier.VRAM else (0, count)] for count in (1, most)
        )
        slope = max((many - one) / (most - 1) if most > 1 else one, shortest_s)
        return _Line(max(0.0, one - slope), slope)


def _decode(loaded: SplitModel, most: int) -> _Decoding:
    """Decode tokens whose experts are dictated, and time the inside and the outside of layers.

    What a layer takes depends on what ran before it (caches, clocks, sleeping threads), so it is
    timed inside a real forward. The mixes of tiers take turns, so that what disturbs one disturbs
    the others, and every call uses other experts.

    Args:
        loaded: the model.
        most: experts per token in the largest mix.
    """
    mixes = sorted({(1, 0), (0, 1), (most, 0), (0, most), _halves(most)})
    modules = find_moe_layers(loaded.model)
    num_tokens = _WARM_UPS + -(-_REPEATS * len(mixes) // len(modules))
    dictation = _Dictation(loaded, modules, mixes)
    dense = []
    step = loaded.forward([1, 2, 3, 4], "prefill")
    for turn in range(num_tokens):
        dictation.start_token(measured=turn >= _WARM_UPS)
        loaded.synchronize()
        begin = time.perf_counter()
        step = loaded.forward([turn], "decode", step.cache, 4 + turn)
        loaded.synchronize()
        if turn >= _WARM_UPS:
            dense.append(time.perf_counter() - begin - dictation.inside_s)
    dictation.remove()
    layer_s = {mix: statistics.median(seconds) for mix, seconds in dictation.seconds.items()}
    return _Decoding(statistics.median(dense), layer_s)


def _halves(most: int) -> tuple[int, int]:
    return most // 2, most - most // 2


class _Dictation:
    """Replaces the routing of every layer by mixes of the tiers in turn, and times the layers."""

    def __init__(
        self, loaded: SplitModel, modules: list[ExpertsModule], mixes: list[tuple[int, int]]
    ) -> None:
        self.inside_s = 0.0
        self.seconds: dict[tuple[int, int], list[float]] = {mix: [] for mix in mixes}
        self._loaded = loaded
        self._turns = cycle(mixes)
        self._random = np.random.default_rng(0)
        self._mix = mixes[0]
        self._begin = 0.0
        self._measured = False
        self._hooks = [experts.module.register_forward_pre_hook(self._start) for experts in modules]
        self._hooks += [experts.module.register_forward_hook(self._stop) for experts in modules]

    def remove(self) -> None:
        """Leave the routing to the model again."""
        for hook in self._hooks:
            hook.remove()

    def start_token(self, measured: bool) -> None:
        """Start adding up the time inside layers."""
        self.inside_s = 0.0
        self._measured = measured

    def _start(
        self, module: nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        hidden, index, *rest = args
        if hidden.shape[0] > 1:
            return None
        self._mix = next(self._turns)
        tiers = self._loaded.table.tier[0]
        dictated = torch.full_like(index, len(tiers))  # no expert
        chosen = np.concatenate(
            [
                self._random.choice(np.flatnonzero(tiers == tier), count, replace=False)
                for tier, count in zip((Tier.VRAM, Tier.RAM), self._mix, strict=True)
            ]
        )
        dictated[0, : len(chosen)] = torch.from_numpy(chosen).to(index)
        rest[0] = torch.full_like(rest[0], 1 / rest[0].shape[-1])
        self._loaded.synchronize()
        self._begin = time.perf_counter()
        return (hidden, dictated, *rest)

    def _stop(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
        if args[0].shape[0] > 1:
            return
        self._loaded.synchronize()
        seconds = time.perf_counter() - self._begin
        self.inside_s += seconds
        if self._measured:
            self.seconds[self._mix].append(seconds)


def _overlap(decoding: _Decoding, lines: dict[Tier, _Line], most: int) -> bool:
    """Whether a layer with both tiers takes the longer part rather than the sum of both."""
    num_vram, num_ram = _halves(most)
    fixed = lines[Tier.VRAM].fixed_s
    vram = lines[Tier.VRAM].slope_s * num_vram
    ram = lines[Tier.RAM].slope_s * num_ram + max(0.0, lines[Tier.RAM].fixed_s - fixed)
    together = decoding.layer_s[num_vram, num_ram] - fixed
    return abs(together - max(vram, ram)) < abs(together - vram - ram)


def _split(seconds: float, num_bytes: int, bytes_per_s: float, calls: int) -> Time:
    """A time per byte at the measured bandwidth and a fixed rest per call, exact for `seconds`."""
    per_byte = min(1 / bytes_per_s, seconds / num_bytes)
    return Time(max(0.0, seconds - per_byte * num_bytes) / calls, per_byte)


def read_bandwidth(device: torch.device) -> float:
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


def device_context_bytes(device: torch.device) -> int:
    """Bytes in use on the device before anything of ours is loaded; 0 on the host.

    What other programs hold of the device is counted, too.
    """
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
