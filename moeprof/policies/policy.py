"""Policies as frozen facts, and the text they are written as."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from moeprof.errors import MoeprofError

ORDERS = ("static", "lru", "lfu", "lfru", "belady", "optimum")
SCOPES = ("global", "layer")
_LEARNED = {"lfu", "lfru"}
_REMEDY = f"write NAME[:KEY=VALUE...], NAME one of {', '.join(ORDERS)}, as in lfu:decay=0.99"


@dataclass(frozen=True, slots=True)
class Policy:
    """How a cache of experts is filled and emptied.

    `static` keeps the cells that were used most per byte on the training documents; `lru` gives up
    the least recently used, `lfu` the least frequently used with decay, `lfru` the least
    frequently used of those that are not recent, `belady` what is used again last. `optimum` is no
    policy but the most hits that any policy can have.

    Attributes:
        order: of `ORDERS`, or `python` for a policy of a user.
        pinned: share of the budget in which the cells used most on the training documents stay
            for good; the order rules in what is left.
        scope: `global`: all layers share the budget; `layer`: each has a part of it, in
            proportion to the bytes of its experts.
        decay: what a use counts for after one more token, in (0, 1]; of `lfu`, `lfru`, and
            where there is hysteresis. As usual it is what hits most in `moeprof simulate` of the
            Qwen3-30B-A3B and OLMoE traces of `tests/test_conformance.py` (0.9 and 0.98 come close).
        recent: share of the budget in which recent entries are safe; of `lfru`.
        uploads: most experts brought in for each layer and token; None for no limit.
        hysteresis: an expert is brought in only if it was used more than 1 + hysteresis times as
            often as each one that has to go; None to bring in every missed one.
        make: of a user's policy, makes it anew.
        label: of a user's policy, its name.
    """

    order: str
    pinned: float = 0.0
    scope: str = "global"
    decay: float = 0.95
    recent: float = 0.5
    uploads: int | None = None
    hysteresis: float | None = None
    make: Callable[..., object] | None = None
    label: str = ""

    def __post_init__(self) -> None:
        self._expect("scope", self.scope in SCOPES, f"one of {', '.join(SCOPES)}")
        self._expect("decay", 0 < self.decay <= 1, "above 0 and at most 1")
        self._expect("recent", 0 <= self.recent <= 1, "between 0 and 1")
        self._expect("pinned", 0 <= self.pinned <= 1, "between 0 and 1")
        self._expect("uploads", self.uploads is None or self.uploads >= 1, "at least 1")
        self._expect("hysteresis", self.hysteresis is None or self.hysteresis >= 0, "at least 0")
        for key in self._set_keys():
            if key not in _KEYS_OF[self.order] and not (
                key == "decay" and self.hysteresis is not None
            ):
                raise MoeprofError(f"policy {self.order}: has no {key}", f"leave {key} out")

    @property
    def name(self) -> str:
        """The text of the policy, without what is as usual."""
        if self.order == "python":
            return self.label
        own = [f"{key}={_text(getattr(self, key))}" for key in self._set_keys() if key != "pinned"]
        pinned = [f"+pinned:share={_text(self.pinned)}"] if self.pinned else []
        return ":".join([self.order, *own]) + "".join(pinned)

    @property
    def learns(self) -> bool:
        """Whether it needs training documents: a list of cells is chosen on them."""
        return self.order == "static" or self.pinned > 0

    @property
    def knows_future(self) -> bool:
        """Whether no machine can follow it."""
        return self.order in ("belady", "optimum")

    def _set_keys(self) -> list[str]:
        """Options that are not as usual."""
        usual = {field.name: field.default for field in fields(self)}
        return [key for key in _PARSERS if getattr(self, key) != usual[key]]

    def _expect(self, key: str, holds: bool, expected: str) -> None:
        if not holds:
            value = getattr(self, key)
            raise MoeprofError(f"policy {self.order}: {key} is {value}, expected {expected}")


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "scope": str,
    "decay": float,
    "recent": float,
    "uploads": int,
    "hysteresis": float,
    "pinned": float,
}
_ADAPTIVE = {"scope", "uploads", "hysteresis", "pinned"}
_KEYS_OF: Mapping[str, set[str]] = {
    "static": {"scope"},
    "lru": _ADAPTIVE,
    "lfu": _ADAPTIVE | {"decay"},
    "lfru": _ADAPTIVE | {"decay", "recent"},
    "belady": {"scope"},
    "optimum": {"scope"},
    "python": {"uploads"},
}


def parse_policy(text: str) -> Policy:
    """The policy that a text names.

    `NAME[:KEY=VALUE...][+pinned:share=SHARE]`, such as `lru`, `lfu:decay=0.99:scope=layer` or
    `lru:uploads=2+pinned:share=0.5`; names and keys as in `Policy`.

    Raises:
        MoeprofError: no such policy, no such key, or a value out of range.
    """
    base, _, pinned = text.strip().partition("+")
    order, *options = base.split(":")
    if order not in ORDERS:
        raise MoeprofError(f"policy {text!r}: there is no policy {order!r}", _REMEDY)
    values = dict[str, object]()
    for option in options:
        key, value = _option(text, option)
        if key in values:
            raise MoeprofError(f"policy {text!r}: names {key} twice", "name it once")
        values[key] = value
    if "+" in text:
        word, *shares = pinned.split(":")
        if word != "pinned" or len(shares) != 1 or not shares[0].startswith("share="):
            raise MoeprofError(
                f"policy {text!r}: {pinned!r} is not pinned:share=SHARE",
                "write it as in lru+pinned:share=0.5",
            )
        values |= dict([_option(text, shares[0].replace("share", "pinned", 1))])
        if not 0 < float(str(values["pinned"])) <= 1:
            raise MoeprofError(
                f"policy {text!r}: the pinned share is {values['pinned']}, expected above 0 and "
                "at most 1",
                "write it as in lru+pinned:share=0.5",
            )
    return Policy(order, **values)  # type: ignore[arg-type]


def _option(text: str, option: str) -> tuple[str, object]:
    key, _, value = option.partition("=")
    if key not in _PARSERS:
        raise MoeprofError(f"policy {text!r}: there is no option {option!r}", _REMEDY)
    try:
        return key, _PARSERS[key](value)
    except ValueError as error:
        raise MoeprofError(f"policy {text!r}: {option!r} has no number", _REMEDY) from error
