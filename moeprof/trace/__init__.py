"""The trace format: what was routed, per token, on disk; specified in `traces/README.md`."""

from moeprof.trace.columns import LayerRouting, Tokens
from moeprof.trace.counts import CellCounts
from moeprof.trace.reader import Trace, open_trace
from moeprof.trace.schema import PHASES

__all__ = ["PHASES", "CellCounts", "LayerRouting", "Tokens", "Trace", "open_trace"]
