"""Bounds as data: what may be put beside a type (`Annotated`) for `wire/codec` to check when a value comes from outside."""

from __future__ import annotations

from dataclasses import dataclass

MOST_STAGES = 1024
MOST_ITERATIONS = 1 << 40
MOST_MICROBATCHES = 1 << 16
MOST_PEERS = 1 << 12
MOST_CHARACTERS = 1 << 12
MOST_ITEMS = 1 << 16
WHOLE = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Within:
    """A number from `low` to `high`, both included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Items:
    """From `least` to `most` items, each once if `distinct`."""

    least: int
    most: int
    distinct: bool = False


@dataclass(frozen=True, slots=True)
class Length:
    """From `least` to `most` characters."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Text for people: what is over `most` characters is left out."""

    most: int


Bound = Within | Items | Length | Cut
