"""The only place units convert: bytes to and from text; seconds, speeds and numbers to text."""

import re

from moeprof.errors import CapacityError

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes in a size such as `24GB` (powers of 1000), `22.5GiB` (powers of 1024) or `4096`.

    Raises:
        CapacityError: `text` is not a size, or one of 8 EiB and more.
    """
    match = _SIZE.fullmatch(text)
    if match is None or (match[3] and not match[2]):
        raise CapacityError(f"size: {text!r} is not a size", "write it as 24GB, 22.5GiB or 900MB")
    prefixes = _BINARY if match[3] else _DECIMAL
    num_bytes = float(match[1]) * prefixes[match[2].lower()]
    if num_bytes >= 2**63:
        raise CapacityError(
            f"size: {text[:40]!r} is above 8 EiB", "name a size that a machine can have"
        )
    return round(num_bytes)


def format_size(num_bytes: float) -> str:
    """A size in binary units with three significant digits or more, such as `22.5 GiB`."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_ms(seconds: float) -> str:
    """Milliseconds without the unit, for columns of a table, to the microsecond: `3.207`."""
    return f"{seconds * 1e3:.3f}"


def format_duration(seconds: float) -> str:
    """A duration in the largest fitting unit, such as `3.2 ms`, `41 s` or `2 h 05 min`."""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_speed(per_second: float) -> str:
    """A figure per second with three significant digits or more, such as `4,210` or `31.2`."""
    if abs(per_second) >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if abs(per_second) >= 10 else f"{per_second:.2f}"


def format_count(number: int, what: str) -> str:
    """A number of things, such as `1 document` or `8,320 tokens`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
