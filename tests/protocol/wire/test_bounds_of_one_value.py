"""Bounds of one number or one length, of which a record has hundreds: at their ends and beyond them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt, Interval, Le, Len, MinLen

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.wire.codec import from_plain


@dataclass(frozen=True, slots=True)
class Bounded:
    """One field of each kind."""

    between: Annotated[int, Interval(ge=-1, le=5)] = 0
    least: Annotated[float, Ge(0.5)] = 1.0
    large: Annotated[int, Interval(ge=0, le=(1 << 63) - 1)] = 0
    twice: Annotated[float, Le(9.0), Le(3.0)] = 1.0
    above: Annotated[float, Gt(0.0)] = 1.0
    text: Annotated[str, Len(1, 3)] = "a"
    items: Annotated[tuple[int, ...], MinLen(1)] = (1,)


@pytest.mark.parametrize(
    "held",
    [
        {"between": -1},
        {"between": 5},
        {"least": 0.5},
        {"least": 1},
        {"twice": 3.0},
        {"text": "a"},
        {"text": "abc"},
        {"items": [4]},
    ],
)
def test_what_is_within_is_read(held: dict[str, Any]) -> None:
    [(name, value)] = held.items()
    found = getattr(from_plain(Bounded, held, "it"), name)
    assert found == (tuple(value) if isinstance(value, list) else value)
    assert isinstance(found, float) or name not in ("least", "twice", "above")


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({"between": -2}, "at least -1 and at most 5, got -2"),
        ({"between": 6}, "at least -1 and at most 5, got 6"),
        ({"between": True}, "a whole number"),
        ({"between": 1.0}, "a whole number"),
        ({"least": 0.4}, "at least 0.5, got 0.4"),
        ({"least": float("nan")}, "a finite number"),
        ({"least": float("inf")}, "a finite number"),
        ({"least": True}, "a number"),
        ({"least": 1 << 70}, "a number of 64 bits"),
        ({"large": 1 << 63}, "at least 0 and at most 9223372036854775807"),
        ({"twice": 3.5}, "at most 9.0 and at most 3.0, got 3.5"),
        ({"above": 0.0}, "above 0.0, got 0.0"),
        ({"text": ""}, "of at least 1 and of at most 3, got ''"),
        ({"text": "abcd"}, "of at least 1 and of at most 3, got 'abcd'"),
        ({"text": 7}, "a str"),
        ({"items": []}, r"of at least 1, got \(\)"),
    ],
)
def test_what_is_beyond_is_refused_by_name(held: dict[str, Any], expected: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"it.{next(iter(held))}: expected {expected}"):
        from_plain(Bounded, held, "it")
