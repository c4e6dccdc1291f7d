"""Bounds as data, beyond those of `annotated_types`, and how much the protocol takes of anything at most.

`Interval` and `Len` of `annotated_types` are put beside a type (`Annotated`), and `wire/codec` checks them when a value comes
from outside, with these two.
"""

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
class Distinct:
    """Each item once."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Text for people: what is over `most` characters is left out."""

    most: int
