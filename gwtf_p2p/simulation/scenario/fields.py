"""Reading a TOML table strictly: every wrong, missing or unknown field raises InputError(file, field, what was expected).

A misspelt optional field would otherwise go unseen and the scenario would test something else than its name claims.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol.errors import InputError

MOST = 1 << 50
"""Bound of every number in a file: beyond it, seconds and bytes lose their fractions in a float."""


def read_toml(path: Path) -> Fields:
    """The file's top table. Raises InputError when it cannot be read or is not TOML."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise InputError(str(path), "", f"expected a readable file ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(str(path), "", f"expected TOML ({error})") from error
    return Fields(str(path), table)


class Fields:
    """One table of a file. Take every field that is known, then call `finish`."""

    def __init__(self, where: str, table: Mapping[str, Any], path: str = "") -> None:
        self.where, self._table, self._path = where, table, path
        self._known: set[str] = set()

    def error(self, name: str, expected: str) -> InputError:
        """The error to raise about a field of this table."""
        return InputError(self.where, f"{self._path}{name}", expected)

    def has(self, name: str) -> bool:
        self._known.add(name)
        return name in self._table

    def finish(self) -> None:
        """Raises InputError that names the first field that nobody asked for."""
        unknown = sorted(set(self._table) - self._known)
        if unknown:
            raise self.error(unknown[0], f"unknown field, expected one of {', '.join(sorted(self._known))}")

    # ---- single values

    def whole(self, name: str, least: int, default: int | None = None) -> int:
        """A whole number of at least `least`."""
        if default is not None and not self.has(name):
            return default
        return self._as_whole(name, self._get(name, f"a whole number from {least}"), least)

    def number(self, name: str, default: float | None = None, *, positive: bool = True, most: float = MOST) -> float:
        """A finite number above 0 (from 0 if not `positive`) up to `most`."""
        if default is not None and not self.has(name):
            return default
        return self._as_number(name, self._get(name, "a number"), positive, most)

    def text(self, name: str, default: str | None = None) -> str:
        if default is not None and not self.has(name):
            return default
        value = self._get(name, "a string")
        if not isinstance(value, str) or not value:
            raise self.error(name, f"expected a string, got {value!r}")
        return value

    # ---- several values

    def wholes(self, name: str, least: int) -> tuple[int, ...]:
        """One whole number, or a list of at least one."""
        return tuple(self._as_whole(name, value, least) for value in self._one_or_more(name, "a whole number"))

    def numbers(self, name: str) -> tuple[float, ...]:
        """One number above 0, or a list of at least one."""
        return tuple(self._as_number(name, value, True, MOST) for value in self._one_or_more(name, "a number"))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self._get(name, "a list of strings")
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
            raise self.error(name, f"expected a list of strings, got {values!r}")
        return tuple(values)

    # ---- tables

    def table(self, name: str) -> Fields:
        value = self._get(name, "a table")
        if not isinstance(value, dict):
            raise self.error(name, f"expected a table, got {value!r}")
        return Fields(self.where, value, f"{self._path}{name}.")

    def tables(self, name: str) -> list[Fields]:
        """An array of at least one table; they are named `name[0]`, `name[1]`, ... in errors."""
        values = self._get(name, f"at least one [[{name}]]")
        if not isinstance(values, list) or not values or not all(isinstance(v, dict) for v in values):
            raise self.error(name, f"expected at least one [[{name}]]")
        return [Fields(self.where, value, f"{self._path}{name}[{i}].") for i, value in enumerate(values)]

    # ---- inside

    def _get(self, name: str, expected: str) -> Any:
        if not self.has(name):
            raise self.error(name, f"missing, expected {expected}")
        return self._table[name]

    def _one_or_more(self, name: str, expected: str) -> list[Any]:
        value = self._get(name, f"{expected} or a list")
        values = value if isinstance(value, list) else [value]
        if not values:
            raise self.error(name, f"expected {expected} or a list of at least one")
        return values

    def _as_whole(self, name: str, value: object, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
            raise self.error(name, f"expected a whole number from {least}, got {value!r}")
        return value

    def _as_number(self, name: str, value: object, positive: bool, most: float) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most and (value or not positive):
            return float(value)
        span = f"{'above' if positive else 'from'} 0" + (f" up to {most:g}" if most < MOST else "")
        raise self.error(name, f"expected a number {span}, got {value!r}")
