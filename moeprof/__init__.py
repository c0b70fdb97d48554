"""Trace which experts a Mixture-of-Experts model uses, decide where each belongs, run it so.

What each command does is one function of the package of the same kind: `capture.trace`,
`analyze.analyze`, `plan.plan`, `runtime.run`. Reading traces and placements needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeprof.placement import read_placement
    from moeprof.trace import open_trace

__all__ = ["open_trace", "read_placement"]

_HOMES = {"open_trace": "moeprof.trace", "read_placement": "moeprof.placement"}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import on first use: `moeprof --help` must not wait for pandas."""
    if name not in _HOMES:
        raise AttributeError(f"module 'moeprof' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
