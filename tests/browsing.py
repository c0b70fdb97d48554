"""A headless Chromium for the tests of the page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Seen:
    """What happened while a page was open."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@dataclass
class Browser:
    """An open Chromium."""

    chromium: Any

    @contextmanager
    def page(self, path: Path, width: int = 1280, **context: Any) -> Iterator[tuple[Any, Seen]]:
        """The page at `path`, with everything it asked for and complained of."""
        opened = self.chromium.new_context(viewport={"width": width, "height": 900}, **context)
        seen = Seen()
        page = opened.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: seen.messages.append(message.text))
        page.on("pageerror", lambda error: seen.messages.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(path.as_uri())
        yield page, seen
        opened.close()


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium as it is installed here; the test is skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with driver.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=_FLAGS)
        yield Browser(chromium)
        chromium.close()
