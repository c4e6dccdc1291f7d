"""Which checkpoints of a folder belong to the history that the run is in.

When a stage loses weights that nobody has any more, the swarm goes back to a version that all stages have, and so begins a
new *history* (`protocol/commit/admission`). A checkpoint says in which one it was written. The file `histories.json` of a
checkpoint folder says, for each history that was begun since, from which version: what was written earlier holds up to that
version, and later versions of it are of a branch that the run has left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gwtf_p2p.protocol.errors import InputError

FILE = "histories.json"
UNKNOWN = -1
"""Version from which a history began that this folder was not there for: nothing older holds."""


@dataclass(frozen=True, slots=True)
class Histories:
    """`begun` maps a history to the version from which it began."""

    begun: Mapping[int, int] = field(default_factory=dict)

    @property
    def newest(self) -> int:
        return max(self.begun, default=0)

    def holds(self, history: int, version: int) -> bool:
        """Is a checkpoint of this version, written in this history, still right?"""
        return all(version <= since for later, since in self.begun.items() if later > history)

    def going_on(self, history: int, version: int) -> Histories:
        """With a history that begins from this version; those between were missed."""
        missed = dict.fromkeys(range(self.newest + 1, history), UNKNOWN)
        return Histories({**self.begun, **missed, history: version})


def read_histories(root: Path) -> Histories:
    """Of a checkpoint folder; without the file, or with a torn one, the run has never gone back."""
    try:
        begun = json.loads((root / FILE).read_bytes())
        return Histories({int(history): int(version) for history, version in begun.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return Histories()


def write_histories(root: Path, histories: Histories) -> None:
    """By atomic rename. Raises InputError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        replace_file(root / FILE, json.dumps(dict(histories.begun)).encode())
    except OSError as error:
        raise InputError(str(root), "", f"expected a writable checkpoint directory ({error.strerror or error})") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, on the disk when this returns. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the renames themselves
    finally:
        os.close(folder)
