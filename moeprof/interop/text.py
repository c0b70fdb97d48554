"""Opening text that may be compressed, and reading tables of it."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from moeprof.errors import TraceError

_GZIP = b"\x1f\x8b"


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, decompressed where it is gzip.

    Raises:
        TraceError: it cannot be read, or the compressed content ends early or is damaged.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == _GZIP
            plain.seek(0)
            yield gzip.GzipFile(fileobj=plain) if packed else plain  # type: ignore[misc]
    except EOFError as error:
        raise TraceError(f"{path}: the gzip file ends early", "copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path}: damaged gzip file ({error})", "copy it again") from error
    except OSError as error:
        raise TraceError(
            f"{path}: cannot be read ({error.strerror or error})", "name a file that exists"
        ) from error


def content(path: Path) -> bytes:
    """All of a file, decompressed where it is gzip.

    Raises:
        TraceError: as `opened`, or the file is empty.
    """
    with opened(path) as stream:
        data = stream.read()
    if not data or data.isspace():
        raise TraceError(f"{path}: is empty", "name a file that holds routing")
    return data


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text with their numbers from 1, without line ends.

    Raises:
        TraceError: as `content`, or the text is not UTF-8.
    """
    text = io.BytesIO(content(path))
    for number, line in enumerate(text, start=1):
        try:
            yield number, line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise TraceError(
                f"{path}: line {number}: not UTF-8 text", "name a text file"
            ) from error
