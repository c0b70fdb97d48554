"""Expert counts in the importance matrix that llama.cpp's llama-imatrix writes as GGUF.

A file has `general.type` imatrix and, for each weight that was multiplied, the tensors
`NAME.in_sum2` and `NAME.counts`. Of a layer's experts (`blk.N.ffn_down_exps.weight` and its
siblings) `counts` is [num_experts, 1] float32: how many tokens chose each. Of a dense weight it is
the number of tokens, which gives top-k by division. All tokens are prompt, read in chunks. The
older .dat files have no counts of experts.

It cannot say which experts a token chose together or in which order, where documents end, weights,
tokens, the model or its bytes, nor counts from 2^24 on exactly.

Source: github.com/ggml-org/llama.cpp, tools/imatrix/imatrix.cpp, `save_imatrix`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.source import Counted, Facts, Source, Stated
from moeprof.interop.text import shown, unreadable
from moeprof.interop.values import MAX_ASSIGNMENTS

_EXPERTS = re.compile(r"blk\.(\d{1,5})\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts")
_DENSE = re.compile(r"blk\.(\d{1,5})\.(?!.*_exps)[\w.]+\.weight\.counts")
# From here on float32, in which the counts are stored, skips integers.
_INEXACT = 2**24
# What the reader raises on bytes that no writer wrote, by mutating files that one did.
_DAMAGED = (ValueError, LookupError, OverflowError, MemoryError, RecursionError)
_INSTALL = "install it with: pip install 'moeprof[import]'"
_EXPECTED = "name a file of: llama-imatrix --output-format gguf"
_PREFILL = 0


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The expert counts of the files.

    Raises:
        TraceError: a file is not such a GGUF, or damaged, or the package gguf is absent.
    """
    found = [_counts(path) for path in files]
    layers = tuple(sorted(found[0][0]))
    counted, ratios, notes = [], set(), []
    for path, (experts, dense) in zip(files, found, strict=True):
        if len({len(row) for row in experts.values()}) != 1:
            raise TraceError(
                f"{path}: its layers differ in the number of experts",
                "make it of one model, not of several merged",
            )
        if tuple(sorted(experts)) != layers:
            raise TraceError(
                f"{path}: has other layers than {files[0]}", "import one model at a time"
            )
        counts = np.stack([experts[layer] for layer in layers])
        ratios |= {experts[layer].sum() / dense[layer] for layer in layers if dense.get(layer)}
        counted.append(Counted(path.name, counts, _PREFILL))
        if counts.max() >= _INEXACT:
            notes.append(
                f"{path}: counts above {_INEXACT} are rounded, they were stored in float32"
            )
    whole = {int(ratio) for ratio in ratios if ratio == int(ratio) > 0}
    return Source(
        stated=Stated(
            moe_layers=layers,
            num_experts=counted[0].counts.shape[1],
            top_k=whole.pop() if len(whole) == 1 else None,
        ),
        counted=counted,
        missing=frozenset({"documents"}),
        notes=tuple(notes),
    )


def _counts(path: Path) -> tuple[dict[int, NDArray[np.int64]], dict[int, int]]:
    """Assignments by layer, and tokens by layer where a dense weight counted them."""
    experts: dict[int, NDArray[np.int64]] = {}
    dense: dict[int, int] = {}
    for name, values in _tensors(path):
        if match := _EXPERTS.fullmatch(name):
            layer, counts = int(match[1]), _whole(path, name, values)
            if layer in experts and not np.array_equal(experts[layer], counts):
                raise TraceError(
                    f"{path}: {name} differs from the other expert weights of the layer",
                    "import a file of one run, not one merged from different models",
                )
            experts[layer] = counts
        elif (match := _DENSE.fullmatch(name)) and values.size == 1:
            layer = int(match[1])
            dense[layer] = max(dense.get(layer, 0), int(_whole(path, name, values)[0]))
    if not experts:
        raise TraceError(
            f"{path}: has no counts of experts",
            "make it of a Mixture-of-Experts model: llama-imatrix --output-format gguf",
        )
    return experts, dense


def _tensors(path: Path) -> list[tuple[str, NDArray[np.generic]]]:
    """Names and values of the tensors that count something."""
    kind, tensors = _opened(path)
    if kind != "imatrix":
        raise TraceError(f"{path}: a GGUF file, but no importance matrix", _EXPECTED)
    for name, element, _ in tensors:
        if element != "F32":
            raise TraceError(f"{path}: {shown(name)} is {element}, expected F32", "make it anew")
    return [(name, values) for name, _, values in tensors]


def _opened(path: Path) -> tuple[object, list[tuple[str, str, NDArray[np.generic]]]]:
    """The `general.type` of a GGUF, and name, element type and values of what counts."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise TraceError("imatrix files are read with the package gguf", _INSTALL) from error

    class Bounded(GGUFReader):  # type: ignore[misc]
        """Does not read on for as long as a damaged length says when the file has ended."""

        def _get(self, offset: int, dtype: type, count: int = 1, **more: str) -> NDArray[Any]:
            if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends early")
            found: NDArray[Any] = super()._get(offset, dtype, count, **more)
            return found

    try:
        reader = Bounded(path)
        kind = reader.get_field("general.type")
        counting = [one for one in reader.tensors if one.name.endswith(".counts")]
        tensors = [(one.name, one.tensor_type.name, one.data) for one in counting]
        return None if kind is None else kind.contents(), tensors
    except OSError as error:
        raise unreadable(path, error) from error
    except _DAMAGED as error:
        raise TraceError(
            f"{path}: not a readable GGUF file ({shown(str(error))})",
            f"{_EXPECTED}; .dat files have no counts",
        ) from error


def _whole(path: Path, name: str, values: NDArray[np.generic]) -> NDArray[np.int64]:
    """Counts as integers, one for each expert."""
    if values.size == 0 or values.size != max(values.shape):
        raise TraceError(
            f"{path}: {name} has the shape {values.shape}, expected one count for each expert",
            "make the file anew",
        )
    flat = np.asarray(values, np.float64).reshape(-1)
    wrong = ~((flat >= 0) & (flat <= MAX_ASSIGNMENTS) & (flat == np.round(flat)))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise TraceError(
            f"{path}: {name}: entry {at} is {flat[at]}, expected a count of at most "
            f"{MAX_ASSIGNMENTS}",
            "make the file anew",
        )
    return flat.astype(np.int64)
