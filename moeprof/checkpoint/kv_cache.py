"""How a model takes its key-value cache and gives it back: under one name, which has changed."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

from moeprof.errors import UnsupportedModelError


@cache
def accepted(forward: Callable[..., object]) -> frozenset[str]:
    """Names of the arguments of a forward."""
    return frozenset(inspect.signature(forward).parameters)


def cache_name(model: nn.Module) -> str:
    """The name of a model's key-value cache, as an argument and in its output.

    transformers says `cache` from 5.24 on and said `past_key_values` before.
    """
    names = accepted(type(model).forward)
    return "cache" if "cache" in names and "past_key_values" not in names else "past_key_values"


def cache_of(model: nn.Module, output: object) -> Any:  # noqa: ANN401
    """The cache in the output of a model.

    Raises:
        UnsupportedModelError: there is none.
    """
    found = getattr(output, cache_name(model), None)
    if found is None:
        raise UnsupportedModelError(f"{type(model).__name__}: returns no cache")
    return found
