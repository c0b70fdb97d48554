"""Opening files of torch.save without running code that they may hold."""

import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.text import shown, unreadable

_WHAT = "name a file of SGLang's expert distribution recorder"
# What torch.load raises on bytes that torch.save did not write, by mutating files that it did.
_DAMAGED = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OverflowError,
    AssertionError, MemoryError, ImportError, struct.error,
)  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a file; tensors lie on the processor.

    Raises:
        TraceError: the file cannot be read, is damaged, holds anything else than tensors and plain
            values, or no dictionary.
    """
    import torch

    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            document = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TraceError(
            f"{path}: is no file of torch.save with tensors and plain values alone, and is not "
            "read further, since that could run code",
            _WHAT,
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except _DAMAGED as error:
        reason = shown(str(error).split("\n", 1)[0][:100])
        raise TraceError(f"{path}: not a readable file of torch.save ({reason})", _WHAT) from error
    if not isinstance(document, dict):
        raise TraceError(f"{path}: holds a {type(document).__name__}, expected a dictionary", _WHAT)
    return document


def integers(value: Any, where: str, num_axes: tuple[int, ...]) -> NDArray[np.int64]:  # noqa: ANN401
    """A tensor or list of whole numbers as an array.

    Raises:
        TraceError: it is no such tensor, has another number of axes, or a number beyond int64.
    """
    expected = f"expected whole numbers in {' or '.join(map(str, num_axes))} axes"
    if value is None:
        raise TraceError(f"{where}: absent, {expected}", "record it anew")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TraceError(f"{where}: no tensor of numbers, {expected}", "record it anew") from error
    if array.dtype.kind not in "iuf" or array.ndim not in num_axes:
        kind = "no numbers" if array.dtype.kind in "OUSV" else f"{array.dtype}"
        raise TraceError(
            f"{where}: {kind} of shape {array.shape}, {expected}",
            "record it anew",
        )
    whole = np.isfinite(array) & (array == np.round(array)) & (abs(array) < 2.0**63)
    if not whole.all():
        raise TraceError(f"{where}: {array[~whole][0]}, {expected}", "record it anew")
    return array.astype(np.int64)
