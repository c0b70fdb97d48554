"""Gathers the packages, keeps whole files from training and cuts the bundled documents."""

import gzip
import hashlib
import logging
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path

from moeprof.demo.prose import plain_text
from moeprof.demo.sources import DOMAINS, SOURCES, Reader, Source

log = logging.getLogger(__name__)

DOCUMENTS_PER_DOMAIN = 22
_MIN_BYTES, _GOAL_BYTES, _MAX_BYTES = 4_000, 6_400, 8_000
_MAX_PER_FILE = 3
_BLOCK_CHARS = 100  # a shared run of 199 characters holds at least one aligned block of 100
_BEGIN = re.compile(r"/\*{3,} (?:Begin file|start inlining) (\S+) \*+/")
_END = re.compile(r"/\*{3,} (?:End of|ended inlining) (\S+) \*+/")


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text of one file, or of a part of it, and where it comes from."""

    source: Source
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training text and bundled documents per domain; no file gives to both."""

    training: dict[str, list[Document]]
    bundled: dict[str, list[Document]]


def gather(work: Path) -> Corpus:
    """Texts of all sources, downloaded into `work` where they are not there yet.

    Raises:
        subprocess.CalledProcessError: a package could not be downloaded.
    """
    training: dict[str, list[Document]] = defaultdict(list)
    held_out: dict[str, list[list[Document]]] = defaultdict(list)
    for source in SOURCES:
        documents = list(_documents(source, _root(source, work)))
        kept = [document for document in documents if not _is_held_out(document)]
        training[source.domain] += kept * source.repeats
        if source.is_bundled:
            held_out[source.domain].append([d for d in documents if _is_held_out(d)])
        size = sum(len(document.text) for document in kept)
        log.info("%s: %s %s, %d characters", source.domain, source.package, source.version, size)
    seen = _blocks(document.text for documents in training.values() for document in documents)
    bundled = {domain: _choose(held_out[domain], seen) for domain in DOMAINS}
    return Corpus(dict(training), bundled)


def write_texts(bundled: dict[str, list[Document]], folder: Path, work: Path) -> None:
    """Write the bundled documents, their licences and `SOURCES.md` below `folder`."""
    for source in SOURCES:
        if source.licence_files:
            root = _root(source, work)
            texts = [(root / name).read_text(encoding="utf-8") for name in source.licence_files]
            path = folder / "LICENSES" / f"{source.package}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(texts), encoding="utf-8")
    lines = [
        "# Where the bundled texts come from",
        "",
        "Every document is an excerpt of one file of a public package; none was used in training.",
        "Markup, listings inside prose and licence headers were taken out, nothing else changed.",
        "The licence texts that must travel are in `LICENSES/`. Of the handbook's two licences",
        "(GPL-2.0-or-later or CC-BY-SA-3.0) these excerpts use CC-BY-SA-3.0; they stay under it.",
        "",
        "| document | package | version | path in the package | copyright | licence |",
        "|---|---|---|---|---|---|",
    ]
    for domain, documents in bundled.items():
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for number, document in enumerate(documents):
            file_name = Path(document.path.split("#")[-1]).stem.removeprefix("sect.")
            stem = re.sub(r"[^a-z0-9]+", "-", file_name.lower()).strip("-") or "file"
            name = f"{number:02d}-{stem[:40]}.txt"  # no tool of ours takes it for code of ours
            (folder / domain / name).write_text(document.text + "\n", encoding="utf-8")
            source = document.source
            lines.append(
                f"| {domain}/{name} | {source.package} | {source.version} | {document.path} "
                f"| {source.holder} | {source.licence} |"
            )
    (folder / "SOURCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _root(source: Source, work: Path) -> Path:
    """Folder that the source's paths are relative to."""
    folder = _unpacked(source, work)
    return next(folder.iterdir()) if source.origin == "sdist" else folder


def _unpacked(source: Source, work: Path) -> Path:
    folder = work / "unpacked" / f"{source.package}-{source.version}"
    if folder.exists():
        return folder
    download = work / "download" / f"{source.package}-{source.version}"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    name, version = source.package, source.version
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={version}"]
    commands = {
        "sdist": [*pip, "--no-binary", name],
        "wheel": [*pip, "--only-binary", name],
        "npm": ["npm", "pack", "--silent", f"{name}@{version}"],
        "deb": ["apt-get", "download", "--quiet", f"{name}={version}"],
    }
    subprocess.run(commands[source.origin], cwd=download, check=True, stdout=subprocess.DEVNULL)
    (archive,) = download.iterdir()
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if source.origin == "deb":
        subprocess.run(["dpkg", "-x", str(archive), str(part)], check=True)
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(part)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
    part.rename(folder)
    return folder


def _documents(source: Source, root: Path) -> Iterator[Document]:
    paragraphs: set[str] = set()
    excluded = [pattern[1:] for pattern in source.files if pattern.startswith("!")]
    wanted = [pattern for pattern in source.files if not pattern.startswith("!")]
    for path in sorted({path for pattern in wanted for path in root.glob(pattern)}):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or any(fnmatch(name, pattern) for pattern in excluded):
            continue
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        for part, text in _parts(name, raw.decode("utf-8", errors="ignore")):
            plain = plain_text(text, source.reader, source.domain)
            if source.reader is Reader.MAN:
                plain = _without_repeats(plain, paragraphs)
            if len(plain) >= 200:
                yield Document(source, part, plain)


def _parts(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The files that an amalgamation was made of, or the one file that it is."""
    lines: dict[str, list[str]] = defaultdict(list)
    stack = [name]
    for line in text.splitlines():
        if begin := _BEGIN.search(line):
            stack.append(f"{name}#{begin[1]}")
        elif _END.search(line) and len(stack) > 1:
            stack.pop()
        else:
            lines[stack[-1]].append(line)
    for part, part_lines in lines.items():
        yield part, "\n".join(part_lines)


def _without_repeats(text: str, paragraphs: set[str]) -> str:
    """The text less the paragraphs that were there before; manual pages share many."""
    fresh = [paragraph for paragraph in text.split("\n\n") if paragraph not in paragraphs]
    paragraphs.update(fresh)
    return "\n\n".join(fresh)


def _is_held_out(document: Document) -> bool:
    """Whether the file is kept from training; the same section in every language alike."""
    is_prose = document.source.reader is Reader.HTML
    key = Path(document.path).name if is_prose else document.path
    digest = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4])
    return document.source.is_bundled and digest % 100 < document.source.holdout_percent


def _normalised(text: str) -> str:
    return " ".join(text.split())


def _blocks(texts: Iterable[str]) -> set[int]:
    """Hashes of the aligned blocks of each text."""
    found: set[int] = set()
    for text in map(_normalised, texts):
        starts = range(0, len(text) - _BLOCK_CHARS + 1, _BLOCK_CHARS)
        found.update(hash(text[start : start + _BLOCK_CHARS]) for start in starts)
    return found


def _is_seen(text: str, seen: set[int]) -> bool:
    text = _normalised(text)
    starts = range(len(text) - _BLOCK_CHARS + 1)
    return any(hash(text[start : start + _BLOCK_CHARS]) in seen for start in starts)


def _choose(by_source: list[list[Document]], seen: set[int]) -> list[Document]:
    """A domain's bundled documents, its sources in turn, none that training has seen."""
    queues = []
    for documents in by_source:
        ordered = sorted(documents, key=lambda d: hashlib.sha256(d.path.encode()).digest())
        cuts = [list(_excerpts(document))[:_MAX_PER_FILE] for document in ordered]
        queues.append([cut for turn in zip_longest(*cuts) for cut in turn if cut is not None])
    candidates = (cut for turn in zip_longest(*queues) for cut in turn if cut is not None)
    fresh = (cut for cut in candidates if not _is_seen(cut.text, seen))
    return [cut for cut, _ in zip(fresh, range(DOCUMENTS_PER_DOMAIN), strict=False)]


def _excerpts(document: Document) -> Iterator[Document]:
    """Consecutive pieces of a file, cut at blank lines before an unindented line."""
    piece = ""
    for block in re.split(r"\n\n+(?=[^\s)}\]])", document.text):
        longer = f"{piece}\n\n{block}" if piece else block
        if len(longer.encode()) > _MAX_BYTES:
            if len(piece.encode()) >= _MIN_BYTES:
                yield Document(document.source, document.path, piece)
            longer = block
        if len(longer.encode()) > _MAX_BYTES:
            longer = ""
        piece = longer
        if len(piece.encode()) >= _GOAL_BYTES:
            yield Document(document.source, document.path, piece)
            piece = ""
    if len(piece.encode()) >= _MIN_BYTES:
        yield Document(document.source, document.path, piece)
