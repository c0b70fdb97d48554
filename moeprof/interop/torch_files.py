"""Opening files of torch.save without running code that they may hold."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError

_WHAT = "name a file of SGLang's expert distribution recorder"


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a file; tensors lie on the processor.

    Raises:
        TraceError: the file cannot be read, is damaged, holds anything else than tensors and plain
            values, or no dictionary.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TraceError(
            f"{path}: holds more than tensors and plain values, and is not opened, since that "
            "could run code",
            _WHAT,
        ) from error
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error})", _WHAT) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as e:
        first = str(e).split("\n", 1)[0][:100]
        raise TraceError(f"{path}: not a readable file of torch.save ({first})", _WHAT) from e
    if not isinstance(document, dict):
        raise TraceError(f"{path}: holds a {type(document).__name__}, expected a dictionary", _WHAT)
    return document


def integers(value: Any, where: str, num_axes: tuple[int, ...]) -> NDArray[np.int64]:  # noqa: ANN401
    """A tensor or list of whole numbers as an array.

    Raises:
        TraceError: it is no such tensor, or has another number of axes.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TraceError(f"{where}: no tensor of numbers", "record it anew") from error
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.round(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim not in num_axes:
        raise TraceError(
            f"{where}: {array.dtype} of shape {array.shape}, expected whole numbers in "
            f"{' or '.join(map(str, num_axes))} axes",
            "record it anew",
        )
    return array.astype(np.int64)
