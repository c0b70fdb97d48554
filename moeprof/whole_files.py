"""Files that are written whole or not at all, whenever the process is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_FILES = ".*.partial"  # what a killed process leaves behind matches this


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, to be written inside the block.

    At its end the file is synced and becomes `target`; after an error nothing of it is left.

    Args:
        target: the file to write or replace, in a folder that exists.

    Raises:
        OSError: it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
