"""What a state consists of, as peers tell it each other: names, shapes, dtypes, and a hash for each chunk of its bytes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes

CHUNK_BYTES = 1 << 20

DTYPES = {"torch.float32": torch.float32, "torch.int64": torch.int64}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a state consists of. `tensors`: (name, dtype, shape), sorted; the bytes lie one after the other, cut into chunks."""

    version: int
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    hashes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Names the whole state: equal for bit-equal states."""
        return hashlib.sha256(json.dumps([self.version, self.tensors, self.hashes]).encode()).hexdigest()

    @property
    def state_bytes(self) -> int:
        """What all its tensors take, and no less than what its chunks bring."""
        tensors = sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in self.tensors)
        return max(tensors, (len(self.hashes) - 1) * CHUNK_BYTES)

    def to_plain(self) -> dict[str, Any]:
        tensors = [[name, dtype, list(shape)] for name, dtype, shape in self.tensors]
        return {"version": self.version, "tensors": tensors, "hashes": list(self.hashes)}

    @staticmethod
    def from_plain(plain: Mapping[str, object]) -> Manifest:
        """Raises RemoteProtocolError."""
        try:
            tensors = tuple((str(n), str(d), tuple(int(s) for s in shape)) for n, d, shape in plain["tensors"])  # type: ignore[attr-defined]
            hashes = tuple(str(h) for h in plain["hashes"])  # type: ignore[attr-defined]
            version = int(str(plain["version"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"manifest: {error!r}") from error
        if any(dtype not in DTYPES for _, dtype, _ in tensors):
            raise RemoteProtocolError("manifest: unknown dtype")
        if any(size < 0 for _, _, shape in tensors for size in shape):
            raise RemoteProtocolError("manifest: a negative dimension")
        return Manifest(version, tensors, hashes)


class Snapshot:
    """One version's bytes at a donor. It takes the tensors out of `state` one by one: there are never two copies of all."""

    def __init__(self, version: int, state: dict[str, Tensor]) -> None:
        tensors = tuple((name, str(state[name].dtype), tuple(state[name].shape)) for name in sorted(state))
        self.bytes = memoryview(bytearray(sum(tensor.nbytes for tensor in state.values())))
        at = 0
        for name, _, _ in tensors:
            data = tensor_bytes(state.pop(name))
            self.bytes[at : at + len(data)] = data
            at += len(data)
        self.bytes = self.bytes.toreadonly()
        hashes = tuple(hash_chunk(self.chunk(i)) for i in range(-(-len(self.bytes) // CHUNK_BYTES)))
        self.manifest = Manifest(version, tensors, hashes)
        self.last_asked = 0.0

    def chunk(self, index: int) -> memoryview:
        return self.bytes[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


def hash_chunk(chunk: memoryview) -> str:
    return hashlib.blake2b(chunk, digest_size=16).hexdigest()


def assemble(manifest: Manifest, chunks: Sequence[memoryview]) -> dict[str, Tensor]:
    """Raises RemoteProtocolError when the bytes do not fill the tensors exactly."""
    data = np.concatenate([np.frombuffer(chunk, np.uint8) for chunk in chunks]) if chunks else np.empty(0, np.uint8)
    state: dict[str, Tensor] = {}
    at = 0
    for name, dtype, shape in manifest.tensors:
        size = DTYPES[dtype].itemsize * int(np.prod(shape, dtype=np.int64))
        if at + size > len(data):
            raise RemoteProtocolError(f"state: {name}: the bytes end early")
        state[name] = torch.from_numpy(data[at : at + size].copy()).view(DTYPES[dtype]).reshape(shape)
        at += size
    if at != len(data):
        raise RemoteProtocolError(f"state: {len(data) - at} bytes too many")
    return state
