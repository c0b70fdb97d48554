import json
from pathlib import Path
from typing import Any

import pytest
from planning import make_hardware

from moeprof.errors import CapacityError
from moeprof.hardware import Time, parse_hardware, read_hardware


def damage(path: str, value: object) -> str:
    """The text of a sound profile with one value set, or removed where `value` is `...`."""
    document: dict[str, Any] = json.loads(make_hardware().to_json())
    entry = document
    *above, last = path.split("/")
    for step in above:
        entry = entry[step]
    if value is ...:
        del entry[last]
    else:
        entry[last] = value
    return json.dumps(document)


def test_a_profile_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "desk.json"
    path.write_text(make_hardware().to_json(), encoding="utf-8")
    assert read_hardware(path) == make_hardware()


def test_the_time_of_many_tokens_is_read_where_it_stands_and_may_be_left_out() -> None:
    batch = {"bfloat16": {"fixed_s": 2.0, "s_per_byte": 0.25, "s_per_token": 0.5}}
    profile = parse_hardware(damage("tiers/vram/expert_batch_time", batch), "desk.json")
    assert profile.batch_time("vram", "bfloat16") == Time(2.0, 0.25, 0.5)
    assert profile.batch_time("vram", "q8_0") is None
    assert parse_hardware(profile.to_json(), "desk.json") == profile
    without = parse_hardware(damage("tiers/vram/expert_batch_time", ...), "desk.json")
    assert without.batch_time("vram", "bfloat16") is None


def test_the_time_of_a_batch_outside_the_experts_may_be_null_or_left_out() -> None:
    time = {"fixed_s": 2.0, "s_per_byte": 0.25, "s_per_token": 0.5}
    for value, expected in ((time, Time(2.0, 0.25, 0.5)), (None, None), (..., None)):
        profile = parse_hardware(damage("dense_batch_time", value), "desk.json")
        assert profile.dense_batch_time == expected
        assert parse_hardware(profile.to_json(), "desk.json") == profile


def test_the_time_of_an_expert_is_linear_in_bytes_and_tokens() -> None:
    assert Time(fixed_s=1.0, s_per_byte=0.5, s_per_token=0.25)(8) == 5.0
    assert Time(fixed_s=1.0, s_per_byte=0.5, s_per_token=0.25)(8, 4) == 6.0
    assert Time(1.0, 0.5, 0.25, s_per_byte_token=0.125)(8, 4) == 10.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", ": not a moeprof hardware profile"),
        ("format_version", 2, ": format version 2, this moeprof reads 1"),
        ("colour", "red", ": unknown field 'colour'"),
        ("name", ..., ": field 'name' is missing"),
        ("name", "", ': name: is "", expected a text'),
        ("source", "guess", ': source: is "guess", expected one of measured, data-sheet'),
        ("date", "yesterday", ': date: is "yesterday", expected a day as YYYY-MM-DD'),
        ("round_trip_s", -1, ": round_trip_s: is -1, expected a number of at least 0"),
        ("round_trip_s", float("inf"), ": round_trip_s: is Infinity, expected a number of at"),
        ("device_context_bytes", 1.5, ": device_context_bytes: is 1.5, expected an integer of"),
        ("dense_time/s_per_byte", True, ": dense_time: s_per_byte: is true, expected a number"),
        ("tiers_overlap", 1, ": tiers_overlap: is 1, expected true or false"),
        ("dense_time/s_per_token", ..., ": dense_time: field 's_per_token' is missing"),
        ("dense_batch_time", 3, ": dense_batch_time: expected an object"),
        ("tiers/ram", ..., ": tiers: ram missing"),
        ("tiers/tape", {}, ": tiers: is {"),
        ("tiers/ram/colour", "red", ": tiers.ram: unknown field 'colour'"),
        ("tiers/ram/read_bytes_per_s", 0, ": tiers.ram: read_bytes_per_s: is 0, expected a number"),
        ("tiers/ram/expert_time", 3, ": tiers.ram: expert_time: is 3, expected an object"),
        ("tiers/ram/expert_time/q8_0", 3, ": tiers.ram: expert_time.q8_0: expected an object"),
        (
            "tiers/ram/expert_batch_time",
            {"q8_0": {"fixed_s": 1, "s_per_byte": 1, "s_per_token": -1}},
            ": tiers.ram: expert_batch_time.q8_0: s_per_token: is -1, expected a number of at le",
        ),
        ("links/ram-vram/latency_s", "1", ': links.ram-vram: latency_s: is "1", expected a number'),
    ],
)
def test_a_damaged_profile_is_refused_with_its_place(
    path: str, value: object, message: str
) -> None:
    with pytest.raises(CapacityError) as caught:
        parse_hardware(damage(path, value), "desk.json")
    assert str(caught.value).startswith("desk.json" + message)


def test_what_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match=r"desk\.json: not valid JSON"):
        parse_hardware("{", "desk.json")
    with pytest.raises(CapacityError, match="cannot be read"):
        read_hardware(tmp_path / "none.json")


def test_an_unknown_weight_format_names_those_that_are_known() -> None:
    with pytest.raises(CapacityError, match="tier ram has no expert_time for q8_0, only for bf"):
        make_hardware().expert_time("ram", "q8_0")
