"""What a state consists of, as peers tell it each other: names, shapes, dtypes, and a hash for each chunk of its bytes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.state.options import CHUNK_BYTES, LEAST_CHUNK_BYTES
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes
from gwtf_p2p.training.state.scratch import Scratch
from gwtf_p2p.training.state.stored import Described, StoredState, described, one_behind_the_other, renamed

DTYPES = {"torch.float32": torch.float32, "torch.int64": torch.int64, "torch.uint8": torch.uint8}


class StateGone(Exception):
    """A state has changed while it was read."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a state consists of. `tensors`: (name, dtype, shape), sorted; the bytes lie one after the other, cut into chunks of
    `chunk_bytes`."""

    version: int
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    hashes: tuple[str, ...]
    chunk_bytes: int = CHUNK_BYTES

    @property
    def digest(self) -> str:
        """Names the whole state and its cut: equal for bit-equal states that are cut alike."""
        what = [self.version, self.tensors, self.hashes, *([] if self.chunk_bytes == CHUNK_BYTES else [self.chunk_bytes])]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    @property
    def state_bytes(self) -> int:
        """What all its tensors take, and no less than what its chunks bring."""
        return max(self._tensor_bytes, (len(self.hashes) - 1) * self.chunk_bytes)

    def span_of(self, chunk: int) -> tuple[int, int]:
        """(where a chunk begins among the state's bytes, how many it has)."""
        at = chunk * self.chunk_bytes
        return at, max(0, min(self.chunk_bytes, self._tensor_bytes - at))

    def chunks_of(self, wanted: Callable[[str], bool]) -> frozenset[int]:
        """Those that bring the tensors with the names that are wanted."""
        found: set[int] = set()
        at = 0
        for name, dtype, shape in self.tensors:
            end = at + DTYPES[dtype].itemsize * math.prod(shape)
            if wanted(name):
                found.update(range(at // self.chunk_bytes, -(-end // self.chunk_bytes)))
            at = end
        return frozenset(found)

    @property
    def _tensor_bytes(self) -> int:
        return sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in self.tensors)

    def check(self) -> None:
        """Raises RemoteProtocolError where chunks and tensors are not of one size."""
        if len(self.hashes) != -(-self._tensor_bytes // self.chunk_bytes):
            raise RemoteProtocolError(f"manifest: {len(self.hashes)} chunks for {self._tensor_bytes} bytes")

    def state_in(self, scratch: Scratch) -> StoredState:
        """The state whose chunks have been written to this scratch, each at its place."""
        return one_behind_the_other(scratch, {name: Described(DTYPES[dtype], shape) for name, dtype, shape in self.tensors})

    def to_plain(self) -> dict[str, Any]:
        tensors = [[name, dtype, list(shape)] for name, dtype, shape in self.tensors]
        others = {} if self.chunk_bytes == CHUNK_BYTES else {"chunk_bytes": self.chunk_bytes}
        return {"version": self.version, "tensors": tensors, "hashes": list(self.hashes), **others}

    @staticmethod
    def from_plain(plain: Mapping[str, object]) -> Manifest:
        """Raises RemoteProtocolError."""
        try:
            tensors = tuple((str(n), str(d), tuple(int(s) for s in shape)) for n, d, shape in plain["tensors"])  # type: ignore[attr-defined]
            hashes = tuple(str(h) for h in plain["hashes"])  # type: ignore[attr-defined]
            version = int(str(plain["version"]))
            chunk_bytes = int(str(plain.get("chunk_bytes", CHUNK_BYTES)))
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"manifest: {error!r}") from error
        if any(dtype not in DTYPES for _, dtype, _ in tensors):
            raise RemoteProtocolError("manifest: unknown dtype")
        if any(size < 0 for _, _, shape in tensors for size in shape):
            raise RemoteProtocolError("manifest: a negative dimension")
        if not LEAST_CHUNK_BYTES <= chunk_bytes <= CHUNK_BYTES:
            raise RemoteProtocolError(f"manifest: chunk_bytes: expected {LEAST_CHUNK_BYTES} to {CHUNK_BYTES}")
        return Manifest(version, tensors, hashes, chunk_bytes)


class Snapshot:
    """One version's bytes at a donor: in a scratch, copied tensor by tensor out of `reading`, which is ended."""

    def __init__(self, reading: Reading, folder: Path | None, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Raises OSError when the disk fails, StateGone when the state has changed meanwhile."""
        state = renamed(reading.state, {name: name for name in sorted(reading.state)})
        what = described(state)
        self._scratch = Scratch(sum(each.nbytes for each in what.values()), folder)
        at = 0
        for name in what:
            data = tensor_bytes(state[name])
            self._scratch.write(at, data)
            at += len(data)
        if not reading.end():
            raise StateGone(f"version {reading.version} is gone: it was read for too long")
        self._chunk_bytes = chunk_bytes
        hashes = tuple(hash_chunk(self.chunk(i)) for i in range(-(-at // chunk_bytes)))
        tensors = tuple((name, str(each.dtype), each.shape) for name, each in what.items())
        self.manifest = Manifest(reading.version, tensors, hashes, chunk_bytes)
        self.last_asked = 0.0

    def chunk(self, index: int) -> memoryview:
        """Its bytes. Raises OSError."""
        at = index * self._chunk_bytes
        return memoryview(self._scratch.read(at, min(self._chunk_bytes, self._scratch.size - at)))


def hash_chunk(chunk: memoryview) -> str:
    return hashlib.blake2b(chunk, digest_size=16).hexdigest()
