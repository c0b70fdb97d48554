"""What a machine can do: measured, written by hand, or put together from data sheets."""

from moeprof.hardware.catalogue import catalogue_profile
from moeprof.hardware.profile import (
    LINKS,
    SOURCES,
    TIERS,
    HardwareProfile,
    LinkProfile,
    TierProfile,
    Time,
    parse_hardware,
    read_hardware,
)

__all__ = [
    "LINKS",
    "SOURCES",
    "TIERS",
    "HardwareProfile",
    "LinkProfile",
    "TierProfile",
    "Time",
    "catalogue_profile",
    "parse_hardware",
    "read_hardware",
]
