"""How an experts module lays out and combines its matrices, read from the module itself."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moeprof.errors import UnsupportedModelError
from moeprof.native.reference import UNIT_KINDS, GatedUnit

_FLAGS = frozenset(
    {"has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "is_concatenated"}
)
_UNUSED_FLAGS = frozenset({"_is_expert_parallel", "_is_hf_initialized", "_is_hooked"})
_COMPUTE_AS_STORED = "compute it with torch instead: --format stored"
_LIMITS = ("limit", "swiglu_limit")
_PROBE_ROWS = 256
_PROBE_WIDTH = 8
_PROBE_SPREAD = 8.0  # beyond the limits that published models clamp to
_PROBE_TOLERANCE = 2e-5


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """How an experts module computes, from the flags of transformers' experts interface.

    Attributes:
        is_transposed: matrices are `[in, out]` instead of `[out, in]`.
        has_bias: each matrix has a bias.
        has_gate: the first matrix gives gate and up together.
        has_post_expert_norm: each expert's output is normalised before it is weighted.
    """

    is_transposed: bool
    has_bias: bool
    has_gate: bool
    has_post_expert_norm: bool

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The parameters of each expert."""
        matrices = ("gate_up_proj" if self.has_gate else "up_proj", "down_proj")
        biases = tuple(f"{name}_bias" for name in matrices) if self.has_bias else ()
        return matrices + biases


def read_layout(module: nn.Module) -> ExpertLayout:
    """The layout of an experts module.

    Raises:
        UnsupportedModelError: the module does not go through the experts interface, or has a flag
            that this version does not know.
    """
    name = type(module).__name__
    if not hasattr(module, "has_gate"):
        raise UnsupportedModelError(
            f"{name}: its experts do not go through transformers' experts interface",
            "this architecture can be traced and analysed, but not run under a placement yet",
        )
    flags = {
        key
        for key, value in vars(module).items()
        if isinstance(value, bool) and key.lstrip("_").startswith(("has_", "is_"))
    }
    unknown = sorted(
        flag
        for flag in flags - _FLAGS - _UNUSED_FLAGS
        if not hasattr(nn.Module(), flag) and getattr(module, flag)
    )
    if unknown or getattr(module, "_is_expert_parallel", False):
        raise UnsupportedModelError(
            f"{name}: cannot be computed with {', '.join(unknown) or 'expert parallelism'}",
            "use a version of transformers that moeprof was tested with",
        )
    return ExpertLayout(
        is_transposed=getattr(module, "is_transposed", False),
        has_bias=getattr(module, "has_bias", False),
        has_gate=getattr(module, "has_gate", True),
        has_post_expert_norm=getattr(module, "has_post_expert_norm", False),
    )


@dataclass(frozen=True, slots=True)
class Gating:
    """The gated unit of an experts module, and where its two inputs stand.

    Attributes:
        unit: the unit, one that the kernels have.
        is_interleaved: rows of gate and up alternate; else all of gate come first.
    """

    unit: GatedUnit
    is_interleaved: bool


def read_gating(module: nn.Module, layout: ExpertLayout) -> Gating:
    """The gated unit that the kernels need to compute a module, found by what it does.

    The module's own gate is run on drawn values and compared with every unit the kernels have:
    activations are named in too many ways, and overridden, for names to be trusted.

    Args:
        module: an experts module, with or without weights.
        layout: its layout.

    Raises:
        UnsupportedModelError: the kernels have no such unit, or the module has a step that they
            have not.
    """
    name = type(module).__name__
    if not layout.has_gate:
        raise UnsupportedModelError(
            f"{name}: its experts have no gate, which the kernels cannot compute",
            _COMPUTE_AS_STORED,
        )
    if layout.has_post_expert_norm:
        raise UnsupportedModelError(
            f"{name}: normalises each expert's output, which the kernels cannot compute",
            _COMPUTE_AS_STORED,
        )
    drawn = np.random.default_rng(0).standard_normal((_PROBE_ROWS, 2 * _PROBE_WIDTH), np.float32)
    drawn *= np.float32(_PROBE_SPREAD)
    given = _apply_gate(module, drawn)
    for is_interleaved in (False, True):
        gate, up = (
            (drawn[:, ::2], drawn[:, 1::2])
            if is_interleaved
            else (drawn[:, :_PROBE_WIDTH], drawn[:, _PROBE_WIDTH:])
        )
        for unit in _units(module):
            expected = unit(gate, up)
            if given is not None and np.allclose(
                given, expected, rtol=_PROBE_TOLERANCE, atol=_PROBE_TOLERANCE
            ):
                return Gating(unit, is_interleaved)
    activation = getattr(module, "act_fn", None)
    called = type(activation).__name__ if activation is not None else "activation"
    raise UnsupportedModelError(
        f"{name}: its {called} is none of {', '.join(UNIT_KINDS)}, which the kernels compute",
        _COMPUTE_AS_STORED,
    )


def _apply_gate(module: Any, values: np.ndarray) -> np.ndarray | None:  # noqa: ANN401
    """What the module's gate makes of [n, 2 F] values; None where it cannot be run alone."""
    try:
        with torch.inference_mode():
            given: np.ndarray = module._apply_gate(torch.from_numpy(values)).numpy()
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    return given if given.shape == (len(values), values.shape[1] // 2) else None


def _units(module: nn.Module) -> list[GatedUnit]:
    """The kernels' units, with the numbers that the module declares."""
    limits = [getattr(module, name, None) for name in _LIMITS]
    limit = next((float(value) for value in limits if isinstance(value, int | float)), None)
    alpha = getattr(module, "alpha", None)
    numbers: dict[str, float] = {}
    if limit is not None:
        numbers["limit"] = limit
    if isinstance(alpha, int | float):
        numbers["alpha"] = float(alpha)
    return [GatedUnit(kind, **numbers) for kind in UNIT_KINDS]
