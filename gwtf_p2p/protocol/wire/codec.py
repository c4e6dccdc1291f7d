"""Frozen dataclasses to plain msgpack values and back, checked on the way in.

Records and message headers share this: what arrives from a stranger becomes a typed object or a `RemoteProtocolError` that
names the field. Unknown keys are ignored, so that a newer peer can add fields.

An annotation is looked into once and becomes a function (`_reader`): records and headers are read hundreds of times a second,
and looking at the annotations took most of that time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from functools import cache
from math import inf, isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Le, MaxLen, MinLen

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.limits import MOST_CHARACTERS, MOST_ITEMS, WHOLE, Cut, Distinct
from gwtf_p2p.protocol.wire.ranges import checkable, holds, in_words

Reader = Callable[[Any], Any]

_AS_IT_IS = frozenset({str, int, float, bool, bytes, NoneType})


def to_plain(value: Any) -> Any:
    """Dataclasses to maps, enums to their values, tuples to lists; the inverse of `from_plain`. A dataclass with a true
    `AS_LIST` becomes a list of its fields in their order: one of which a message has many spends most bytes on their names."""
    kind: Any = type(value)
    if kind in _AS_IT_IS:
        return value
    names = _field_names(kind)
    if names is not None:
        if _is_list(kind):
            return [to_plain(getattr(value, name)) for name in names]
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return value


def from_plain(kind: Any, value: Any, where: str) -> Any:
    """Rebuild `kind` from plain values, checking each type. Raises RemoteProtocolError that names the field."""
    try:
        return _reader(kind)(value)
    except _Mismatch as mismatch:
        raise RemoteProtocolError(f"{where}{mismatch.path}: {mismatch.what}") from mismatch


class _Mismatch(Exception):
    """A value that is not what is due; `path` grows on the way out, so that it costs nothing where all is well."""

    def __init__(self, what: str) -> None:
        self.path, self.what = "", what
        super().__init__(what)

    def within(self, part: str) -> _Mismatch:
        self.path = part + self.path
        return self


@cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """None for what is no dataclass."""
    return tuple(f.name for f in fields(kind)) if hasattr(kind, "__dataclass_fields__") else None


@cache
def _is_list(kind: Any) -> bool:
    return bool(getattr(kind, "AS_LIST", False))


@cache
def _reader(kind: Any) -> Reader:
    """What makes a `kind` of a plain value, or raises _Mismatch."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, *bounds = get_args(kind)
        return _bounded(_reader(base), tuple(bounds))
    if origin in (Union, UnionType):
        return _union(get_args(kind))
    if origin is Literal:
        return _literal(get_args(kind))
    if hasattr(kind, "__dataclass_fields__"):
        return _dataclass(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind)
    if origin is tuple:
        return _tuple(get_args(kind))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(*map(_reader, get_args(kind)))
    return _scalar(getattr(kind, "__supertype__", kind))


def _bounded(item: Reader, bounds: tuple[Any, ...]) -> Reader:
    """Free text is cut; whatever else is out of bounds is a mismatch."""
    most = next((bound.most for bound in bounds if isinstance(bound, Cut)), None)
    is_distinct = any(isinstance(bound, Distinct) for bound in bounds)
    checked = tuple(checkable(bounds))
    expected = " and ".join(filter(None, map(in_words, checked)))
    if most is None and not is_distinct and checked:
        span = _span(checked)
        if span is not None:
            return _within(item, span, expected, is_length=isinstance(checked[0], (MinLen, MaxLen)))

    def read(value: Any) -> Any:
        found = item(value[:most] if most is not None and isinstance(value, str) else value)
        if not all(holds(bound, found) for bound in checked):
            raise _expected(expected, found)
        if is_distinct and len(set(found)) < len(found):
            raise _Mismatch("expected each item once")
        return found

    return read


def _span(bounds: tuple[Any, ...]) -> tuple[float, float] | None:
    """From the least to the most, where the bounds are those of one number or one length and say nothing else."""
    for low, least, high, most in ((Ge, "ge", Le, "le"), (MinLen, "min_length", MaxLen, "max_length")):
        if all(isinstance(bound, (low, high)) for bound in bounds):
            lows: list[Any] = [getattr(bound, least) for bound in bounds if isinstance(bound, low)]
            highs: list[Any] = [getattr(bound, most) for bound in bounds if isinstance(bound, high)]
            return max(lows, default=-inf), min(highs, default=inf)
    return None


def _within(item: Reader, span: tuple[float, float], expected: str, *, is_length: bool) -> Reader:
    """The same for the commonest bounds, of which a record has hundreds."""
    least, most = span

    def read_number(value: Any) -> Any:
        found = item(value)
        if not least <= found <= most:
            raise _expected(expected, found)
        return found

    def read_length(value: Any) -> Any:
        found = item(value)
        if not least <= len(found) <= most:
            raise _expected(expected, found)
        return found

    return read_length if is_length else read_number


def _optional(item: Reader) -> Reader:
    return lambda value: None if value is None else item(value)


def _union(kinds: tuple[Any, ...]) -> Reader:
    """A text or something else: what is a text is read as one, for all else the other alternative says what is wrong."""
    others = [_reader(kind) for kind in kinds if kind not in (NoneType, str)]
    if not others:
        others = [_reader(str)]
    reader = others[0]
    if str in kinds and kinds != (str, NoneType):
        other = reader
        reader = lambda value: value if isinstance(value, str) else other(value)  # noqa: E731
    return _optional(reader) if NoneType in kinds else reader


def _literal(choices: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise _Mismatch(f"expected one of {', '.join(map(str, choices))}, got {value!r:.80}")
        return value

    return read


def _dataclass(kind: Any) -> Reader:
    @cache
    def readers() -> tuple[tuple[str, Reader], ...]:
        """Looked into when one is read: a dataclass may have a field of its own kind."""
        hints = get_type_hints(kind, include_extras=True)
        return tuple((f.name, _reader(hints[f.name])) for f in fields(kind))

    as_list = _is_list(kind)

    def read(value: Any) -> Any:
        if as_list:
            if not isinstance(value, list):
                raise _expected("a list", value)
            value = dict(zip((name for name, _ in readers()), value, strict=False))
        if not isinstance(value, dict):
            raise _expected("a map", value)
        known = {}
        for name, item in readers():
            if name in value:
                try:
                    known[name] = item(value[name])
                except _Mismatch as mismatch:
                    raise mismatch.within(f".{name}") from None
        try:
            return kind(**known)
        except TypeError as error:
            raise _Mismatch(str(error)) from error

    return read


def _enum(kind: type[Enum]) -> Reader:
    def read(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError as error:
            raise _Mismatch(f"expected one of {[m.value for m in kind]}, got {value!r:.80}") from error

    return read


def _tuple(args: tuple[Any, ...]) -> Reader:
    repeats = len(args) == 2 and args[1] is Ellipsis
    items = [_reader(a) for a in args if a is not Ellipsis]

    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise _expected("a list", value)
        if len(value) > MOST_ITEMS:
            raise _Mismatch(f"expected at most {MOST_ITEMS} items, got {len(value)}")
        if not repeats and len(items) != len(value):
            raise _expected(f"{len(items)} items", value)
        found = []
        for i, v in enumerate(value):
            try:
                found.append(items[0 if repeats else i](v))
            except _Mismatch as mismatch:
                raise mismatch.within(f"[{i}]") from None
        return tuple(found)

    return read


def _mapping(key: Reader, item: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _expected("a map", value)
        if len(value) > MOST_ITEMS:
            raise _Mismatch(f"expected at most {MOST_ITEMS} items, got {len(value)}")
        found = {}
        for k, v in value.items():
            try:
                found[key(str(k))] = item(v)
            except _Mismatch as mismatch:
                raise mismatch.within(f".{k!s:.40}") from None
        return found

    return read


def _scalar(kind: Any) -> Reader:
    if kind is Any:
        return lambda value: value
    if kind is float:
        return _float
    if kind is int:
        return _int

    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise _expected(f"a {kind.__name__}", value)
        if isinstance(value, str) and len(value) > MOST_CHARACTERS:
            raise _Mismatch(f"expected at most {MOST_CHARACTERS} characters, got {len(value)}")
        return value

    return read


def _float(value: Any) -> float:
    if type(value) is float and isfinite(value):
        return value
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _expected("a number", value)
    if isinstance(value, int) and abs(value) > WHOLE:
        raise _expected("a number of 64 bits", value)
    if value != value or abs(value) == float("inf"):
        raise _expected("a finite number", value)
    return float(value)


def _int(value: Any) -> int:
    if type(value) is int:
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise _expected("a whole number", value)
    return value


def _expected(what: str, got: object) -> _Mismatch:
    return _Mismatch(f"expected {what}, got {got!r:.80}")
