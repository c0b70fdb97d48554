"""Reading and writing the manifest."""

import json
import os
from pathlib import Path
from typing import Any

from moeprof.errors import PlacementError
from moeprof.placement.document import from_document, to_document, to_text
from moeprof.placement.manifest import Placement
from moeprof.placement.validation import check_document
from moeprof.whole_files import replacing


def read_placement(path: str | Path) -> Placement:
    """The placement in a manifest, everything checked.

    Raises:
        PlacementError: the file is not there, is not JSON, or breaks the format.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PlacementError(
            f"{path}: no such file",
            f"make one with: moeprof plan TRACE --model MODEL --vram SIZE -o {path}",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PlacementError(
            f"{path}: cannot be read ({error})", "name a manifest made by moeprof plan"
        ) from error
    return parse_placement(text, str(path))


def parse_placement(text: str, where: str) -> Placement:
    """The placement in the text of a manifest; `where` names it in errors.

    Raises:
        PlacementError: the text is not JSON, or breaks the format.
    """
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PlacementError(
            f"{where}: not valid JSON ({error})", "undo the edit, or plan anew"
        ) from error
    return from_document(check_document(document, where))


def write_placement(placement: Placement, path: str | Path, force: bool = False) -> None:
    """Write the manifest whole or not at all; the folder is made if need be.

    Args:
        placement: what to write; checked as when reading.
        path: the file.
        force: replace a file that is there.

    Raises:
        PlacementError: a file is there and `force` is false, the placement breaks the format, or
            the file cannot be written.
    """
    path = Path(path)
    check_free(path, force)
    text = to_text(check_document(to_document(placement), str(path)))
    write_whole(path, text.encode())


def placement_text(placement: Placement) -> str:
    """The text of the manifest, as `write_placement` writes it."""
    return to_text(to_document(placement))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, replacing one that is there; make its folder if need be.

    Raises:
        PlacementError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise PlacementError(
            f"{path}: cannot be written ({error})", "free some space, or write elsewhere"
        ) from error


def check_free(path: Path, force: bool) -> None:
    """Refuse to overwrite, and a place where nothing can be written.

    Raises:
        PlacementError: something is at `path` and `force` is false, or it is a folder, or its
            folder is none or cannot be written to.
    """
    try:
        if path.is_dir():
            raise PlacementError(f"{path}: is a folder", f"name a file in it: {path}/NAME")
        if path.exists() and not force:
            raise PlacementError(f"{path}: already exists", "choose another name, or add --force")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        is_folder = nearest.is_dir()
    except PermissionError as error:
        raise PlacementError(
            f"{path}: cannot be written ({error.strerror})", "choose another name"
        ) from error
    if not is_folder:
        raise PlacementError(
            f"{path}: cannot be written, {nearest} is a file", "choose another name"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PlacementError(
            f"{path}: cannot be written, {nearest} is read-only", "choose another name"
        )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"field {key!r} stands twice in one object")
        entries[key] = value
    return entries


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
