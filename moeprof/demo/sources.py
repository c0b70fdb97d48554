"""The packages that the demo's texts come from, each at one version.

Only a source with `is_bundled` may give documents to `texts/`, and only from files that are held
out of training as a whole; every other source serves training alone.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

Origin = Literal["sdist", "wheel", "npm", "deb"]


class Reader(Enum):
    """How the files of a source become plain text."""

    CODE = "code"
    HTML = "html"
    RST = "rst"
    MAN = "man"


@dataclass(frozen=True, slots=True)
class Source:
    """Some files of one package, all of one domain.

    `files` are glob patterns below the unpacked package; one that starts with `!` excludes.
    `holdout_percent` of a bundled source's files are kept from training; `repeats` weighs a source
    against larger ones of its domain.
    """

    domain: str
    origin: Origin
    package: str
    version: str
    files: tuple[str, ...]
    reader: Reader
    licence: str
    holder: str
    is_bundled: bool = False
    holdout_percent: int = 12
    repeats: int = 1
    licence_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what no type can.

        Raises:
            ValueError: `domain` is no simple lower-case word, or the percentage none.
        """
        if not (self.domain.isalpha() and self.domain.islower()):
            raise ValueError(f"domain must be a lower-case word, got {self.domain!r}")
        if not 0 <= self.holdout_percent <= 100:
            raise ValueError(f"holdout_percent must be in [0, 100], got {self.holdout_percent}")


_PROSE_REPEATS = 2
_DJANGO = "Django Software Foundation and individual contributors"
_SQLITE = "none (the authors dedicated it to the public domain)"
_HANDBOOK = "Raphaël Hertzog, Roland Mas, Freexian SARL, and the translators"
_MANPAGES = "the authors and translators of manpages-l10n"
_GUIDE = "the Debian Installer team and translators"
_REFERENCE = "Osamu Aoki and the translators"


def _handbook(domain: str, language: str) -> Source:
    return Source(
        domain,
        "deb",
        "debian-handbook",
        "11.20220922",
        (f"usr/share/doc/debian-handbook/html/{language}/*.html",),
        Reader.HTML,
        "CC-BY-SA-3.0",
        _HANDBOOK,
        is_bundled=True,
        holdout_percent=36,
        repeats=_PROSE_REPEATS,
        licence_files=("usr/share/doc/debian-handbook/copyright",),
    )


def _guide(domain: str, language: str) -> Source:
    return Source(
        domain,
        "deb",
        "installation-guide-amd64",
        "20230508+deb12u1",
        (f"usr/share/doc/installation-guide-amd64/{language}/*.html",),
        Reader.HTML,
        "GPL-2.0-or-later",
        _GUIDE,
        repeats=_PROSE_REPEATS,
    )


def _reference(domain: str, language: str) -> Source:
    return Source(
        domain,
        "deb",
        f"debian-reference-{language}",
        "2.100",
        (f"usr/share/debian-reference/*.{language}.html",),
        Reader.HTML,
        "GPL-2.0-or-later",
        _REFERENCE,
        repeats=_PROSE_REPEATS,
    )


def _manpages(domain: str, language: str) -> Source:
    return Source(
        domain,
        "deb",
        f"manpages-{language}",
        "4.18.1-1",
        (f"usr/share/man/{language}/man*/*.gz",),
        Reader.MAN,
        "GPL-3.0-or-later",
        _MANPAGES,
    )


SOURCES: tuple[Source, ...] = (
    Source(
        "python",
        "sdist",
        "django",
        "5.2.8",
        ("django/**/*.py", "!django/conf/locale/*", "!*/migrations/*"),
        Reader.CODE,
        "BSD-3-Clause",
        _DJANGO,
        is_bundled=True,
        licence_files=("LICENSE",),
    ),
    Source(
        "python",
        "wheel",
        "networkx",
        "3.5",
        ("networkx/**/*.py", "!*/tests/*"),
        Reader.CODE,
        "BSD-3-Clause",
        "NetworkX Developers",
        is_bundled=True,
        licence_files=("networkx-3.5.dist-info/licenses/LICENSE.txt",),
    ),
    Source(
        "python",
        "wheel",
        "rich",
        "14.2.0",
        ("rich/*.py", "!*_codes.py", "!*_cell_widths.py"),
        Reader.CODE,
        "MIT",
        "Will McGugan",
        is_bundled=True,
        licence_files=("rich-14.2.0.dist-info/LICENSE",),
    ),
    Source(
        "python",
        "wheel",
        "sympy",
        "1.14.0",
        ("sympy/core/*.py", "sympy/printing/*.py", "sympy/solvers/*.py", "sympy/matrices/*.py"),
        Reader.CODE,
        "BSD-3-Clause",
        "SymPy Development Team",
    ),
    Source(
        "c",
        "npm",
        "better-sqlite3",
        "12.4.1",
        ("package/deps/sqlite3/sqlite3.c",),
        Reader.CODE,
        "public domain",
        _SQLITE,
        is_bundled=True,
    ),
    Source(
        "c",
        "sdist",
        "zstandard",
        "0.25.0",
        ("zstd/zstd.c", "c-ext/*.c"),
        Reader.CODE,
        "BSD-3-Clause",
        "Meta Platforms, Inc. and affiliates, and contributors; Gregory Szorc",
        is_bundled=True,
        licence_files=("zstd/LICENSE", "LICENSE"),
    ),
    Source(
        "c",
        "sdist",
        "uvloop",
        "0.22.1",
        ("vendor/libuv/src/**/*.[ch]", "vendor/libuv/test/*.c"),
        Reader.CODE,
        "MIT",
        "libuv project contributors; Joyent, Inc. and other Node contributors",
        is_bundled=True,
        licence_files=("vendor/libuv/LICENSE", "vendor/libuv/LICENSE-extra"),
    ),
    Source(
        "javascript",
        "npm",
        "three",
        "0.180.0",
        ("package/src/**/*.js", "package/examples/jsm/**/*.js", "!*/libs/*", "!*.glsl.js"),
        Reader.CODE,
        "MIT",
        "three.js authors",
        is_bundled=True,
        licence_files=("package/LICENSE",),
    ),
    Source(
        "javascript",
        "npm",
        "webpack",
        "5.102.1",
        ("package/lib/**/*.js",),
        Reader.CODE,
        "MIT",
        "JS Foundation and other contributors",
        is_bundled=True,
        licence_files=("package/LICENSE",),
    ),
    Source(
        "javascript",
        "npm",
        "eslint",
        "9.38.0",
        ("package/lib/**/*.js",),
        Reader.CODE,
        "MIT",
        "OpenJS Foundation and other contributors",
        is_bundled=True,
        licence_files=("package/LICENSE",),
    ),
    Source(
        "english",
        "sdist",
        "django",
        "5.2.8",
        ("docs/**/*.txt", "!docs/releases/*", "!*/requirements.txt", "!docs/man/*"),
        Reader.RST,
        "BSD-3-Clause",
        _DJANGO,
        is_bundled=True,
        licence_files=("LICENSE",),
    ),
    Source(
        "english",
        "sdist",
        "django",
        "5.2.8",
        ("docs/releases/*.txt",),
        Reader.RST,
        "BSD-3-Clause",
        _DJANGO,
    ),
    _handbook("english", "en-US"),
    _guide("english", "en"),
    _reference("english", "en"),
    _handbook("french", "fr-FR"),
    _guide("french", "fr"),
    _reference("french", "fr"),
    _manpages("french", "fr"),
    _handbook("german", "de-DE"),
    _guide("german", "de"),
    _reference("german", "de"),
    _manpages("german", "de"),
)

DOMAINS: tuple[str, ...] = tuple(dict.fromkeys(source.domain for source in SOURCES))
