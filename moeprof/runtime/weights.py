"""Reading single tensors, and single experts of stacked ones, from safetensors files."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from moeprof.checkpoint.headers import TensorEntry
from moeprof.errors import UnsupportedModelError


class TensorReader:
    """Reads tensors of a checkpoint on demand; use as a context manager.

    The files are mapped, so that what was read costs no memory of ours once it is copied.

    Args:
        directory: of the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, Any] = {}
        self._exit = ExitStack()

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

    def read(self, entry: TensorEntry, expert: int | None) -> Tensor:
        """A tensor as stored; with `expert`, the rows `[expert : expert + 1]` of a stacked one.

        Raises:
            UnsupportedModelError: the file cannot be read.
        """
        path = self._directory / entry.file
        try:
            if entry.file not in self._files:
                opened = safe_open(path, framework="pt")
                self._files[entry.file] = self._exit.enter_context(opened)
            file = self._files[entry.file]
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
