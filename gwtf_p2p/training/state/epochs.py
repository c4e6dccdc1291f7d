"""Which checkpoints of a folder belong to the epoch that the run is in.

When a stage loses weights that nobody has any more, the swarm goes back to a version that all stages have, and so begins a
new *epoch* (`protocol/commit/admission`). A checkpoint says in which one it was written. The file `epochs.json` of a
checkpoint folder says, for each epoch that was begun since, from which version: what was written earlier holds up to that
version, and later versions of it are of a branch that the run has left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gwtf_p2p.protocol.errors import InputError

FILE = "epochs.json"
OLDER_FILE = "histories.json"
"""Its name in folders that an older release has written; the content is the same."""

UNKNOWN = -1
"""Version from which an epoch began that this folder was not there for: nothing older holds."""


@dataclass(frozen=True, slots=True)
class Epochs:
    """`begun` maps an epoch to the version from which it began."""

    begun: Mapping[int, int] = field(default_factory=dict)

    @property
    def newest(self) -> int:
        return max(self.begun, default=0)

    def holds(self, epoch: int, version: int) -> bool:
        """Is a checkpoint of this version, written in this epoch, still right?"""
        return all(version <= since for later, since in self.begun.items() if later > epoch)

    def going_on(self, epoch: int, version: int) -> Epochs:
        """With an epoch that begins from this version; those between were missed."""
        missed = dict.fromkeys(range(self.newest + 1, epoch), UNKNOWN)
        return Epochs({**self.begun, **missed, epoch: version})


def read_epochs(root: Path) -> Epochs:
    """Of a checkpoint folder; without the file, or with a torn one, the run has never gone back."""
    try:
        path = root / FILE
        begun = json.loads((path if path.exists() else root / OLDER_FILE).read_bytes())
        return Epochs({int(epoch): int(version) for epoch, version in begun.items()})
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return Epochs()


def write_epochs(root: Path, epochs: Epochs) -> None:
    """By atomic rename. Raises InputError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        replace_file(root / FILE, json.dumps(dict(epochs.begun)).encode())
    except OSError as error:
        raise InputError(str(root), "", f"expected a writable checkpoint directory ({error.strerror or error})") from error


def replace_file(path: Path, content: bytes, draft: Path | None = None) -> None:
    """Write a file whole or not at all, on the disk when this returns. Raises OSError.

    `draft`: where it is written first, if somebody counts on that."""
    temporary = draft or path.with_name(f"{path.name}.{os.getpid()}.writing")
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
