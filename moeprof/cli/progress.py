"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from moeprof.units import format_duration

if TYPE_CHECKING:
    from moeprof.checkpoint import Checkpoint
    from moeprof.placement import Placement
    from moeprof.runtime import LoadedModel, LoadOptions

_PLAIN_LINE_SECONDS = 10.0


class _Bars:
    """Bars that are shown inside a `with` block."""

    _bar: Progress

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


class TraceProgress(_Bars):
    """Shows tokens, tokens/s and time left of each domain while it is traced."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._begun = 0.0
        self._first_tokens = 0
        self._first_fraction: float | None = None
        self._last_line = time.monotonic()

    def advance(self, domain: str, tokens: int, fraction: float | None) -> None:
        """See `moeprof.capture.tracer.Progress`."""
        now = time.monotonic()
        if domain not in self._tasks:
            self._tasks[domain] = self._bar.add_task(domain, total=None, facts="")
            self._begun, self._first_tokens, self._first_fraction = now, tokens, fraction
        facts = f"{tokens:,} tokens{self._rate(now, tokens)}{self._left(now, fraction)}"
        self._bar.update(
            self._tasks[domain],
            completed=fraction or 0.0,
            total=None if fraction is None else 1.0,
            facts=facts,
        )
        if not self._console.is_terminal and now - self._last_line >= _PLAIN_LINE_SECONDS:
            self._console.print(f"{domain}: {facts}", highlight=False)
            self._last_line = now

    def _rate(self, now: float, tokens: int) -> str:
        if now == self._begun:
            return ""
        return f", {(tokens - self._first_tokens) / (now - self._begun):,.0f} tokens/s"

    def _left(self, now: float, fraction: float | None) -> str:
        if fraction is None or self._first_fraction is None or fraction <= self._first_fraction:
            return ""
        if fraction >= 1.0:
            return ""
        elapsed = now - self._begun
        left = elapsed * (1.0 - fraction) / (fraction - self._first_fraction)
        return f", {format_duration(max(1.0, round(left)))} left"


class LoadBars(_Bars):
    """Shows bytes, speed and time left of what a load reads; nothing where nobody watches.

    Args:
        quiet: show nothing on a terminal either.
    """

    def __init__(self, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def advance(self, what: str, done: int, total: int) -> None:
        """See `moeprof.checkpoint.weights.LoadProgress`."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done)


def load_shown(
    plan: "Placement", model: "Checkpoint", options: "LoadOptions", quiet: bool
) -> "LoadedModel":
    """Load a model as `moeprof.runtime.load` does, with bars; see `LoadBars`."""
    from moeprof.runtime import load

    with LoadBars(quiet) as bars:
        options["progress"] = bars.advance
        return load(plan, model, **options)
