"""Whether and why not the CUDA kernels can run here, and what their faults mean."""

from types import ModuleType

from moeprof.errors import NativeError

try:
    from moeprof.native import _cuda
except ImportError:
    _built: ModuleType | None = None
else:
    _built = _cuda


def unavailable() -> str | None:
    """Why no CUDA kernel can run on this machine, in a few words; None if they can."""
    if _built is None:
        return "moeprof was built without a CUDA compiler"
    reason: str | None = _built.unavailable()
    return reason


def check_faults(faults: int) -> None:
    """Raise what the bits of `Exchange.take_faults` say, the most telling first.

    Raises:
        NativeError: any bit is set.
    """
    if not faults:
        return
    texts = (
        (_cuda.FAULT_UNKNOWN_LAYER, "the host has no experts of a layer it was asked for"),
        (_cuda.FAULT_UNKNOWN_EXPERT, "neither the device nor the host has an expert's weights"),
        (_cuda.FAULT_REPEATED_EXPERT, "the router chose an expert twice for a token"),
        (_cuda.FAULT_BUSY, "the host's experts are at work for another thread"),
        (_cuda.FAULT_NOT_FINITE, "an activation is not finite"),
        (_cuda.FAULT_NO_ANSWER, "the host did not answer the device in time"),
    )
    what = next((text for bit, text in texts if faults & bit), f"unknown fault {faults}")
    raise NativeError(
        f"experts on CUDA: {what}", "try --format stored, and report it if that works"
    )
