"""Opening text that may be compressed, and reading tables of it."""

import codecs
import errno
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from moeprof.errors import TraceError

_GZIP = b"\x1f\x8b"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_REMEDIES = {
    errno.EACCES: "make it readable, as in: chmod u+r FILE",
    errno.EISDIR: "name the files in the folder",
}


def unreadable(path: Path, error: OSError) -> TraceError:
    """The error of a file that the system does not let be read."""
    return TraceError(
        f"{path}: cannot be read ({error.strerror or error})",
        _REMEDIES.get(error.errno or 0, "name a file that exists"),
    )


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file or pipe, decompressed where it is gzip.

    Raises:
        TraceError: it cannot be read, or the compressed content ends early or is damaged.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.peek(2).startswith(_GZIP)
            yield gzip.GzipFile(fileobj=plain) if packed else plain  # type: ignore[misc]
    except EOFError as error:
        raise TraceError(f"{path}: the gzip file ends early", "copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path}: damaged gzip file ({error})", "copy it again") from error
    except OSError as error:
        raise unreadable(path, error) from error


def content(path: Path) -> bytes:
    """All of a file, decompressed where it is gzip, without the mark that UTF-8 may begin with.

    Raises:
        TraceError: as `opened`, or the file is empty, or UTF-16.
    """
    with opened(path) as stream:
        data = stream.read().removeprefix(codecs.BOM_UTF8)
    if not data or data.isspace():
        raise TraceError(f"{path}: is empty", "name a file that holds routing")
    if data.startswith(_WIDE):
        raise TraceError(
            f"{path}: UTF-16 text, expected UTF-8",
            f"convert it, as in: iconv -f utf-16 -t utf-8 {path}",
        )
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


def shown(text: str) -> str:
    """A text of a file as it may stand in a sentence: on one line, printable, and not long."""
    whole = "".join(mark if mark.isprintable() else "?" for mark in text)
    return whole if len(whole) <= 200 else f"{whole[:200]}..."
