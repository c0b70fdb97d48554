"""Values of an instance that are computed when they are first asked for."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class ComputedOnce(Generic[Value]):
    """As `functools.cached_property` from Python 3.12 on: without a lock.

    In 3.11 all instances share one lock, so that threads that compute for different instances wait
    for each other. Two threads that ask the same instance at once may both compute.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Value:
        value = self._compute(instance)
        vars(instance)[self._name] = value
        return value
