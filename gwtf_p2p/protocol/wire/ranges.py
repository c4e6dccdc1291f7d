"""Ranges of settings: written once, as annotations of the dataclass that holds them, and checked wherever a setting comes in.

    learning_rate: Annotated[float, Gt(0), Le(1e6), "step size of AdamW"] = 1e-3

`Gt`, `Ge`, `Lt`, `Le`, `MinLen`, `MaxLen` are those of `annotated_types`, so the JSON schema of `gwtf run schema` is made from
the same lines. A `Literal` lists its values, `Matches` asks for a pattern, and a text says what the setting means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen

from gwtf_p2p.protocol.errors import InputError


@dataclass(frozen=True, slots=True)
class Matches:
    """A text has to match the whole pattern; `meaning` says it to people."""

    pattern: str
    meaning: str


PLAIN_NAME = Matches(r"[^\x00-\x1f]*", "without control characters")


@dataclass(frozen=True, slots=True)
class Field:
    """What is known of one setting: its plain type, the bounds on it, the values that it may have, and what it means."""

    kind: Any
    bounds: tuple[Any, ...]
    choices: tuple[Any, ...]
    meaning: str


@cache
def described_fields(kind: Any) -> dict[str, Field]:
    """The settings of a dataclass by name."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: _field(hints[f.name]) for f in fields(kind)}


def check_ranges(settings: Any, where: str, prefix: str = "") -> None:
    """Check every setting of a dataclass, and of those inside it. Raises InputError that names the first out of range."""
    kind: Any = type(settings)
    for name, known in described_fields(kind).items():
        _check(getattr(settings, name), known, where, f"{prefix}{name}")


def _check(value: Any, known: Field, where: str, name: str) -> None:
    if hasattr(value, "__dataclass_fields__"):
        check_ranges(value, where, f"{name}.")
        return
    if isinstance(value, tuple) and any(hasattr(item, "__dataclass_fields__") for item in value):
        for number, item in enumerate(value):
            check_ranges(item, where, f"{name}[{number}].")
    if value is None:
        return
    if known.choices and value not in known.choices:
        raise InputError(where, name, f"expected {_either(known.choices)}, got {value!r:.80}")
    if any(not holds(bound, value) for bound in known.bounds):
        raise InputError(where, name, f"expected {expectation(known, value)}, got {value!r:.80}")


def expectation(known: Field, value: Any = None) -> str:
    """The bounds in words: a whole number, at least 0 and below 9223372036854775808."""
    words = [text for bound in known.bounds if (text := in_words(bound))]
    kind = known.kind if known.kind in (int, float) else type(value)
    noun = {int: "a whole number", float: "a number", str: "a text"}.get(kind, "a list")
    return f"{noun}, {' and '.join(words)}" if words else noun


def _field(hint: Any) -> Field:
    bounds: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *bounds_ = get_args(hint)
        bounds = tuple(bounds_)
    meaning = next((item for item in bounds if isinstance(item, str)), "")
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return Field(hint, tuple(checkable(bounds)), choices, meaning)


def checkable(notes: Iterable[Any]) -> Iterator[Any]:
    """The single bounds among what stands beside a type; what it means, and what only its reader knows, is left out."""
    for note in notes:
        if isinstance(note, GroupedMetadata):
            yield from note
        elif isinstance(note, (Gt, Ge, Lt, Le, MinLen, MaxLen, Matches)):
            yield note


def holds(bound: Any, value: Any) -> bool:
    """Is the value within one bound? Numbers that are not finite are within none."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    match bound:
        case Gt(limit):
            return bool(value > limit)
        case Ge(limit):
            return bool(value >= limit)
        case Lt(limit):
            return bool(value < limit)
        case Le(limit):
            return bool(value <= limit)
        case MinLen(length):
            return len(value) >= length
        case MaxLen(length):
            return len(value) <= length
        case Matches(pattern):
            return re.fullmatch(pattern, value) is not None
    raise AssertionError(f"a bound that nobody checks: {bound!r}")


def in_words(bound: Any) -> str:
    """One bound as it is told to people."""
    match bound:
        case Gt(limit):
            return f"above {limit}"
        case Ge(limit):
            return f"at least {limit}"
        case Lt(limit):
            return f"below {limit}"
        case Le(limit):
            return f"at most {limit}"
        case MinLen(length):
            return f"of at least {length}"
        case MaxLen(length):
            return f"of at most {length}"
        case Matches(_, meaning):
            return meaning
    raise AssertionError(f"a bound that nobody checks: {bound!r}")


def _either(choices: tuple[Any, ...]) -> str:
    *first, last = (str(choice) for choice in choices)
    return f"{', '.join(first)} or {last}" if first else last
