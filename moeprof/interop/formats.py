"""The foreign formats by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moeprof.interop import route_trace, tok_layers
from moeprof.interop.source import Facts, Source
from moeprof.trace import Trace


@dataclass(frozen=True, slots=True)
class Format:
    """A foreign format.

    Attributes:
        what: what its files are, in a few words.
        read: makes a source of files; raises TraceError.
        write: writes a trace's rows into one file; None where that makes no sense.
    """

    what: str
    read: Callable[[Sequence[Path], Facts], Source]
    write: Callable[[Trace, Path], None] | None = None


FORMATS = {
    "route-trace": Format("route_trace v1 CSV", route_trace.read, route_trace.write),
    "tok-layers": Format("JSON lines of tok and layers", tok_layers.read, tok_layers.write),
}
