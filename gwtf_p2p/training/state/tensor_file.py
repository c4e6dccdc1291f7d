"""Writes and reads tensors as safetensors does, one after the other: the library makes a second copy of them all in memory.

A file is eight bytes (the header's length, little-endian), the header (a JSON map of names, types, shapes and places, padded
with spaces to a multiple of eight), and the tensors' bytes. Equal tensors give equal files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes
from gwtf_p2p.training.state.stored import Described, FileSource, Place, StoredState, described

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
TYPES = {name: dtype for dtype, name in DTYPES.items()}
ALIGNED = 8
MOST_HEADER_BYTES = 100_000_000
"""As the library has it."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """All are read when it returns, but not yet on the disk (`flush`). Raises OSError."""
    with path.open("wb") as file:
        what = described(tensors)
        file.write(_header(what))
        for name in _in_order(what):
            file.write(tensor_bytes(tensors[name]))


def flush(path: Path) -> None:
    """Return when all of a file is on the disk. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def stored_tensors(path: Path) -> StoredState:
    """What a file holds, read when it is asked for. Raises OSError; KeyError, ValueError, TypeError if it is no such file."""
    file = FileSource(path)
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"{path}: a header of {length} bytes")
    header = json.loads(file.read(8, length))
    header.pop("__metadata__", None)
    return StoredState({
        name: Place(Described(TYPES[each["dtype"]], tuple(each["shape"])), file, 8 + length + each["data_offsets"][0])
        for name, each in header.items()
    })  # fmt: skip


def _in_order(what: Mapping[str, Described]) -> list[str]:
    """Those of larger elements first, so that each begins at a multiple of its own."""
    return sorted(what, key=lambda name: (-what[name].dtype.itemsize, name))


def _header(what: Mapping[str, Described]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in _in_order(what):
        tensor = what[name]
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    return len(text).to_bytes(8, "little") + text
