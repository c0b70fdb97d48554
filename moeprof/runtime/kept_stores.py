"""Packed experts that are kept on disk, so that the next start need not convert them again.

A store is a directory of its own inside the one that the user names: one file for each MoE layer,
its experts in ascending order, each of the same size, and a manifest that is written last. It is
built under another name and renamed when it is whole, so that what was cut short is never read and
two processes that build the same store do not disturb each other. From before its first file until
it is renamed, its builder holds a lock in it: a directory under such a name without a lock that is
held was left behind.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from moeprof.checkpoint import Checkpoint
from moeprof.errors import CapacityError, MoeprofError
from moeprof.units import format_size

FORMAT = "moeprof-kept-experts"
# Of the packed bytes (`moeprof.native.reference`, layout) and of the manifest.
FORMAT_VERSION = 2
_MANIFEST = "store.json"
_LOCK = "building.lock"
_UNFINISHED = ".unfinished-"
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096


class KeptStore:
    """The packed experts of one checkpoint in one format; whole, or being built.

    Attributes:
        path: its directory, once it is whole.
        note: why a store that was there is built again; None where there is nothing to say.
    """

    def __init__(
        self, path: Path, sizes: Sequence[int], num_experts: int, note: str | None
    ) -> None:
        self.path = path
        self.note = note
        self._sizes = tuple(sizes)
        self._num_experts = num_experts
        self._layers: list[NDArray[np.uint8]] = []
        self._building: _Building | None = None

    @classmethod
    def open_or_create(
        cls,
        directory: Path,
        checkpoint: Checkpoint,
        weight_format: str,
        expert_bytes: Sequence[int],
    ) -> Self:
        """The store of a checkpoint in a format, checked; or an empty one to be filled.

        Args:
            directory: holds the stores of any number of checkpoints; is made.
            checkpoint: where the experts come from.
            weight_format: `q8_0`, `q4_0` or `bf16`.
            expert_bytes: for each MoE layer the bytes of one packed expert.

        Raises:
            CapacityError: the disk has no room for it.
            MoeprofError: the directory cannot be used.
        """
        identity = _identity(checkpoint, weight_format, expert_bytes)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        path = directory / f"{checkpoint.path.name}-{weight_format}-{digest[:16]}"
        num_experts = checkpoint.shape.num_experts
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(directory)
            damage = _damage(path, identity, expert_bytes, num_experts)
            note = f"{path}: {damage}; it is made again" if damage else None
            store = cls(path, expert_bytes, num_experts, note)
            if path.is_dir() and damage is None:
                store._map()
            else:
                store._building = _Building(directory, identity, expert_bytes, num_experts)
        except OSError as error:
            raise _cannot(directory, error) from error
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._building is not None:
            self._building.discard()
            self._building = None

    @property
    def is_whole(self) -> bool:
        """Whether every expert is there and was checked."""
        return bool(self._layers)

    def has(self, row: int, expert: int) -> bool:
        """Whether an expert can be read.

        Args:
            row: index of the layer in `moe_layers`.
            expert: expert id.
        """
        return self.is_whole and 0 <= row < len(self._sizes) and 0 <= expert < self._num_experts

    def expert(self, row: int, expert: int) -> NDArray[np.uint8]:
        """[bytes of a packed expert] uint8, a view of the mapped file that cannot be written.

        Raises:
            IndexError: there is no such expert, or the store is not whole yet.
        """
        if not self.has(row, expert):
            raise IndexError(f"{self.path}: no expert {expert} in row {row}")
        view: NDArray[np.uint8] = self._layers[row][expert]
        return view

    def put(self, row: int, expert: int, packed: NDArray[np.uint8]) -> None:
        """Write one expert of a store that is being built.

        Args:
            row: index of the layer in `moe_layers`.
            expert: expert id.
            packed: [bytes of a packed expert] uint8.

        Raises:
            ValueError: the store is whole, or the size is another.
            CapacityError: the disk is full.
            MoeprofError: the file cannot be written.
        """
        if self._building is None:
            raise ValueError(f"{self.path}: is whole already")
        if packed.nbytes != self._sizes[row]:
            raise ValueError(f"expected {self._sizes[row]} bytes, got {packed.nbytes}")
        try:
            self._building.put(row, expert, packed)
        except OSError as error:
            raise _cannot(self.path.parent, error) from error

    def finish(self) -> None:
        """Make a store whole, once every expert was put; nothing to do for one that is.

        Raises:
            ValueError: experts are missing.
            CapacityError: the disk is full.
            MoeprofError: the files cannot be written.
        """
        if self._building is None:
            return
        try:
            self._building.finish(self.path)
            self._building = None
            self._map()
        except OSError as error:
            raise _cannot(self.path.parent, error) from error

    def _map(self) -> None:
        self._layers = [
            _mapped(self.path, row, size, self._num_experts) for row, size in enumerate(self._sizes)
        ]


class _Building:
    """A store under its provisional name, locked by the process that fills it."""

    def __init__(
        self, directory: Path, identity: dict[str, Any], sizes: Sequence[int], num_experts: int
    ) -> None:
        needed = sum(sizes) * num_experts
        free = shutil.disk_usage(directory).free
        if needed > free:
            raise CapacityError(
                f"{directory}: the kept experts need {format_size(needed)}, "
                f"{format_size(free)} are free",
                "free disk space, name a directory on another disk, or run without --store",
            )
        self._identity = identity
        self._sizes = tuple(sizes)
        self._sums: list[list[int | None]] = [[None] * num_experts for _ in sizes]
        self._path, self._lock = _claim(directory)
        self._files: list[IO[bytes]] = []
        try:
            for row, size in enumerate(sizes):
                file = (self._path / _layer_name(row)).open("wb", buffering=0)
                self._files.append(file)
                os.posix_fallocate(file.fileno(), 0, size * num_experts)
        except OSError:
            self.discard()
            raise

    def put(self, row: int, expert: int, packed: NDArray[np.uint8]) -> None:
        """Write an expert at its place and remember its checksum."""
        content = memoryview(np.ascontiguousarray(packed).data).cast("B")
        offset = expert * self._sizes[row]
        written = 0
        while written < len(content):
            written += os.pwrite(self._files[row].fileno(), content[written:], offset + written)
        self._sums[row][expert] = zlib.crc32(content)

    def finish(self, path: Path) -> None:
        """Make everything durable, then give it the name under which it is looked for."""
        missing = sum(value is None for layer in self._sums for value in layer)
        if missing:
            raise ValueError(f"{path}: {missing} experts were not put")
        for file in self._files:
            os.fsync(file.fileno())
            file.close()
        manifest = self._identity | {"checksums": self._sums}
        with (self._path / _MANIFEST).open("wb") as written:
            written.write(json.dumps(manifest).encode())
            written.flush()
            os.fsync(written.fileno())
        _replace(self._path, path)
        (path / _LOCK).unlink(missing_ok=True)
        self._lock.close()

    def discard(self) -> None:
        """Remove what was written."""
        for file in self._files:
            file.close()
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock.close()


def _replace(built: Path, path: Path) -> None:
    """Rename a whole store to its final name; what is there is moved out of the way first.

    Readers of a replaced store keep the files that they have mapped.
    """
    while True:
        try:
            built.rename(path)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        old = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=path.parent))
        try:
            path.rename(old)
        except FileNotFoundError:  # another process was faster
            continue
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _claim(directory: Path) -> tuple[Path, IO[bytes]]:
    """A new directory to build in, and its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=directory))
        try:
            lock = (path / _LOCK).open("wb")
        except FileNotFoundError:  # taken for left behind, as it was still empty
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), (path / _LOCK).stat()):
                return path, lock
        except (BlockingIOError, FileNotFoundError):  # taken for left behind before it was locked
            pass
        lock.close()


def _remove_unfinished(directory: Path) -> None:
    """Remove what processes left behind that are gone; their locks went with them."""
    for path in directory.glob(f"{_UNFINISHED}*"):
        try:
            with (path / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            _remove_unlocked(path)
        except OSError:
            continue  # in use


def _remove_unlocked(path: Path) -> None:
    """Remove a directory that has no lock: the remains of a store, or a builder's first step."""
    try:
        path.rmdir()
    except OSError:
        if not (path / _LOCK).exists():
            shutil.rmtree(path, ignore_errors=True)


def _identity(
    checkpoint: Checkpoint, weight_format: str, expert_bytes: Sequence[int]
) -> dict[str, Any]:
    files = sorted({entry.file for entry in checkpoint.tensors})
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": checkpoint.fingerprint,
        "weight_format": weight_format,
        "num_experts": checkpoint.shape.num_experts,
        "expert_bytes": list(expert_bytes),
        "sources": {name: _source(checkpoint.path / name) for name in files},
    }


def _source(path: Path) -> list[Any]:
    """Size, time of change, and a hash of the header and of samples of a safetensors file."""
    facts = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = file.read(8)
        digest.update(length + file.read(int.from_bytes(length, "little")))
        last = max(0, facts.st_size - _SAMPLE_BYTES)
        for sample in range(_NUM_SAMPLES):
            file.seek(last * sample // (_NUM_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return [facts.st_size, facts.st_mtime_ns, digest.hexdigest()]


def _damage(
    path: Path, identity: dict[str, Any], sizes: Sequence[int], num_experts: int
) -> str | None:
    """What is wrong with a store that is there; None for a good one, and where there is none."""
    if not path.is_dir():
        return None
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="ascii"))
        checksums = manifest.pop("checksums")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return "its manifest cannot be read"
    if manifest != identity:
        return "its manifest is of another checkpoint or format"
    try:
        layers = [_mapped(path, row, size, num_experts) for row, size in enumerate(sizes)]
    except (OSError, ValueError):
        return "a file is missing or has another size"

    def is_good(row: int) -> bool:
        return bool([zlib.crc32(expert) for expert in layers[row]] == checksums[row])

    is_list = isinstance(checksums, list) and all(isinstance(row, list) for row in checksums)
    if not is_list or [len(row) for row in checksums] != [num_experts] * len(sizes):
        return "its manifest cannot be read"
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(is_good, range(len(sizes))))
    return None if all(found) else f"{_layer_name(found.index(False))} is damaged"


def _layer_name(row: int) -> str:
    return f"layer-{row:05d}.bin"


def _mapped(path: Path, row: int, size: int, num_experts: int) -> NDArray[np.uint8]:
    """[E, bytes] uint8, a file of exactly this size."""
    file = path / _layer_name(row)
    if file.stat().st_size != size * num_experts:
        raise ValueError(f"{file}: expected {size * num_experts} bytes")
    return np.memmap(file, np.uint8, "r", shape=(num_experts, size))


def _cannot(directory: Path, error: OSError) -> MoeprofError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(
            f"{directory}: the disk is full, the kept experts do not fit",
            "free disk space, name a directory on another disk, or run without --store",
        )
    if error.errno == errno.EFBIG:
        return CapacityError(
            f"{directory}: a file of kept experts is larger than this process, or the disk's file "
            "system, lets one be",
            "raise the limit with ulimit -f unlimited, or run without --store",
        )
    is_file = isinstance(error, FileExistsError | NotADirectoryError)
    reason = "a file, expected a directory" if is_file else error.strerror or error
    return MoeprofError(
        f"{directory}: kept experts cannot be written or read there ({reason})",
        "name a directory that you can write to with --store, or run without it",
    )
