"""Machines from data sheets: the JSON files beside this one, and a profile made of them.

A bandwidth is the data sheet's figure times a factor of `factors.json`, which says where it was
measured. Nothing here is measured on the machine that is asked about.
"""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from moeprof.errors import CapacityError
from moeprof.hardware.profile import HardwareProfile, LinkProfile, TierProfile, Time
from moeprof.units import parse_size

# Experts are priced in these formats: those that run, and those of checkpoints.
RUN_FORMATS = ("q8_0", "q4_0", "bf16")
STORED_FORMATS = ("bfloat16", "float16", "float32")
# Of imported routing, whose experts nobody named a format of.
UNKNOWN_FORMAT = "unknown"
# Weights in a byte; of unknown formats as many as in any, which costs the most arithmetic.
_WEIGHTS_PER_BYTE = {
    **dict.fromkeys(("bf16", "bfloat16", "float16"), 1 / 2),
    "float32": 1 / 4,
    "q8_0": 32 / 34,
    "q4_0": 32 / 18,
    UNKNOWN_FORMAT: 32 / 18,
}
# Bytes that a tier holds whose size was not stated: more than any model has.
UNSTATED_BYTES = 2**60

_GIB, _GB, _MB = 2**30, 10**9, 10**6
_MEMORY = re.compile(r"(?P<kind>[a-z]+\d)-?(?P<rate>\d{3,5})x(?P<channels>\d{1,2})")
_PCIE = re.compile(r"pcie-?(?P<generation>\d)(x(?P<lanes>\d{1,2}))?")
_NOISE = re.compile(r"nvidia|geforce|quadro|tesla|amd|radeon|intel|graphics|generation|[\s_-]")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics card.

    Attributes:
        name: as its vendor calls it, with the memory where there are several.
        vendor: NVIDIA, AMD or Intel.
        memory_gib: memory in GiB.
        bus_bits: width of the memory bus.
        gbit_per_s_per_pin: data rate of the memory; None for HBM, whose sheets state the product.
        bandwidth_gb_per_s: of the memory, in units of 10^9 bytes.
        float32_tflops: operations in plain float32, in units of 10^12 per second; None where no
            kernels of ours run.
        pcie_generation: of its link to the host.
        pcie_lanes: of its link to the host.
        source: data sheet.
        url: of the data sheet.
    """

    name: str
    vendor: str
    memory_gib: int
    bus_bits: int
    gbit_per_s_per_pin: float | None
    bandwidth_gb_per_s: float
    float32_tflops: float | None
    pcie_generation: int
    pcie_lanes: int
    source: str
    url: str


@dataclass(frozen=True, slots=True)
class Ram:
    """Main memory.

    Attributes:
        name: such as `ddr5-6000x2`.
        bytes_per_s: channels x data rate x width, the peak.
        capacity_bytes: as stated; `UNSTATED_BYTES` where it was not.
        pcie_generation: of the platform; None where only the memory was named.
    """

    name: str
    bytes_per_s: float
    capacity_bytes: int
    pcie_generation: int | None


def catalogue_profile(
    gpu: str, ram: str, nvme: str | None = None, host: str | None = None
) -> HardwareProfile:
    """The profile of a machine that one need not own.

    Args:
        gpu: a card of `gpus.json`; case, spaces and the vendor's name do not matter.
        ram: kind, data rate and channels such as `ddr5-6000x2`, or a platform of `memory.json`
            such as `epyc-9004`; both may end in `:SIZE`, such as `:64GB`.
        nvme: a class of `drives.json`, `gen3`, `gen4` or `gen5`; None for no drive.
        host: the slot that the card is in, such as `pcie3` or `pcie4x8`; None for the best that
            card and platform have.

    Raises:
        CapacityError: something is not in the catalogue.
    """
    card, memory = find_gpu(gpu), find_ram(ram)
    link_bytes_per_s = _link(card, memory, host)
    tiers = {
        "vram": _vram(card),
        "ram": _ram(memory),
    }
    links = {"ram-vram": LinkProfile(0.0, link_bytes_per_s * factor("pcie_share"))}
    words = [card.name, memory.name]
    if nvme is not None:
        drive = _named(nvme, _file("drives.json")["drives"], "nvme", "name a class of drives: ")
        read = drive["read_mb_per_s"] * _MB * factor("nvme_read_share")
        tiers["nvme"] = TierProfile(drive["capacity_gb"] * _GB, read, {})
        links["nvme-ram"] = LinkProfile(1 / drive["iops_qd1"], read)
        words.append(drive["drive"])
    dense = Time(factor("dense_layer_s"), 1 / tiers["vram"].read_bytes_per_s)
    flops = _prefill_flops(card)
    return HardwareProfile(
        name=", ".join(words),
        source="data-sheet",
        date=max(_file(name)["date"] for name in ("gpus.json", "memory.json", "factors.json")),
        tiers=tiers,
        links=links,
        round_trip_s=factor("round_trip_s"),
        device_context_bytes=int(factor("device_context_bytes")),
        dense_time=dense,
        dense_batch_time=_batch_time(dense, "bf16", flops) if flops else None,
    )


def find_gpu(name: str) -> Gpu:
    """The card of a name.

    Raises:
        CapacityError: none, or several, are called so.
    """
    cards = gpus()
    wanted = _plain(name)
    exact = [card for card in cards if _plain(card.name) == wanted]
    sized = [card for card in cards if wanted and _is_sized(_plain(card.name), wanted)]
    found = exact or sized
    if len(found) == 1:
        return found[0]
    if found:
        raise CapacityError(
            f"gpu: {name!r} may be several cards",
            "name one of " + ", ".join(card.name for card in found),
        )
    by_name = {_plain(card.name): card.name for card in cards}
    raise CapacityError(
        f"gpu: {name!r} is not in the catalogue",
        f"{_closest(wanted, by_name)}; your own is measured with: moeprof hardware MODEL -o FILE",
    )


def find_ram(text: str) -> Ram:
    """Main memory from its description; see `catalogue_profile`.

    Raises:
        CapacityError: it is neither a description nor a platform, or out of range.
    """
    described, _, size = text.partition(":")
    capacity = parse_size(size) if size else UNSTATED_BYTES
    wanted = re.sub(r"[\s_]", "", described.lower())
    generation = None
    match = _MEMORY.fullmatch(wanted)
    if match is None:
        platforms = _file("memory.json")["platforms"]
        platform = _named(wanted, platforms, "ram", "write it as ddr5-6000x2, or name a platform: ")
        wanted, generation = platform["memory"], platform["pcie_generation"]
        match = _MEMORY.fullmatch(wanted)
    if match is None:
        raise ValueError(f"memory.json: {wanted} is no memory")
    kinds = {kind["name"]: kind for kind in _file("memory.json")["kinds"]}
    if match["kind"] not in kinds:
        raise CapacityError(
            f"ram: {match['kind']} is not in the catalogue, which has {', '.join(kinds)}",
            "write it as ddr5-6000x2: kind, MT/s, channels",
        )
    kind, rate, channels = kinds[match["kind"]], int(match["rate"]), int(match["channels"])
    least, most = kind["least_mt_per_s"], kind["most_mt_per_s"]
    if not least <= rate <= most or not 1 <= channels <= 24:
        raise CapacityError(
            f"ram: {described}: {kind['name']} runs at {least} to {most} MT/s, on 1 to 24 channels",
            "write it as ddr5-6000x2: kind, MT/s, channels",
        )
    bytes_per_s = rate * _MB * channels * kind["channel_bits"] / 8
    return Ram(f"{kind['name']}-{rate}x{channels}", bytes_per_s, capacity, generation)


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every card of the catalogue."""
    return tuple(Gpu(**entry) for entry in _file("gpus.json")["gpus"])


@cache
def factor(name: str) -> float:
    """The value of a factor of `factors.json`."""
    values = {entry["name"]: entry["value"] for entry in _file("factors.json")["factors"]}
    return float(values[name])


def _vram(card: Gpu) -> TierProfile:
    read = card.bandwidth_gb_per_s * _GB * factor("vram_read_share")
    time = Time(factor("vram_expert_fixed_s"), 1 / (read * factor("vram_expert_share")))
    flops = _prefill_flops(card)
    batches = {name: _batch_time(time, name, flops) for name in _WEIGHTS_PER_BYTE if flops}
    times = dict.fromkeys(_WEIGHTS_PER_BYTE, time)
    return TierProfile(card.memory_gib * _GIB, read, times, batches)


def _prefill_flops(card: Gpu) -> float:
    return (card.float32_tflops or 0.0) * 1e12 * factor("vram_prefill_share")


def _batch_time(decode: Time, weight_format: str, flops: float) -> Time:
    """The time of an expert that many tokens chose: two operations a weight and token."""
    per_byte_token = 2 * _WEIGHTS_PER_BYTE[weight_format] / flops
    return Time(decode.fixed_s, decode.s_per_byte, s_per_byte_token=per_byte_token)


def _ram(memory: Ram) -> TierProfile:
    read = memory.bytes_per_s * factor("ram_read_share")
    times = {
        name: Time(0.0, 1 / (read * factor(f"ram_expert_share_{name}"))) for name in RUN_FORMATS
    }
    slowest = max(times.values(), key=lambda time: time.s_per_byte)
    times |= dict.fromkeys(STORED_FORMATS, times["bf16"]) | {UNKNOWN_FORMAT: slowest}
    batches = {name: _batch_time(time, name, _core_flops(name)) for name, time in times.items()}
    return TierProfile(memory.capacity_bytes, read, times, batches)


def _core_flops(weight_format: str) -> float:
    """Floating-point operations per second of the host's cores; the slowest where unmeasured."""
    measured = weight_format if weight_format in RUN_FORMATS else "bf16"
    return factor("host_cores") * factor(f"ram_core_flops_{measured}")


def _link(card: Gpu, memory: Ram, host: str | None) -> float:
    """Bytes per second of the link between card and host, before protocol overhead."""
    generation, lanes = card.pcie_generation, card.pcie_lanes
    if memory.pcie_generation is not None:
        generation = min(generation, memory.pcie_generation)
    rates = {
        entry["generation"]: float(entry["value"])
        for entry in _file("factors.json")["pcie_lane_bytes_per_s"]
    }
    if host is not None:
        match = _PCIE.fullmatch(re.sub(r"[\s_.]", "", host.lower()))
        if match is None or int(match["generation"]) not in rates or match["lanes"] == "0":
            raise CapacityError(
                f"host: {host!r} is no slot",
                f"write it as pcie4 or pcie4x8, generation {min(rates)} to {max(rates)}",
            )
        generation = min(generation, int(match["generation"]))
        lanes = min(lanes, int(match["lanes"] or lanes))
    return rates[generation] * lanes


def _plain(name: str) -> str:
    """A card's name without case, spaces and words that people leave out."""
    return _NOISE.sub("", name.lower())


def _is_sized(name: str, wanted: str) -> bool:
    """Whether a card's name is the wanted one but for its series, form or size of memory."""
    pattern = r"(rtx|rx|arc)?" + re.escape(wanted) + r"(blackwell)?(pcie|sxm)?(\d+gb)?"
    return re.fullmatch(pattern, name) is not None


def _named(wanted: str, entries: Sequence[dict[str, Any]], what: str, hint: str) -> dict[str, Any]:
    by_name = {entry["name"]: entry for entry in entries}
    plain = re.sub(r"[\s_]", "", wanted.lower())
    if plain not in by_name:
        known = _closest(plain, {name: name for name in by_name})
        raise CapacityError(f"{what}: {wanted!r} is not in the catalogue", hint + known)
    return by_name[plain]


def _closest(wanted: str, by_name: dict[str, str]) -> str:
    """The names that are like the wanted one, or all of them where none is."""
    near = difflib.get_close_matches(wanted, by_name, n=4, cutoff=0.5)
    if near:
        return "perhaps " + ", ".join(by_name[name] for name in near)
    return "it has " + ", ".join(by_name.values())


@cache
def _file(name: str) -> dict[str, Any]:
    text = (resources.files("moeprof.hardware.catalogue") / name).read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
