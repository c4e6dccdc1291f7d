"""A run that the flags of a verb describe is checked as a run file is; what is wrong with it is said of the flag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gwtf_p2p.protocol.errors import InputError

COMMAND_LINE = "command line"
"""Where the fields of such a run stand, for `run_from_plain` and `check_settings`."""


@contextmanager
def naming_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """An InputError about a field of the command line's run names its flag: that of `flags`, or the one called like it."""
    try:
        yield
    except InputError as error:
        if error.where != COMMAND_LINE or not error.field:
            raise
        first, *rest = error.field.split(":")
        table = first.partition(".")[0].partition("[")[0]
        flag = flags.get(first) or flags.get(table) or f"--{table}"
        raise InputError(flag, ":".join(rest).strip(), error.expected) from error
