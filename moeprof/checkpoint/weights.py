"""Reading single weights, and single experts of stacked ones, from safetensors files."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import EllipsisType, TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moeprof.checkpoint.headers import TensorEntry
from moeprof.checkpoint.stored import StoredTensor
from moeprof.errors import UnsupportedModelError

# Told how far reading is: (what is read, bytes read so far, bytes in all).
LoadProgress = Callable[[str, int, int], object]


class TensorReader:
    """Reads weights of a checkpoint on demand, from any thread; use as a context manager.

    The files are mapped, so that what was read costs no memory of ours once it is copied.

    Args:
        directory: of the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, Any] = {}
        self._exit = ExitStack()
        self._opening = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.clear()
        self._exit.close()

    def read(self, stored: StoredTensor, expert: int | None) -> Tensor:
        """A weight, decoded; with `expert`, the rows `[expert : expert + 1]` of a stacked one.

        Returns:
            as `StoredTensor.decode`.

        Raises:
            UnsupportedModelError: the file cannot be read, or scales do not fit their values.
        """
        values = self._read(stored.values, expert)
        if stored.scales is None:
            return values
        own = expert if stored.has_scales_by_expert else None
        return stored.decode(values, self._read(stored.scales, own))

    def _read(self, entry: TensorEntry, expert: int | None) -> Tensor:
        path = self._directory / entry.file
        try:
            file = self._file(entry.file)
            tensor: Tensor = (
                file.get_tensor(entry.name)
                if expert is None
                else file.get_slice(entry.name)[expert : expert + 1]
            )
        except (OSError, SafetensorError) as error:
            raise UnsupportedModelError(
                f"{path}: tensor {entry.name!r} cannot be read ({error})",
                "copy or download the checkpoint again",
            ) from error
        return tensor

    def _file(self, name: str) -> Any:  # noqa: ANN401
        with self._opening:
            if name not in self._files:
                opened = safe_open(self._directory / name, framework="pt")
                self._files[name] = self._exit.enter_context(opened)
            return self._files[name]


class LazyWeight:
    """A weight that is read when transformers asks for its values, as it does of its own files."""

    def __init__(self, stored: StoredTensor, read: Callable[[StoredTensor], Tensor]) -> None:
        self._stored = stored
        self._read = read

    def __getitem__(self, index: EllipsisType) -> Tensor:
        return self._read(self._stored)


def lazy_weights(
    stored: Iterable[StoredTensor],
    reader: TensorReader,
    what: str,
    progress: LoadProgress | None = None,
) -> dict[str, LazyWeight]:
    """A state dict whose tensors are read, and decoded, one by one as they are asked for.

    Args:
        stored: the weights.
        reader: of their checkpoint; must stay open while they are asked for.
        what: name of these weights in the progress.
        progress: told after each weight; never from two threads at once.
    """
    wanted = list(stored)
    total = sum(weight.num_bytes for weight in wanted)
    done = 0
    telling = Lock()

    def read(weight: StoredTensor) -> Tensor:
        nonlocal done
        values = reader.read(weight, None)
        if progress is not None:
            with telling:
                done += weight.num_bytes
                progress(what, done, total)
        return values

    return {weight.name: LazyWeight(weight, read) for weight in wanted}


def element_type(name: str) -> torch.dtype | None:
    """The floating type of torch that computes and has this name; None where there is none."""
    found = getattr(torch, name, None)
    computes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    return found if found in computes else None
