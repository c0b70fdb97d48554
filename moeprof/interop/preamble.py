"""The preamble of `route_trace v1`: lines that begin with #, ahead of the header."""

import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.errors import TraceError

MAGIC = "# route_trace v1"
_PAIR = re.compile(r"(\w+)=(\S*)")


@dataclass
class Preamble:
    """The `#` lines of a file.

    Attributes:
        model: the pairs of the line on the model, and as `line` its number.
        expert_bytes: by layer, 0 where it is dense.
        dense_bytes: by layer.
        num_lines: lines up to the header.
        num_bytes: bytes up to there.
    """

    model: dict[str, str] = field(default_factory=dict)
    expert_bytes: dict[int, int] = field(default_factory=dict)
    dense_bytes: dict[int, int] = field(default_factory=dict)
    num_lines: int = 0
    num_bytes: int = 0


def read_preamble(path: Path, data: bytes) -> Preamble:
    """The preamble of a file's text.

    Raises:
        TraceError: the text begins with another line, ends with the preamble, or a number in it is
            none.
    """
    found = Preamble()
    for line in io.BytesIO(data):
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        if found.num_lines == 0 and text.strip() != MAGIC:
            raise TraceError(
                f"{path}: line 1: begins with {text[:40]!r}, expected {MAGIC!r}",
                "name a file recorded as route_trace v1",
            )
        if not text.startswith("#"):
            return found
        found.num_lines += 1
        found.num_bytes += len(line)
        pairs = dict(_PAIR.findall(text))
        if "layer" in pairs:
            layer = number_in(path, found.num_lines, "layer", pairs)
            found.expert_bytes[layer] = number_in(path, found.num_lines, "expert_bytes", pairs)
            found.dense_bytes[layer] = number_in(path, found.num_lines, "dense_bytes", pairs)
        elif pairs:
            found.model |= {"line": str(found.num_lines)} | pairs
    raise TraceError(f"{path}: ends after its preamble", "the file is cut; export it anew")


def number_in(path: Path, line: int, name: str, pairs: dict[str, str]) -> int:
    """One of the numbers in a line of the preamble.

    Raises:
        TraceError: it is absent, or no whole number of at most 18 digits.
    """
    value = pairs.get(name, "")
    if not (value.isascii() and value.isdecimal()) or len(value) > 18:
        raise TraceError(
            f"{path}: line {line}: {name} is {value!r}, expected an integer of at least 0",
            "export the file anew",
        )
    return int(value)
