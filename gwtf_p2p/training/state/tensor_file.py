"""Writes tensors as safetensors does, one after the other: the library first makes a second copy of them all in memory.

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

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32"}
ALIGNED = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Flushed to disk when it returns. Raises OSError."""
    with path.open("wb") as file:
        file.write(_header(tensors))
        for name in _in_order(tensors):
            file.write(tensor_bytes(tensors[name]))
        file.flush()
        os.fsync(file.fileno())


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Those of larger elements first, so that each begins at a multiple of its own."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in _in_order(tensors):
        tensor = tensors[name]
        described[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    return len(text).to_bytes(8, "little") + text
