"""Frozen dataclasses to plain msgpack values and back, checked on the way in.

Records and message headers share this: what arrives from a stranger becomes a typed object or a `RemoteProtocolError` that
names the field. Unknown keys are ignored, so that a newer peer can add fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from gwtf_p2p.protocol.errors import RemoteProtocolError


def to_plain(value: Any) -> Any:
    """Dataclasses to maps, enums to their values, tuples to lists; the inverse of `from_plain`."""
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return value


def from_plain(kind: Any, value: Any, where: str) -> Any:
    """Rebuild `kind` from plain values, checking each type. Raises RemoteProtocolError that names the field."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        if value is None:
            return None
        return from_plain(next(a for a in get_args(kind) if a is not type(None)), value, where)
    if hasattr(kind, "__dataclass_fields__"):
        return _dataclass_from_plain(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            raise RemoteProtocolError(f"{where}: expected one of {[m.value for m in kind]}, got {value!r}") from error
    if origin is tuple:
        return _tuple_from_plain(get_args(kind), value, where)
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), where, "a map", value)
        item = get_args(kind)[1]
        return {str(k): from_plain(item, v, f"{where}.{k}") for k, v in value.items()}
    return _scalar_from_plain(kind, value, where)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Resolved annotations of a dataclass; `get_type_hints` is too slow to repeat for every message."""
    return get_type_hints(kind)


def _dataclass_from_plain(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, "a map", value)
    hints = _hints(kind)
    known = {f.name: from_plain(hints[f.name], value[f.name], f"{where}.{f.name}") for f in fields(kind) if f.name in value}
    try:
        return kind(**known)
    except TypeError as error:
        raise RemoteProtocolError(f"{where}: {error}") from error


def _tuple_from_plain(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), where, "a list", value)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(from_plain(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    _expect(len(args) == len(value), where, f"{len(args)} items", value)
    return tuple(from_plain(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _scalar_from_plain(kind: Any, value: Any, where: str) -> Any:
    kind = getattr(kind, "__supertype__", kind)
    if kind is Any:
        return value
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), where, "a number", value)
        _expect(value == value and abs(value) != float("inf"), where, "a finite number", value)
        return float(value)
    if kind is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), where, "a whole number", value)
        return value
    _expect(isinstance(value, kind), where, f"a {kind.__name__}", value)
    return value


def _expect(condition: bool, where: str, expected: str, got: object) -> None:
    if not condition:
        raise RemoteProtocolError(f"{where}: expected {expected}, got {got!r:.80}")
