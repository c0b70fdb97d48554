"""Plain text out of source code, HTML, reStructuredText and manual pages."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from moeprof.demo.sources import Reader

_STOP_WORDS = {
    domain: frozenset(words.split(" "))
    for domain, words in {
        "english": "the of and to is in that for with this are it be by you can",
        "french": "le la les des est et une pour dans que du un il en qui sur",
        "german": "der die das und ist nicht ein mit von den auf zu wird eine im sie",
    }.items()
}
_SKIPPED_TAGS = frozenset({"head", "script", "style", "pre", "table"})
_SKIPPED_CLASSES = frozenset(
    {"docnav", "navheader", "navfooter", "toc", "indexterm", "footnotes", "programlisting"}
)
_VOID_TAGS = frozenset({"br", "hr", "img", "link", "meta", "input", "col", "area", "base"})
_BLOCK_TAGS = frozenset(
    {"p", "div", "li", "ul", "ol", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5"}
    | {"body", "section", "blockquote"}
)
_LICENCE = re.compile(r"copyright|licen[sc]e|redistribut|permission is hereby", re.IGNORECASE)
_C_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_LINE_COMMENTS = re.compile(r"(?:^[ \t]*(?:#|//).*\n)+", re.MULTILINE)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.\w+")
_MAX_LINE = 300  # longer lines are data tables or minified code
_MIN_PARAGRAPH = 30


def plain_text(raw: str, reader: Reader, domain: str) -> str:
    """Text of one file without markup, navigation and licence headers, "" if nothing is left.

    Args:
        raw: the file as it lies in its package.
        reader: what kind of file it is.
        domain: paragraphs of prose in another language than this are dropped.
    """
    if reader is Reader.CODE:
        return _code(raw)
    paragraphs = {Reader.HTML: _html, Reader.RST: _rst, Reader.MAN: _man}[reader](raw)
    return "\n\n".join(text for text in paragraphs if _is_prose(text, domain))


def _code(raw: str) -> str:
    text = raw.replace("\r\n", "\n").replace("\f", "")
    if any(len(line) > _MAX_LINE for line in text.splitlines()):
        return ""
    text = _C_COMMENT.sub(_without_licence, text)
    text = _LINE_COMMENTS.sub(_without_licence, text)
    text = re.sub(rf"<{_EMAIL.pattern}[\w.]*>", "", text)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip()


def _without_licence(comment: re.Match[str]) -> str:
    return "" if _LICENCE.search(comment.group()) else comment.group()


def _is_prose(paragraph: str, domain: str) -> bool:
    """Whether it is of the domain's language and no licence, address or fragment."""
    if len(paragraph) < _MIN_PARAGRAPH or _LICENCE.search(paragraph) or _EMAIL.search(paragraph):
        return False
    words = re.findall(r"\w+", paragraph.lower())
    hits = {name: sum(word in stop for word in words) for name, stop in _STOP_WORDS.items()}
    return hits[domain] > 0 and hits[domain] == max(hits.values())


class _Paragraphs(HTMLParser):
    """Collects the text of block elements, leaving out navigation, tables and listings."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._skipped_depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID_TAGS:
            return
        classes = set((dict(attrs).get("class") or "").split())
        if self._skipped_depth or tag in _SKIPPED_TAGS or classes & _SKIPPED_CLASSES:
            self._skipped_depth += 1
        elif tag in _BLOCK_TAGS:
            self._flush()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that closes itself holds no text."""

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID_TAGS:
            return
        if self._skipped_depth:
            self._skipped_depth -= 1
        elif tag in _BLOCK_TAGS:
            self._flush()

    def handle_data(self, data: str) -> None:
        if not self._skipped_depth:
            self._text.append(data)

    def _flush(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text.clear()
        if text:
            self.paragraphs.append(text)


def _html(raw: str) -> Iterator[str]:
    parser = _Paragraphs()
    parser.feed(raw)
    parser.close()
    yield from parser.paragraphs


def _rst(raw: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", raw):
        if block.startswith((" ", "\t", "..", "=", "-", "+", "|", ":")):
            continue
        text = " ".join(block.split())
        text = re.sub(r"(?<!\w):[\w:.+-]+:`[!~]?([^`<]*?)\s*(?:<[^>`]*>)?`", r"\1", text)
        text = re.sub(r"`([^`<]+?)\s*<[^>`]*>`_+", r"\1", text)
        text = re.sub(r"``?([^`]+)``?_?", r"\1", text)
        yield re.sub(r"\s*[=~^\-\"*#]{4,}$", "", text).replace("::", ":")


def _man(raw: str) -> Iterator[str]:
    paragraph: list[str] = []
    for line in raw.splitlines():
        if line.startswith((".", "'")):
            macro, _, rest = line[1:].partition(" ")
            if macro in {"B", "I", "BR", "IR", "BI", "IB", "RB", "RI", "SM"}:
                paragraph.append(rest.replace('"', ""))
                continue
            if macro in {"PP", "TP", "SH", "SS", "IP", "P", "LP", "RS", "RE", "nf", "fi", "HP"}:
                yield _unescaped(" ".join(paragraph))
                paragraph = []
        else:
            paragraph.append(line)
    yield _unescaped(" ".join(paragraph))


def _unescaped(text: str) -> str:
    """The text without troff's escapes."""
    text = re.sub(r"\\f(?:\[\w*\]|\(\w\w|\w)|\\s[-+]?\d+|\\[,/&|^:%]|\\\"[^\n]*", "", text)
    for escape, plain in {"\\-": "-", "\\ ": " ", "\\~": " ", "\\e": "\\", "\\(aq": "'"}.items():
        text = text.replace(escape, plain)
    text = re.sub(r"\\\(\w\w|\\\(..|\\\[\w+\]|\\\*\(..|\\\*\[[^\]]*\]", "", text)
    return " ".join(text.split())
