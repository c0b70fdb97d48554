"""Recording the routing of a model on text: `trace` does all of it."""

from moeprof.capture.routing import Routed, RoutingTap
from moeprof.capture.tracer import Progress, TraceRequest, trace

__all__ = ["Progress", "Routed", "RoutingTap", "TraceRequest", "trace"]
