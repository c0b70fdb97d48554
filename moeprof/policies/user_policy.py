"""Policies that a user writes in Python."""

import operator
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import MoeprofError
from moeprof.model_shape import ModelShape
from moeprof.policies.policy import Policy

_PROTOCOL = "the protocol: python -c 'import moeprof.policies as p; help(p.UserPolicy)'"


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What a policy of a user is made with.

    Attributes:
        shape: the model's numbers; cell `row * num_experts + expert` is an expert of the layer
            `shape.moe_layers[row]`.
        cell_bytes: [L * E] int64, bytes of each cell; read-only.
        budget_bytes: bytes that the entries may take together.
    """

    shape: ModelShape
    cell_bytes: NDArray[np.int64]
    budget_bytes: int


class UserPolicy(Protocol):
    """A policy of your own: a class with these methods, made with `CacheFacts`.

    For each batch (a layer of a decoded token, or of a whole prompt) `victim` is called as long as
    the batch before left more than the budget; then `touch` for every cell looked up, present or
    not; then `admit` for every cell that is missing, and `victim` as long as room is needed. It is
    made anew when the cache starts empty. The least recently used:

        class Oldest:
            def __init__(self, facts):
                self.last = np.zeros(len(facts.cell_bytes))
                self.lookups = 0

            def touch(self, cell, batch):
                self.lookups += 1
                self.last[cell] = self.lookups

            def admit(self, cell):
                return True

            def victim(self, candidates):
                return candidates[np.argmin(self.last[candidates])]

    `moeprof simulate TRACE --policy-file FILE.py:Oldest` replays it.
    """

    def __init__(self, facts: CacheFacts) -> None: ...

    def touch(self, cell: int, batch: int) -> None:
        """A batch uses a cell; batches are numbered from 0."""

    def admit(self, cell: int) -> bool:
        """Whether to bring a missing cell in; else it is computed where it lies."""

    def victim(self, candidates: NDArray[np.int64]) -> int:
        """Which entry to give up: one of `candidates`, present and not used by this batch.

        `candidates` ascend and are read-only.
        """


def user_policy(text: str) -> Policy:
    """The policy in `FILE.py:CLASS`.

    The file is executed.

    Raises:
        MoeprofError: the file cannot be imported, or has no such class with the methods of
            `UserPolicy`.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise MoeprofError(f"policy file {text!r}: is not FILE.py:CLASS", "write as my.py:Mine")
    made = getattr(_module(Path(file)), name, None)
    if not isinstance(made, type):
        raise MoeprofError(f"{file}: has no class {name}", _PROTOCOL)
    for method in ("touch", "admit", "victim"):
        if not callable(getattr(made, method, None)):
            raise MoeprofError(f"{text}: has no method {method}", _PROTOCOL)
    return Policy("python", make=made, label=text)


def _module(file: Path) -> ModuleType:
    if not file.is_file():
        raise MoeprofError(
            f"{file}: no such file", "name a Python file: --policy-file FILE.py:CLASS"
        )
    spec = util.spec_from_file_location(f"moeprof_user_policy_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise MoeprofError(f"{file}: cannot be imported", _PROTOCOL)
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # anything may go wrong in a user's file
        raise MoeprofError(f"{file}: {_spelled(error, file)}", "mend the file") from error
    return module


class Guarded:
    """A user's policy whose failures are those of `moeprof.errors`.

    Args:
        make: the user's class.
        label: what to call it.
        facts: what it is made with.
    """

    def __init__(self, make: Callable[..., object], label: str, facts: CacheFacts) -> None:
        self._label = label
        self._file = Path(label.rpartition(":")[0])
        self._policy = self._call("__init__", make, facts)

    def touch(self, cell: int, batch: int) -> None:
        """Pass a lookup on."""
        self._call("touch", self._policy.touch, cell, batch)  # type: ignore[attr-defined]

    def admit(self, cell: int) -> bool:
        """Ask about a missing cell."""
        answer = self._call("admit", self._policy.admit, cell)  # type: ignore[attr-defined]
        if not isinstance(answer, bool | np.bool_ | int):
            raise MoeprofError(
                f"policy {self._label}: admit returned {_shown(answer)}, which is no truth value",
                "return True or False",
            )
        return bool(answer)

    def victim(self, candidates: NDArray[np.int64]) -> int:
        """Ask for an entry to give up."""
        candidates.flags.writeable = False
        method = self._policy.victim  # type: ignore[attr-defined]
        answer = self._call("victim", method, candidates.view())
        try:
            cell = operator.index(answer)  # type: ignore[arg-type]
        except TypeError:
            cell = -1
        place = int(np.searchsorted(candidates, cell))  # they ascend
        if place == len(candidates) or candidates[place] != cell:
            raise MoeprofError(
                f"policy {self._label}: victim returned {_shown(answer)}, which is no candidate",
                "return one of the candidates it was given",
            )
        return cell

    def _call(self, name: str, method: Callable[..., object], *arguments: object) -> object:
        try:
            return method(*arguments)
        except (Exception, SystemExit) as error:  # anything may go wrong in a user's code
            what = f"policy {self._label}: {name} {_spelled(error, self._file)}"
            raise MoeprofError(what, f"mend it; {_PROTOCOL}") from error


def _shown(answer: object) -> str:
    """What a user's policy returned, on one line; its `__repr__` may fail like anything else."""
    try:
        return " ".join(repr(answer).split())
    except Exception:
        return f"a {type(answer).__name__}"


def _spelled(error: BaseException, file: Path) -> str:
    """What was raised, and the last line of the user's file that was running."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == file.name
    ]
    where = f" in line {lines[-1]}" if lines else ""
    return f"raised {type(error).__name__}{where}: {error}"
