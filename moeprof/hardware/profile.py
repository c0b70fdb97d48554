"""What a machine can do, as frozen facts, and the JSON file that holds them."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from moeprof.errors import CapacityError

FORMAT = "moeprof-hardware"
FORMAT_VERSION = 1
_MEASURE = "make one with: moeprof hardware MODEL -o FILE"
_MEND = "mend the file, or measure anew with: moeprof hardware MODEL -o FILE"
SOURCES = ("measured", "data-sheet")
TIERS = ("vram", "ram", "nvme")
LINKS = ("ram-vram", "nvme-ram")


@dataclass(frozen=True, slots=True)
class Time:
    """Time of a piece of work: a fixed part, one per byte, one per token, one per both.

    Attributes:
        fixed_s: seconds that every call takes.
        s_per_byte: seconds per byte of weights read.
        s_per_token: seconds per token beyond the reading of weights; 0 prices a single token.
        s_per_byte_token: seconds per byte of weights and token, where weights of any size are
            priced by the arithmetic that they cost.
    """

    fixed_s: float
    s_per_byte: float
    s_per_token: float = 0.0
    s_per_byte_token: float = 0.0

    def __call__(self, num_bytes: float, num_tokens: float = 0) -> float:
        """Seconds for `num_bytes` of weights and `num_tokens` tokens."""
        per_token = self.s_per_token + self.s_per_byte_token * num_bytes
        return self.fixed_s + self.s_per_byte * num_bytes + per_token * num_tokens


@dataclass(frozen=True, slots=True)
class TierProfile:
    """What one tier holds and how fast it computes.

    Attributes:
        capacity_bytes: bytes that weights may take.
        read_bytes_per_s: effective read bandwidth.
        expert_time: for each weight format, such as `bfloat16` or `q8_0`, the time of one expert
            that lies on this tier, for one token.
        expert_batch_time: the same for an expert that many tokens of one batch chose; its
            `s_per_token` holds for experts of the size that was measured. Empty in profiles that
            do not price prefill.
    """

    capacity_bytes: int
    read_bytes_per_s: float
    expert_time: Mapping[str, Time]
    expert_batch_time: Mapping[str, Time] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """A link between two tiers.

    Attributes:
        latency_s: seconds until the first byte.
        bytes_per_s: effective bandwidth.
    """

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """A machine, measured or from data sheets.

    Attributes:
        name: what the machine is called.
        source: `measured` or `data-sheet`.
        date: day of the measurement or of the data sheets, as YYYY-MM-DD.
        tiers: by name, of `TIERS`; `vram` and `ram` are always there.
        links: by name, of `LINKS`.
        round_trip_s: seconds of one host-device round trip.
        device_context_bytes: bytes of VRAM that the driver takes before anything is loaded.
        dense_time: for one decoded token, the time per layer (`fixed_s`) and per byte of the
            weights outside the experts (`s_per_byte`).
        tiers_overlap: whether vram and ram compute at the same time; they do not where both are
            host memory.
        dense_batch_time: `dense_time` of a batch of prompt tokens; its `s_per_token` is that of
            all layers together. None in profiles that do not price prefill.
    """

    name: str
    source: str
    date: str
    tiers: Mapping[str, TierProfile]
    links: Mapping[str, LinkProfile]
    round_trip_s: float
    device_context_bytes: int
    dense_time: Time
    tiers_overlap: bool = True
    dense_batch_time: Time | None = None

    def expert_time(self, tier: str, weight_format: str) -> Time:
        """The time of one expert of a weight format on a tier.

        Raises:
            CapacityError: the profile does not know it.
        """
        times = self.tiers[tier].expert_time
        if weight_format not in times:
            raise CapacityError(
                f"hardware profile {self.name}: tier {tier} has no expert_time for "
                f"{weight_format}, only for {', '.join(sorted(times)) or 'nothing'}",
                f"add tiers.{tier}.expert_time.{weight_format} to the profile",
            )
        return times[weight_format]

    def batch_time(self, tier: str, weight_format: str) -> Time | None:
        """The time of one expert that many tokens chose; None where the profile has none."""
        return self.tiers[tier].expert_batch_time.get(weight_format)

    def to_json(self) -> str:
        """The text of the profile's file: sorted keys, one trailing newline."""
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_hardware(path: str | Path) -> HardwareProfile:
    """The profile in a file.

    Raises:
        CapacityError: the file is not there, is not JSON, or a field is missing, unknown or out
            of range.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CapacityError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})", _MEASURE
        ) from error
    return parse_hardware(text, str(path))


def parse_hardware(text: str, where: str) -> HardwareProfile:
    """The profile in the text of its file; `where` names it in errors.

    Raises:
        CapacityError: as `read_hardware`.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CapacityError(f"{where}: not valid JSON ({error})", _MEASURE) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CapacityError(f"{where}: not a moeprof hardware profile", _MEASURE)
    if document.get("format_version") != FORMAT_VERSION:
        raise CapacityError(
            f"{where}: format version {json.dumps(document.get('format_version'))}, "
            f"this moeprof reads {FORMAT_VERSION}",
            _MEASURE,
        )
    names = {field.name for field in dataclasses.fields(HardwareProfile)}
    optional = frozenset({"dense_batch_time"})
    entry = _Entry(where, document, (names - optional) | {"format", "format_version"}, optional)
    tiers = entry.of_names("tiers", TIERS)
    if missing := {"vram", "ram"} - set(tiers):
        raise CapacityError(f"{where}: tiers: {' and '.join(sorted(missing))} missing", _MEND)
    links = entry.of_names("links", LINKS)
    return HardwareProfile(
        name=entry.text("name"),
        source=entry.one_of("source", SOURCES),
        date=entry.day("date"),
        tiers={name: _tier(entry, f"tiers.{name}", tiers[name]) for name in tiers},
        links={name: _link(entry, f"links.{name}", links[name]) for name in links},
        round_trip_s=entry.number("round_trip_s"),
        device_context_bytes=entry.integer("device_context_bytes"),
        dense_time=_time(entry, "dense_time", document["dense_time"]),
        tiers_overlap=entry.flag("tiers_overlap"),
        dense_batch_time=_optional_time(entry, "dense_batch_time"),
    )


class _Entry:
    """One JSON object with the fields `names` and perhaps `optional`; reads and checks them."""

    def __init__(
        self, where: str, entry: object, names: set[str], optional: frozenset[str] = frozenset()
    ) -> None:
        self.where = where
        if not isinstance(entry, dict):
            raise CapacityError(f"{where}: expected an object", _MEND)
        for name in entry:
            if name not in names | optional:
                raise CapacityError(f"{where}: unknown field {name!r}", "remove it")
        for name in sorted(names):
            if name not in entry:
                raise CapacityError(f"{where}: field {name!r} is missing", _MEND)
        self.entry: dict[str, Any] = entry

    def inside(self, name: str) -> str:
        return f"{self.where}: {name}"

    def wrong(self, name: str, expected: str) -> CapacityError:
        got = json.dumps(self.entry[name], ensure_ascii=False)
        return CapacityError(f"{self.inside(name)}: is {got}, expected {expected}", _MEND)

    def text(self, name: str) -> str:
        value = self.entry[name]
        if not isinstance(value, str) or not value:
            raise self.wrong(name, "a text")
        return value

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.text(name)
        if value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return value

    def day(self, name: str) -> str:
        value = self.text(name)
        try:
            return date.fromisoformat(value).isoformat()
        except ValueError as error:
            raise self.wrong(name, "a day as YYYY-MM-DD") from error

    def number(self, name: str, above_zero: bool = False) -> float:
        value = self.entry[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < float("inf") or (above_zero and value == 0):
            raise self.wrong(name, "a number above 0" if above_zero else "a number of at least 0")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.entry[name]
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def integer(self, name: str) -> int:
        value = self.entry[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(name, "an integer of at least 0")
        return value

    def of_names(self, name: str, choices: tuple[str, ...]) -> dict[str, Any]:
        value = self.entry[name]
        if not isinstance(value, dict) or not set(value) <= set(choices):
            raise self.wrong(name, f"an object with fields of {', '.join(choices)}")
        return value

    def times(self, name: str) -> dict[str, Time]:
        """The times of each weight format; empty where an optional field is missing."""
        value = self.entry.get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "an object, one entry per weight format")
        return {stored: _time(self, f"{name}.{stored}", value[stored]) for stored in value}


def _tier(parent: _Entry, place: str, value: object) -> TierProfile:
    names = {"capacity_bytes", "read_bytes_per_s", "expert_time"}
    entry = _Entry(parent.inside(place), value, names, frozenset({"expert_batch_time"}))
    return TierProfile(
        capacity_bytes=entry.integer("capacity_bytes"),
        read_bytes_per_s=entry.number("read_bytes_per_s", above_zero=True),
        expert_time=entry.times("expert_time"),
        expert_batch_time=entry.times("expert_batch_time"),
    )


def _link(parent: _Entry, place: str, value: object) -> LinkProfile:
    entry = _Entry(parent.inside(place), value, {"latency_s", "bytes_per_s"})
    return LinkProfile(entry.number("latency_s"), entry.number("bytes_per_s", above_zero=True))


def _time(parent: _Entry, place: str, value: object) -> Time:
    names, optional = ("fixed_s", "s_per_byte", "s_per_token"), "s_per_byte_token"
    entry = _Entry(parent.inside(place), value, set(names), frozenset({optional}))
    of_both = entry.number(optional) if optional in entry.entry else 0.0
    fixed_s, s_per_byte, s_per_token = (entry.number(name) for name in names)
    return Time(fixed_s, s_per_byte, s_per_token, of_both)


def _optional_time(entry: _Entry, name: str) -> Time | None:
    value = entry.entry.get(name)
    return None if value is None else _time(entry, name, value)
