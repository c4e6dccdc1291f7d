"""What follows from objects that do not change need not be found again by each who asks with the very same ones.

In the simulator a thousand peers read one certificate by one view, one after the other; a live peer looks at them again.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Generic, TypeVar

T = TypeVar("T")

VIEWS_REMEMBERED = 8


class Remembered(Generic[T]):
    """The last `most` results, by the identity of what they were made of; they must not be changed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: list[tuple[tuple[object, ...], T]] = []

    def of(self, objects: tuple[object, ...], make: Callable[[], T]) -> T:
        """What `make` gives, which depends on these objects alone."""
        for known, made in self._known:
            if all(map(is_, known, objects)):
                return made
        made = make()
        self._known = [(objects, made), *self._known[: self._most - 1]]
        return made


class OfViews(Generic[T]):
    """What was made of the newest views without certain peers, who may be named by different sets: peers of one process see
    and plan one after the other."""

    def __init__(self) -> None:
        self._made: list[tuple[object, frozenset[str], T]] = []

    def of(self, view: object, without: frozenset[str], make: Callable[[], T]) -> T:
        """What `make` gives, which depends on these alone."""
        for known, left_out, made in self._made:
            if known is view and left_out == without:
                return made
        self._made = [(view, without, made := make()), *self._made[: VIEWS_REMEMBERED - 1]]
        return made
