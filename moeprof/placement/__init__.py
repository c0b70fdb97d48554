"""The placement format: which expert lives in which tier; specified in `placements/README.md`."""

from moeprof.placement.diff import ExpertMove, PlacementDiff, diff
from moeprof.placement.files import (
    check_free,
    parse_placement,
    placement_text,
    read_placement,
    write_placement,
    write_whole,
)
from moeprof.placement.manifest import (
    AS_STORED,
    DENSE_AS_STORED,
    Baseline,
    Budget,
    Estimate,
    HardwareOrigin,
    LayerPlacement,
    PhasePrediction,
    PlacedModel,
    Placement,
    Prediction,
    SolverRecord,
    TraceOrigin,
    Verdict,
)
from moeprof.placement.tier import Tier, format_ranges, parse_ranges
from moeprof.placement.validation import schema

__all__ = [
    "AS_STORED",
    "DENSE_AS_STORED",
    "Baseline",
    "Budget",
    "Estimate",
    "ExpertMove",
    "HardwareOrigin",
    "LayerPlacement",
    "PhasePrediction",
    "PlacedModel",
    "Placement",
    "PlacementDiff",
    "Prediction",
    "SolverRecord",
    "Tier",
    "TraceOrigin",
    "Verdict",
    "check_free",
    "diff",
    "format_ranges",
    "parse_placement",
    "parse_ranges",
    "placement_text",
    "read_placement",
    "schema",
    "write_placement",
    "write_whole",
]
