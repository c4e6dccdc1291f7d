"""Bytes that a peer needs again soon and does not hold in memory: a file without a name, gone with its last reader.

What lies there is an average until it is committed, a state that is downloaded, one that is given to others. It is read within
seconds, mostly out of the system's cache of the disk, and gone before most of it is ever written to the disk. A disk that has
no room is no failure: then it is memory after all.
"""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes
from gwtf_p2p.training.compute.values import Shapes, values_in
from gwtf_p2p.training.state.stored import read_at

logger = logging.getLogger(__name__)

USUAL = Path("/var/tmp")
"""On a disk, where `/tmp` is often memory."""

FLOAT_BYTES = 4


def scratch_folder(*wished: Path | None) -> Path:
    """The first of these that is given, else what the system has for temporary files on a disk (`TMPDIR` first)."""
    given = next((folder for folder in wished if folder is not None), None)
    if given is not None:
        return given
    usual = "TMPDIR" not in os.environ and USUAL.is_dir() and os.access(USUAL, os.W_OK)
    return USUAL if usual else Path(tempfile.gettempdir())


class Scratch:
    """So many bytes, in a nameless file of a folder; in memory where the folder has no room for them, or is None. Several
    threads may read and write at once."""

    def __init__(self, size: int, folder: Path | None) -> None:
        self.size = size
        self._file = _nameless(size, folder) if folder is not None and size else None
        self._memory = bytearray(size if self._file is None else 0)
        if self._file is not None:
            weakref.finalize(self, os.close, self._file)

    @property
    def is_in_memory(self) -> bool:
        """There was no room on the disk."""
        return self._file is None

    def write(self, at: int, data: memoryview | bytes) -> None:
        """Raises OSError when the disk fails."""
        left = memoryview(data).cast("B")
        if self._file is None:
            self._memory[at : at + len(left)] = left
            return
        while left:
            written = os.pwrite(self._file, left, at)
            left, at = left[written:], at + written

    def read(self, at: int, size: int) -> bytearray:
        """So many bytes, in fresh memory. Raises OSError when the disk fails, or has lost what was written."""
        if self._file is None:
            return self._memory[at : at + size]
        return read_at(self._file, at, size)


class ScratchGradient:
    """A `values.Gradient` in a scratch: its tensors one behind the other. Every value has to be written before it is read."""

    def __init__(self, shapes: Shapes, folder: Path | None) -> None:
        self.shapes = dict(shapes)
        self._at, total = _places({name: FLOAT_BYTES * values_in(shape) for name, shape in self.shapes.items()})
        self.scratch = Scratch(total, folder)

    def put(self, name: str, start: int, values: Tensor) -> None:
        """Write values of a tensor from `start` on. Raises OSError."""
        self.scratch.write(self._at[name] + FLOAT_BYTES * start, tensor_bytes(values.float()))

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """See `values.Gradient`; fresh memory. Raises OSError."""
        if stop <= start:
            return torch.empty(0)
        data = self.scratch.read(self._at[name] + FLOAT_BYTES * start, FLOAT_BYTES * (stop - start))
        return torch.frombuffer(data, dtype=torch.float32)


def _places(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    at, places = 0, {}
    for name, size in sizes.items():
        places[name] = at
        at += size
    return places, at


def _nameless(size: int, folder: Path) -> int | None:
    """A file of this size whose blocks are there, or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return os.dup(file.fileno())
    except OSError as error:
        logger.warning("%s: %s; %.0f MB are held in memory instead", folder, error.strerror or error, size / 1e6)
        return None
