"""Outputs that appear under their name only when they are whole, and replace only what may be."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from moeprof.errors import TraceError, WriteError


@contextmanager
def placed(output: Path, check_free: Callable[[Path], None], doing: str) -> Iterator[Path]:
    """A name to write a file or folder under, which then becomes `output`, or nothing at all.

    Args:
        output: what to write; what is there is replaced.
        check_free: raises TraceError if what is there must stay; asked at the begin and the end.
        doing: a participle for the sentence, such as `imported`.

    Raises:
        TraceError: `check_free` does, or the disk fails; what was there is as before.
    """
    with said_of_output(output, doing), ExitStack() as undo:
        check_free(output)
        target = Path(os.path.realpath(output))
        for folder in reversed([one for one in target.parents if not one.exists()]):
            folder.mkdir(exist_ok=True)
            undo.callback(_remove_empty, folder)
        prefix = f".{target.name[:100]}."
        staging = Path(mkdtemp(prefix=prefix, suffix=".unfinished", dir=target.parent))
        undo.callback(shutil.rmtree, staging, ignore_errors=True)
        unfinished, replaced = staging / "new", staging / "replaced"
        yield unfinished
        check_free(output)
        try:
            if target.is_dir():
                target.rename(replaced)
            unfinished.rename(target)
        except BaseException:
            if replaced.exists():
                replaced.rename(target)
            raise


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def said_of_output(output: Path, doing: str) -> Iterator[None]:
    """What the disk refuses, as a sentence on the output.

    Raises:
        TraceError: something inside the block raised OSError or WriteError.
    """
    try:
        yield
    except (OSError, WriteError) as error:
        cause = error.__cause__ if isinstance(error, WriteError) else error
        reason = getattr(cause, "strerror", None) or cause
        raise TraceError(
            f"{output}: cannot write ({reason}); nothing was {doing}",
            "free space, or choose another -o",
        ) from error
