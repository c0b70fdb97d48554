"""Measuring a machine with a model: what the cost model of planning needs to know.

Times are taken through the very code that runs, on the model's own experts, and are medians.
"""

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.checkpoint.device import resolve_device
from moeprof.hardware import HardwareProfile, LinkProfile, TierProfile, Time
from moeprof.model_shape import ModelShape
from moeprof.placement.tier import Tier
from moeprof.runtime.layer_times import DENSE, RAM, VRAM, DeviceClock
from moeprof.runtime.layer_timing import (
    Decoding,
    Line,
    Prefilling,
    time_decoding,
    time_prefilling,
)
from moeprof.runtime.loader import LoadOptions, load_split
from moeprof.runtime.model import SplitModel
from moeprof.runtime.sequence import Sequence as TokenSequence
from moeprof.runtime.stores import host_memory_bytes
from moeprof.trace.schema import PHASES

_WARM_UPS = 3
_REPEATS = 25
_CONTEXT_TOKENS = 64
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

    The time of one expert is the slope of a layer's time over the number of experts it computes,
    for one token and for batches; what does not grow with it counts as time outside the experts.
    Times are split into a time per byte, that of the measured bandwidth, and a fixed rest.

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
    shape, host = checkpoint.shape, torch.device("cpu")
    bandwidth = {Tier.VRAM: read_bandwidth(place), Tier.RAM: read_bandwidth(host)}
    options: LoadOptions = {"device": str(place), "dtype": dtype}
    options["layer_times"] = place.type == "cuda"
    first = _measure(checkpoint, options, bandwidth, shape.expert_bytes[0])
    found = {shape.dtype: first}
    for weight_format in formats:
        given: LoadOptions = {**options, "weight_format": weight_format}
        found[weight_format] = _measure(checkpoint, given, bandwidth, None)
    dense_s = next((timed.step_s for timed in found.values() if timed.step_s is not None), None)
    if dense_s is None:
        dense_s = first.decoding.dense_s + shape.num_moe_layers * first.lines[Tier.VRAM].fixed_s
    batch = first.prefilling.outside(first.shortest_s)
    dense = shape.dense_bytes, bandwidth[Tier.VRAM], shape.num_layers
    return HardwareProfile(
        name=name or _machine_name(place),
        source="measured",
        date=date.today().isoformat(),
        tiers={
            tier.label: TierProfile(
                capacity_bytes=_capacity(place if tier is Tier.VRAM else host),
                read_bytes_per_s=bandwidth[tier],
                expert_time={name: timed.token_time(tier) for name, timed in found.items()},
                expert_batch_time={name: timed.batch_time(tier) for name, timed in found.items()},
            )
            for tier in bandwidth
        },
        links=_links(place),
        round_trip_s=max(0.0, first.lines[Tier.RAM].fixed_s - first.lines[Tier.VRAM].fixed_s),
        device_context_bytes=context_bytes,
        dense_time=_split(dense_s, *dense),
        dense_batch_time=_split(batch.fixed_s, *dense, batch.slope_s),
        tiers_overlap=place.type == "cuda" and first.decoding.overlaps(first.lines),
    )


def _tiers(shape: ModelShape) -> NDArray[np.uint8]:
    """[L, E] uint8: in each layer enough experts in VRAM to choose several sets from."""
    tiers = np.full((shape.num_moe_layers, shape.num_experts), Tier.RAM, np.uint8)
    tiers[:, : _num_in_vram(shape)] = Tier.VRAM
    return tiers


def _num_in_vram(shape: ModelShape) -> int:
    return min(shape.num_experts // 2, 2 * shape.top_k)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was timed of the experts in one format.

    Attributes:
        expert_bytes: of one expert, as the profile counts them.
        bandwidth: bytes per second of each tier.
        decoding: of single tokens.
        prefilling: of batches.
        step_s: of a captured step less what grows with its experts; None where none is captured.
    """

    expert_bytes: int
    bandwidth: Mapping[Tier, float]
    decoding: Decoding
    prefilling: Prefilling
    step_s: float | None

    @property
    def shortest_s(self) -> dict[Tier, float]:
        """Seconds that one expert takes at least, to be read."""
        return {tier: self.expert_bytes / speed for tier, speed in self.bandwidth.items()}

    @property
    def lines(self) -> dict[Tier, Line]:
        """Seconds of a layer of one token by its number of experts of each tier."""
        return self.decoding.lines(self.shortest_s)

    def token_time(self, tier: Tier) -> Time:
        """Of one expert for one token."""
        return _split(self.lines[tier].slope_s, self.expert_bytes, self.bandwidth[tier])

    def batch_time(self, tier: Tier) -> Time:
        """Of one expert for many tokens."""
        line = self.prefilling.lines(self.shortest_s)[tier]
        return _split(line.fixed_s, self.expert_bytes, self.bandwidth[tier], 1, line.slope_s)


def _measure(
    checkpoint: Checkpoint,
    options: LoadOptions,
    bandwidth: Mapping[Tier, float],
    expert_bytes: int | None,
) -> _Measured:
    """Load the model, time it, and let go of it; without `expert_bytes` those that are read."""
    shape = checkpoint.shape
    loaded = load_split(checkpoint, _tiers(shape), **options)
    size = expert_bytes or loaded.experts.expert_bytes[0]
    decoding = time_decoding(loaded, min(shape.top_k, shape.num_experts // 2))
    prefilling = time_prefilling(loaded, _num_in_vram(shape) // 2)
    timed = _Measured(size, bandwidth, decoding, prefilling, None)
    return replace(timed, step_s=_step_seconds(loaded, timed.lines))


def _step_seconds(loaded: SplitModel, lines: Mapping[Tier, Line]) -> float | None:
    """Seconds of a step as `run` decodes on CUDA, less what grows with the experts in it.

    Steps are captured there, which makes everything outside the experts much faster than in the
    forwards whose routing is dictated. Their stamps say what the experts take.
    """
    clock = loaded.experts.clock
    if not isinstance(clock, DeviceClock):
        return None
    sequence = TokenSequence(loaded, _CONTEXT_TOKENS)
    sequence.prefill([1, 2, 3, 4])
    for turn in range(_WARM_UPS):
        sequence.step(turn)
    loaded.synchronize()
    loaded.meter.reset()
    clock.reset()
    begin = time.perf_counter()
    for turn in range(_REPEATS):
        sequence.step(turn)
    loaded.synchronize()
    seconds = (time.perf_counter() - begin) / _REPEATS
    loaded.meter.collect()
    clock.collect()
    spent_s = clock.spent_ns / (1e9 * _REPEATS)
    hits = loaded.meter.hits(loaded.table.tier)[PHASES.index("decode")]
    return step_outside(seconds, spent_s, hits[:, Tier.VRAM] / _REPEATS, lines[Tier.VRAM].slope_s)


def step_outside(
    seconds: float,
    spent_s: NDArray[np.float64],
    num_vram: NDArray[np.float64],
    expert_s: float,
) -> float:
    """Seconds of a step less what grows with its experts.

    Args:
        seconds: of the step.
        spent_s: [L, 4] seconds, the parts of each layer as in `LayerClock.spent_ns`, where
            experts in RAM run beside the others.
        num_vram: [L] experts in VRAM that the step used.
        expert_s: seconds of one of them.
    """
    in_layers = spent_s.sum() - spent_s[:, [DENSE, RAM]].sum()
    fixed = spent_s[:, VRAM].sum() - num_vram.sum() * expert_s
    return float(seconds - in_layers + max(0.0, fixed))


def _split(
    seconds: float, num_bytes: int, bytes_per_s: float, calls: int = 1, s_per_token: float = 0.0
) -> Time:
    """A time per byte at the measured bandwidth and a fixed rest per call, exact for `seconds`."""
    per_byte = min(1 / bytes_per_s, seconds / num_bytes)
    return Time(max(0.0, seconds - per_byte * num_bytes) / calls, per_byte, s_per_token)


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
