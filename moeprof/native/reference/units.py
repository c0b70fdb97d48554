"""The exponential in explicit float32 operations, and the gated units built on it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNIT_KINDS = ("silu", "gelu_tanh", "clamped", "clamped_silu")

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)  # 9 bits: its product with an exponent is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_ROUNDING = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, half to even
_POLYNOMIAL = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)
_GELU_LINEAR = np.float32(1.5957691216057308)  # 2 sqrt(2 / pi)
_GELU_CUBIC = np.float32(0.07135481282553616)  # 0.044715 times that


@dataclass(frozen=True, slots=True)
class GatedUnit:
    """What happens between the two projections of an expert.

    - `silu`: `silu(gate) * up`;
    - `gelu_tanh`: `gelu_tanh(gate) * up`;
    - `clamped`, gpt-oss's: g = min(gate, limit), u = max(-limit, min(up, limit)),
      (u + 1) * (g / (1 + exp(-(g * alpha))));
    - `clamped_silu`: `silu(g) * u` with the same g and u.
    """

    kind: str = "silu"
    alpha: float = 1.702
    limit: float = 7.0

    def __post_init__(self) -> None:
        if self.kind not in UNIT_KINDS:
            expected = ", ".join(UNIT_KINDS)
            raise ValueError(f"gated unit: {self.kind!r}, expected one of {expected}")

    def __call__(self, gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
        """The unit's values, same shape as `gate` and `up`, float32; infinite on overflow."""
        with np.errstate(over="ignore"):
            if self.kind == "silu":
                return silu(gate) * up
            if self.kind == "gelu_tanh":
                return gelu_tanh(gate) * up
            limit, alpha = np.float32(self.limit), np.float32(self.alpha)
            gate = np.where(gate > limit, limit, gate)
            up = np.where(up > limit, limit, up)
            up = np.where(up < -limit, -limit, up)
            if self.kind == "clamped_silu":
                return silu(gate) * up
            return (up + np.float32(1)) * (gate / _one_plus_exponential(-(gate * alpha)))


def exponential(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """exp(x) within 1 unit in the last place, for x in [-87, 88]; x is clipped to that first.

    t = x * log2(e) + 1.5 * 2**23; n = t - 1.5 * 2**23, the exponent; r = (x - n * ln2_high) -
    n * ln2_low; p by Horner's rule, highest power first, each step (p * r) + c; y = ((p * (r * r))
    + r) + 1; the result is y * 2**n. The float with the bits (bits(t) << 23) + 0x3F800000, modulo
    2**32, is 2**n.

    Source of the polynomial: Cephes, expf.c.

    Args:
        x: [...] float32; a NaN gives a NaN.

    Returns:
        [...] float32, always normal and finite for numbers.
    """
    x = np.where(x > np.float32(88), np.float32(88), x)
    x = np.where(x < np.float32(-87), np.float32(-87), x)
    shifted = x * _LOG2_E + _ROUNDING
    exponent = shifted - _ROUNDING
    r = (x - exponent * _LN2_HIGH) - exponent * _LN2_LOW
    p = np.full_like(r, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = p * r + coefficient
    y = (p * (r * r) + r) + np.float32(1)
    power_bits = (shifted.view(np.uint32) << np.uint32(23)) + np.uint32(0x3F800000)
    result: NDArray[np.float32] = y * power_bits.view(np.float32)
    return result


def silu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """SiLU, x / (1 + exp(-x)), [...] float32."""
    return x / _one_plus_exponential(-x)


def gelu_tanh(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """GELU's tanh form, x / (1 + exp(-(x * (c1 + c3 * (x * x))))), [...] float32.

    0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x**3), so
    c1 = 2 sqrt(2 / pi) and c3 = 0.044715 c1. Source: Hendrycks and Gimpel, arXiv:1606.08415.
    """
    with np.errstate(over="ignore"):
        inner = x * (_GELU_LINEAR + _GELU_CUBIC * (x * x))
    return x / _one_plus_exponential(-inner)


def _one_plus_exponential(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(1) + exponential(x)
