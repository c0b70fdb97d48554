"""The text a model is traced on: files, folders, tables, hub data sets and standard input.

A corpus is read as a stream in a fixed order; nothing of it is kept.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moeprof.errors import TraceError

CHAT_COLUMN = "messages"
_STANDARD_INPUT = "-"
TABLE_SUFFIXES = frozenset({".jsonl", ".parquet", ".csv"})
_SUFFIX_WORDS = (
    ".txt .md .rst .tex .org .adoc .html .htm .xml .json .yaml .yml .toml .ini .cfg .log .srt "
    ".py .pyi .ipynb .c .h .cc .cpp .cxx .hpp .cu .cuh .cs .java .kt .scala .go .rs .swift .m "
    ".js .jsx .ts .tsx .vue .css .scss .php .rb .pl .lua .r .jl .sh .bash .sql .f90 .hs .ml .ex "
    ".erl .clj .lisp .zig .asm .s .proto .cmake"
)
TEXT_SUFFIXES = frozenset(_SUFFIX_WORDS.split())
_DOMAIN = re.compile(r"[A-Za-z0-9_.-]+")
_ONE_OBJECT = "write one JSON object per line"
_SPLITS = frozenset({"train", "validation", "test"})

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RawDocument:
    """One document before tokenisation: a text, or the messages of a conversation."""

    name: str
    content: str | Messages

    @property
    def num_bytes(self) -> int:
        """Size of the text in UTF-8; 0 for a conversation."""
        return len(self.content.encode()) if isinstance(self.content, str) else 0


@dataclass(frozen=True, slots=True)
class Source:
    """One source of text that the user gave.

    Attributes:
        name: as given.
        files: what it stands for, in order; None for the hub and for standard input.
    """

    name: str
    files: tuple[Path, ...] | None

    @classmethod
    def find(cls, name: str) -> "Source":
        """The source of a name; folders and globs are walked here and nowhere else.

        Raises:
            TraceError: there is no such file, or nothing in the folder.
        """
        is_local = name != _STANDARD_INPUT and not name.startswith("hub:")
        return cls(name, _files_of(name) if is_local else None)


@dataclass(frozen=True, slots=True)
class CorpusDomain:
    """One domain of a corpus.

    Attributes:
        name: the domain; also the name of its folder in the trace.
        found: what the user gave for it, and what is there.
        text_column: column of tables that holds the text or the messages.
        num_bytes: size of its text files; None where it cannot be known beforehand.
    """

    name: str
    found: tuple[Source, ...]
    text_column: str
    num_bytes: int | None

    @property
    def sources(self) -> tuple[str, ...]:
        """What the user gave."""
        return tuple(source.name for source in self.found)

    def documents(self) -> Iterator[RawDocument]:
        """The domain's documents in their fixed order.

        Raises:
            TraceError: a source cannot be read, is not UTF-8 or lacks the text column.
        """
        for source in self.found:
            yield from _documents_of(source, self.text_column)


def open_corpus(data: Iterable[str], text_column: str) -> tuple[CorpusDomain, ...]:
    """The domains that the user's `[DOMAIN=]SPEC` arguments describe, checked as far as possible.

    Text files are read once here, so that a file in another encoding is found before hours of
    tracing and not after.

    Args:
        data: each a file, folder, glob, `hub:NAME[:CONFIG][:SPLIT]`, or `-` for standard input,
            with an optional `DOMAIN=` before it.
        text_column: column of tabular data that holds the text.

    Raises:
        TraceError: a source does not exist, is empty, is not UTF-8 or lacks the text column.
    """
    sources: dict[str, list[str]] = {}
    for argument in data:
        name, source = _split_domain(argument)
        sources.setdefault(name, []).append(source)
    if sum(entry.count(_STANDARD_INPUT) for entry in sources.values()) > 1:
        raise TraceError(
            "-: standard input can be read only once", "write one of them to a file first"
        )
    domains = []
    for name, entries in sources.items():
        found = tuple(Source.find(entry) for entry in entries)
        _refuse_repeated(found)
        sizes = [_check_source(source, text_column) for source in found]
        known = [size for size in sizes if size is not None]
        size = sum(known) if len(known) == len(sizes) else None
        domains.append(CorpusDomain(name, found, text_column, size))
    return tuple(domains)


def _refuse_repeated(sources: tuple[Source, ...]) -> None:
    """A document that counts twice would be held out from itself."""
    seen: set[Path | str] = set()
    for source in sources:
        documents = [source.name] if source.files is None else map(Path.resolve, source.files)
        for document in documents:
            if document in seen:
                raise TraceError(
                    f"{printable(str(document))}: given twice in one domain",
                    "give every file once; folders and globs may overlap",
                )
            seen.add(document)


def printable(text: str) -> str:
    """The text with bytes that are not UTF-8, as file names may have, replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _split_domain(argument: str) -> tuple[str, str]:
    if not argument:
        raise TraceError("DATA: it is empty", "name a file, a folder, hub:NAME or -")
    name, equals, source = argument.partition("=")
    if equals and not Path(argument).exists() and "/" not in name:
        if not _DOMAIN.fullmatch(name) or not source:
            raise TraceError(
                f"{printable(argument)}: {printable(name)!r} cannot name a domain",
                "DOMAIN=DATA takes letters, digits, '.', '_' and '-' before the '='",
            )
        return name, source
    if argument == _STANDARD_INPUT:
        return "stdin", argument
    if argument.startswith("hub:"):
        base = argument.split(":")[1].rstrip("/").rsplit("/", 1)[-1]
    elif _is_glob(argument):
        base = Path(argument).parent.name or "text"
    else:
        path = Path(argument).resolve()
        base = path.stem if path.is_file() else path.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", base).strip("-.") or "text", argument


def _is_glob(source: str) -> bool:
    return any(letter in source for letter in "*?[") and not Path(source).exists()


def _files_of(source: str) -> tuple[Path, ...]:
    path = Path(source)
    if path.is_file():
        return (path,)
    if path.is_dir():
        files = tuple(
            file
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in TEXT_SUFFIXES | TABLE_SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not files:
            raise TraceError(
                f"{source}: the folder holds no text files",
                "name the files, as in 'FOLDER/*', if their endings are unusual",
            )
        return files
    if _is_glob(source):
        names = glob(source, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute one)
        files = tuple(file for file in sorted(map(Path, names)) if file.is_file())
        if files:
            return files
        raise TraceError(f"{source}: no file matches", "check the pattern, and quote it")
    raise TraceError(f"{source}: no such file or folder", "data of the hub is named hub:NAME")


def _check_source(source: Source, text_column: str) -> int | None:
    """Refuse what cannot be read; the size of the text where all of it is text files."""
    if source.files is None:
        return None
    total: int | None = 0
    for file in source.files:
        suffix = file.suffix.lower()
        if suffix in TABLE_SUFFIXES:
            next(_documents_of_table(file, text_column), None)
            total = None
        else:
            size = len(_read_text(file).encode())
            total = None if total is None else total + size
    return total


def _documents_of(source: Source, text_column: str) -> Iterator[RawDocument]:
    if source.name == _STANDARD_INPUT:
        yield RawDocument("stdin", _decode(sys.stdin.buffer.read(), "standard input"))
        return
    if source.files is None:
        yield from _documents_of_hub(source.name, text_column)
        return
    for file in source.files:
        if file.suffix.lower() in TABLE_SUFFIXES:
            yield from _documents_of_table(file, text_column)
        else:
            yield RawDocument(printable(str(file)), _read_text(file))


def _read_text(file: Path) -> str:
    try:
        return _decode(file.read_bytes(), str(file))
    except OSError as error:
        raise TraceError(
            f"{printable(str(file))}: cannot be read ({error.strerror})", "check its permissions"
        ) from error


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TraceError(
            f"{name}: not UTF-8 text, byte {error.start} is 0x{raw[error.start]:02x}",
            f"convert it, as in: iconv -f latin1 -t utf-8 {name}",
        ) from error


def _documents_of_table(file: Path, text_column: str) -> Iterator[RawDocument]:
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".csv": _csv_rows}
    rows = readers[file.suffix.lower()](file, text_column)
    return _documents_of_rows(rows, printable(str(file)), text_column)


def _documents_of_rows(
    rows: Iterable[dict[str, Any]], name: str, text_column: str
) -> Iterator[RawDocument]:
    column = ""
    for number, row in enumerate(rows, start=1):
        column = column or _column(row, name, text_column)
        where = f"{name}:{number}"
        content = row.get(column)
        if content is None or not (isinstance(content, str) or _is_conversation(content)):
            raise TraceError(
                f"{where}: column {column!r} holds {type(content).__name__}, "
                "expected a text or a list of messages with role and content",
                "remove the row, or name another column with --text-column",
            )
        yield RawDocument(where, content)
    if not column:
        raise TraceError(f"{name}: holds no rows", "leave it out")


def _column(row: dict[str, Any], name: str, text_column: str) -> str:
    for column in (text_column, CHAT_COLUMN):
        if column in row:
            return column
    raise TraceError(
        f"{name}: no column {text_column!r}, it has {', '.join(map(str, row))}",
        "name the column with --text-column",
    )


def _is_conversation(content: object) -> bool:
    return isinstance(content, list) and all(
        isinstance(entry, dict) and "role" in entry and "content" in entry for entry in content
    )


def _jsonl_rows(file: Path, _: str) -> Iterator[dict[str, Any]]:
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            line = _decode(raw, f"{file}:{number}").strip()
            if not line:
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise TraceError(f"{file}:{number}: not JSON ({error})", _ONE_OBJECT) from error
            if not isinstance(row, dict):
                raise TraceError(
                    f"{file}:{number}: {type(row).__name__}, expected an object", _ONE_OBJECT
                )
            yield row


def _parquet_rows(file: Path, text_column: str) -> Iterator[dict[str, Any]]:
    try:
        table = pq.ParquetFile(file)
        wanted = [c for c in (text_column, CHAT_COLUMN) if c in table.schema_arrow.names][:1]
        if not wanted:
            _column(dict.fromkeys(table.schema_arrow.names), str(file), text_column)
        for batch in table.iter_batches(batch_size=256, columns=wanted):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise TraceError(
            f"{file}: not a readable Parquet file ({error})", "write or download it again"
        ) from error


def _csv_rows(file: Path, _: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield from csv.DictReader(stream)
    except (csv.Error, UnicodeDecodeError) as error:
        raise TraceError(
            f"{file}: not a CSV file in UTF-8 ({error})",
            f"convert it, as in: iconv -f latin1 -t utf-8 {file}",
        ) from error


def _documents_of_hub(source: str, text_column: str) -> Iterator[RawDocument]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub import snapshot_download

    name, config, split = _hub_parts(source)
    try:
        if not Path(name).exists():
            # Fails at once where there is no connection; load_dataset would try for long.
            snapshot_download(name, repo_type="dataset", allow_patterns="README.md")
        rows = iter(load_dataset(name, config, split=split, streaming=True))
        first = next(rows, None)
    except NotImplementedError:
        rows = iter(load_dataset(name, config, split=split))
        first = next(rows, None)
    except (OSError, DatasetsError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TraceError(
            f"{source}: the data set cannot be opened ({reason})",
            "check the name, configuration and split (hub:NAME:CONFIG:SPLIT) and the connection",
        ) from error
    if first is not None:
        yield from _documents_of_rows(chain([first], rows), source, text_column)
    else:
        raise TraceError(f"{source}: holds no rows", "name another split: hub:NAME:CONFIG:SPLIT")


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    """Name, configuration and split; of two parts the second is a split if it is a usual one."""
    name, *rest = source.removeprefix("hub:").split(":")
    if not name or len(rest) > 2:
        raise TraceError(
            f"{source}: expected hub:NAME[:CONFIG][:SPLIT]", "as in hub:wikitext:wikitext-2-v1:test"
        )
    if len(rest) == 2:
        return name, rest[0] or None, rest[1]
    if rest and (rest[0].split("[")[0] in _SPLITS):
        return name, None, rest[0]
    return name, (rest[0] or None) if rest else None, "train"
