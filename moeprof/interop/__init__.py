"""Traces that others recorded: one file for each foreign format, and the way into a trace."""

from moeprof.interop.formats import FORMATS, Format
from moeprof.interop.importing import import_trace
from moeprof.interop.placing import placed
from moeprof.interop.source import Facts, KnownModel

__all__ = ["FORMATS", "Facts", "Format", "KnownModel", "import_trace", "placed"]
