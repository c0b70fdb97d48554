"""The tensors of a checkpoint as its safetensors headers describe them; no weights are read."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprof.errors import UnsupportedModelError

INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit, safetensors README, "Format"
_DOWNLOAD_AGAIN = "copy or download the checkpoint again"

# Bits of one element; safetensors README and its `Dtype` enumeration.
_ELEMENT_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint file.

    Attributes:
        name: key in the file.
        dtype: element type as safetensors writes it, such as `BF16`.
        shape: sizes of the dimensions.
        file: file that holds it, relative to the checkpoint's directory.
        num_bytes: bytes as stored.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    num_bytes: int


def read_headers(directory: Path) -> tuple[TensorEntry, ...]:
    """The tensors of all safetensors files of a checkpoint, sorted by name.

    Raises:
        UnsupportedModelError: no safetensors file, one that the index names is missing, a damaged
            or truncated file, or a tensor that is there twice or not at all.
    """
    names, indexed = _shards(directory)
    entries: dict[str, TensorEntry] = {}
    for name in names:
        for entry in read_header(directory / name):
            if entry.name in entries:
                raise UnsupportedModelError(
                    f"{directory / name}: tensor {entry.name!r} is in "
                    f"{entries[entry.name].file} already",
                    "remove the files of the other checkpoint from the directory",
                )
            entries[entry.name] = entry
    missing = sorted(indexed - entries.keys())
    if missing:
        raise UnsupportedModelError(
            f"{directory / INDEX_FILE}: {len(missing)} tensors are in no file, "
            f"the first is {missing[0]!r}",
            _DOWNLOAD_AGAIN,
        )
    return tuple(entries[name] for name in sorted(entries))


def _shards(directory: Path) -> tuple[list[str], set[str]]:
    """File names of the checkpoint, and the tensors that its index promises."""
    index = directory / INDEX_FILE
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted(set(weight_map.values())), set(weight_map)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnsupportedModelError(
                f"{index}: not an index of safetensors files ({error})", _DOWNLOAD_AGAIN
            ) from error
    if (directory / _SINGLE_FILE).is_file():
        return [_SINGLE_FILE], set()
    raise UnsupportedModelError(
        f"{directory}: no {_SINGLE_FILE} and no {INDEX_FILE}",
        "moeprof reads checkpoints in the safetensors format; save the model with save_pretrained",
    )


def read_header(path: Path) -> list[TensorEntry]:
    """The tensors of one safetensors file, checked against its size.

    Format: 8 bytes little-endian header length N, N bytes of JSON, then the data; safetensors
    README, "Format".

    Raises:
        UnsupportedModelError: the file is missing, damaged or truncated.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise UnsupportedModelError(
                    f"{path}: not a safetensors file, or truncated inside its header",
                    _DOWNLOAD_AGAIN,
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise UnsupportedModelError(
            f"{path}: cannot be read ({error.strerror})", _DOWNLOAD_AGAIN
        ) from error
    except ValueError as error:
        raise UnsupportedModelError(
            f"{path}: its safetensors header is not JSON ({error})", _DOWNLOAD_AGAIN
        ) from error
    if not isinstance(header, dict):
        raise UnsupportedModelError(
            f"{path}: its safetensors header is not an object", _DOWNLOAD_AGAIN
        )
    header.pop("__metadata__", None)
    data_bytes = size - 8 - length
    return [_entry(path, name, fields, data_bytes) for name, fields in header.items()]


def _entry(path: Path, name: str, fields: dict[str, Any], data_bytes: int) -> TensorEntry:
    try:
        dtype, shape = str(fields["dtype"]), tuple(int(n) for n in fields["shape"])
        begin, end = (int(offset) for offset in fields["data_offsets"])
        bits = _ELEMENT_BITS[dtype] * math.prod(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{path}: the entry of tensor {name!r} is damaged ({error!r})", _DOWNLOAD_AGAIN
        ) from error
    if (end - begin) * 8 != bits or begin < 0:
        raise UnsupportedModelError(
            f"{path}: tensor {name!r} of type {dtype} and shape {list(shape)} has "
            f"{end - begin} bytes, expected {bits // 8}",
            _DOWNLOAD_AGAIN,
        )
    if end > data_bytes:
        raise UnsupportedModelError(
            f"{path}: truncated, tensor {name!r} ends at byte {end} of the data and the file "
            f"holds {data_bytes}",
            _DOWNLOAD_AGAIN,
        )
    return TensorEntry(name, dtype, shape, path.name, end - begin)
