"""States whose tensors lie on a disk: read one at a time, when they are asked for, and anew each time."""

from __future__ import annotations

import errno
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Bytes somewhere."""

    def read(self, at: int, size: int) -> bytearray:
        """So many of them, in fresh memory. Raises OSError."""
        ...


class FileSource:
    """A file that stays readable when it is removed. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, at: int, size: int) -> bytearray:
        """See `Source`."""
        return read_at(self._file, at, size)


def read_at(file: int, at: int, size: int) -> bytearray:
    """So many bytes of an open file, in fresh memory. Raises OSError."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        count = os.preadv(file, [left], at)
        if not count:
            raise OSError(errno.EIO, "the file ends early")
        left, at = left[count:], at + count
    return data


@dataclass(frozen=True, slots=True)
class Described:
    """What a tensor is, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What its values take."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies."""

    what: Described
    source: Source
    at: int


class StoredState(Mapping[str, Tensor]):
    """Tensors by name; a tensor that is asked for is fresh memory. Reading raises OSError when the disk fails."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = dict(places)

    def __getitem__(self, name: str) -> Tensor:
        place = self.places[name]
        what = place.what
        if not what.nbytes:
            return torch.empty(what.shape, dtype=what.dtype)
        return torch.frombuffer(place.source.read(place.at, what.nbytes), dtype=what.dtype).reshape(what.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Those of a state's tensors that have a new name, by it (`names`: the new one to the one before); none is read."""
    if isinstance(state, StoredState):
        return StoredState({new: state.places[old] for new, old in names.items()})
    return {new: state[old] for new, old in names.items()}


def described(state: Mapping[str, Tensor]) -> dict[str, Described]:
    """What its tensors are; none is read."""
    if isinstance(state, StoredState):
        return {name: place.what for name, place in state.places.items()}
    return {name: Described(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def one_behind_the_other(source: Source, what: Mapping[str, Described]) -> StoredState:
    """The state whose tensors lie so, in this order, from the beginning of a source."""
    places, at = {}, 0
    for name, each in what.items():
        places[name] = Place(each, source, at)
        at += each.nbytes
    return StoredState(places)
