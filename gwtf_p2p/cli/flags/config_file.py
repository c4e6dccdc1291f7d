"""`-c FILE.toml`: flags of a verb from a file, named as on the command line; flags given there as well win."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol.errors import InputError

NEGATED = {"use_relay": "--no_relay"}
"""Flags that are on by default and have a word for off."""

_GLUED = re.compile(r"(?:--config=|-c)(.*)", re.DOTALL)


def expand(arguments: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Replace `-c FILE` by the flags in the file. Raises InputError that names the file and the field."""
    words, files = _taken_out(arguments)
    if not files:
        return words
    if len(files) > 1:
        raise InputError("-c, --config", "", f"expected one TOML file, got {', '.join(files)}")
    path = Path(files[0])
    verb, rest = words[:1], words[1:]
    return [*verb, *_flags(_read(path), str(path), parser, _overruled(rest, parser)), *rest]


def _taken_out(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The other words, and the files of `-c FILE`, `-cFILE`, `--config FILE` and `--config=FILE`. Raises InputError."""
    words: list[str] = []
    files: list[str] = []
    left = iter(arguments)
    for word in left:
        glued = _GLUED.fullmatch(word)
        if word in ("-c", "--config"):
            files.append(next(left, ""))
        elif glued is not None:
            files.append(glued[1])
        else:
            words.append(word)
            continue
        if not files[-1]:
            raise InputError(word, "", "expected the name of a TOML file")
    return words, files


def _overruled(rest: Sequence[str], parser: argparse.ArgumentParser) -> frozenset[str]:
    """Names of flags that exclude one which is given on the command line."""
    given = {word.partition("=")[0] for word in rest}
    groups = [{option for action in group._group_actions for option in action.option_strings}
              for group in parser._mutually_exclusive_groups]  # fmt: skip
    return frozenset(option.lstrip("-") for group in groups if group & given for option in group)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(str(path), "", f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(str(path), "", f"not TOML: {error}") from error


def _flags(fields: dict[str, Any], where: str, parser: argparse.ArgumentParser, overruled: frozenset[str]) -> list[str]:
    known = {option.lstrip("-") for action in parser._actions for option in action.option_strings if option.startswith("--")}
    words: list[str] = []
    for name, value in fields.items():
        if name not in known or name in ("config", "help"):
            expected = ", ".join(sorted(known - {"config", "help"}))
            raise InputError(where, name, f"unknown field; expected one of {expected}")
        if name in overruled:
            continue
        if value is True:
            words.append(f"--{name}")
        elif value is False:
            words += [NEGATED[name]] if name in NEGATED else []
        elif isinstance(value, list):
            words += [f"--{name}", *(str(item) for item in value)]
        elif isinstance(value, (str, int, float)):
            words += [f"--{name}", str(value)]
        else:
            raise InputError(where, name, f"expected a string, a number, true, false or a list, got {value!r:.40}")
    return words
