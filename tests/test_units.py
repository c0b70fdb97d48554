import pytest

from moeprof.errors import CapacityError
from moeprof.units import format_count, format_duration, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("24GB", 24_000_000_000),
        ("22.5GiB", 24_159_191_040),
        ("900MB", 900_000_000),
        ("1.5 kB", 1500),
        ("4096", 4096),
        ("2tib", 2 * 2**40),
        ("8388607TiB", 8388607 * 2**40),
    ],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "24 gigs", "-1GB", "GB", "1e9", "5iB", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(CapacityError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["9223372036854775808", "9000000TiB", f"{10**400}GB"])
def test_what_no_machine_has_is_refused(text: str) -> None:
    with pytest.raises(CapacityError, match="above 8 EiB"):
        parse_size(text)


def test_sizes_and_durations_are_written_in_fitting_units() -> None:
    assert [format_size(n) for n in (0, 1023, 1536, 5 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
    ]
    assert [format_duration(s) for s in (2e-6, 0.0032, 9.96, 41, 600, 7500)] == [
        "2.0 µs",
        "3.2 ms",
        "10.0 s",
        "41 s",
        "10 min",
        "2 h 05 min",
    ]


def test_one_thing_is_told_from_many() -> None:
    assert [format_count(n, "token") for n in (0, 1, 2, 8320)] == [
        "0 tokens",
        "1 token",
        "2 tokens",
        "8,320 tokens",
    ]
