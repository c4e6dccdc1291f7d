"""No field of a message or a record is without bounds, and what is out of bounds costs the message, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.limits import Cut
from gwtf_p2p.protocol.wire.messages import ControlMessage, TensorMessage, from_header
from gwtf_p2p.protocol.wire.ranges import checkable
from gwtf_p2p.protocol.wire.records import StageRecord

KINDS = (*get_args(TensorMessage), *get_args(ControlMessage), StageRecord)
GENERAL = {"run_id", "schema_version", "wire_version", "attempt_number"}
"""Compared for equality only: the reader's own bounds of text and of 64 bits are enough."""

MICROBATCH = {"data_peer": "a", "iteration": 3, "index": 0}


def unbounded(kind: Any, where: str, seen: set[Any]) -> list[str]:
    """Places under `kind` that take any number, text or length."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, *bounds = get_args(kind)
        inner = get_args(base) if get_origin(base) is not None else ()
        assert any(isinstance(bound, Cut) for bound in bounds) or any(True for _ in checkable(bounds)), where
        return [w for i in inner if i is not Ellipsis for w in unbounded(i, f"{where}[]", seen)]
    if origin in (Union, UnionType):
        return [w for a in get_args(kind) if a is not NoneType for w in unbounded(a, where, seen)]
    if is_dataclass(kind):
        if kind in seen:
            return []
        seen.add(kind)
        hints = get_type_hints(kind, include_extras=True)
        return [w for f in fields(kind) if f.name not in GENERAL for w in unbounded(hints[f.name], f"{where}.{f.name}", seen)]
    if kind is bool or (isinstance(kind, type) and issubclass(kind, Enum)):
        return []
    if origin is not None and not issubclass(origin, Mapping):
        return [f"{where}: {kind}"]
    return [f"{where}: {kind}"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_has_bounds(kind: type[Any]) -> None:
    assert unbounded(kind, kind.__name__, set()) == []


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ({"kind": "Commit", "iteration": 2**60, "attempt": 1, "coordinator": "a", "mean_loss": 1.0}, "iteration"),
        ({"kind": "Inquire", "iteration": 1, "attempt": 2**64 - 1}, "attempt"),
        ({"kind": "Forward", "microbatch": MICROBATCH, "attempt": [], "stage": 1}, "attempt"),
        ({"kind": "Forward", "microbatch": MICROBATCH, "attempt": [1], "stage": -1}, "stage"),
        ({"kind": "Standing", "stage": 99_999, "version": 0}, "stage"),
        ({"kind": "Standing", "stage": 1, "version": -2}, "version"),
        ({"kind": "Prepare", "iteration": 1, "attempt": 1, "coordinator": "a", "stage": 1, "shares": []}, "shares"),
        ({"kind": "Check", "microbatches": [MICROBATCH, MICROBATCH]}, "microbatches"),
        ({"kind": "Admit", "iteration": 1, "donors": ["a", "a"]}, "donors"),
        ({"kind": "Complete", "microbatch": MICROBATCH, "successor": "", "held_s": 0.1}, "successor"),
        ({"kind": "Complete", "microbatch": MICROBATCH, "successor": "b", "held_s": -1.0}, "held_s"),
        ({"kind": "Complete", "microbatch": {**MICROBATCH, "index": -1}, "successor": "b", "held_s": 0.1}, "index"),
        ({"kind": "Prepared", "iteration": 1, "attempt": 1, "stage": 1, "digest": "x" * 999}, "digest"),
        ({"kind": "CancelFlow", "link": "l" * 999, "version": 1}, "link"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(header: dict[str, Any], what: str) -> None:
    with pytest.raises(RemoteProtocolError, match=what):
        from_header(header)


def test_a_long_reason_is_cut_and_not_refused() -> None:
    message: Any = from_header({"kind": "Lost", "peer": "a", "reason": "x" * 5000})
    assert len(message.reason) == 500
