"""The native core: operations compiled from C++, each with its numpy definition in `reference`."""

from moeprof.native._core import NO_EXPERT, count_assignments

__all__ = ["NO_EXPERT", "count_assignments"]
