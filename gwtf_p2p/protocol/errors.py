"""Whose fault is it? The three kinds of error that the protocol knows (the distinction is h11's).

- `InputError`: the user's mistake in a file or on the command line. Printed as one line, exit code 2, never a traceback.
- `RemoteProtocolError`: a peer's misbehaviour. Expected in a swarm of strangers, so it is handled where it is caught.
  `OtherWireVersion` is one that nobody is to blame for: a peer of an older or newer program.
- `LocalProtocolError`: our bug. It is raised and carries the story of the entity that went wrong.
"""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input of a user: where it stands, which field, and what was expected instead."""

    def __init__(self, where: str, field: str, expected: str) -> None:
        self.where, self.field, self.expected = where, field, expected
        super().__init__(f"{where}: {field}: {expected}" if field else f"{where}: {expected}")


class RemoteProtocolError(Exception):
    """A peer sent something that the protocol does not allow."""


class OtherWireVersion(RemoteProtocolError):
    """A record that peers of another wire version write: what it says is not known here, but why is. Exit code 5."""

    exit_code = 5

    def __init__(self, what: str, ours: int, theirs: object) -> None:
        self.ours, self.theirs = ours, theirs
        super().__init__(f"{what}: wire_version: this peer speaks {ours}, the record says {theirs!r:.20}")


class LocalProtocolError(Exception):
    """An illegal transition in our own state machines, with what led to it."""

    def __init__(self, what: str, story: Sequence[str] = ()) -> None:
        self.story = tuple(story)
        super().__init__("\n  ".join([what, *self.story]))
