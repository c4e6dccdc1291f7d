"""A tensor's own bytes, and torch dtypes by name. How tensors travel between peers is `training/codecs`."""

from __future__ import annotations

import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import InputError

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(name: str, where: str, field: str = "") -> torch.dtype:
    """The torch dtype of a name. Raises InputError."""
    if name not in COMPUTE_DTYPES:
        raise InputError(where, field, f"expected {' or '.join(COMPUTE_DTYPES)}, got {name!r}")
    return COMPUTE_DTYPES[name]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row by row: a view of its memory if it lies contiguous on the CPU, else of a copy."""
    # numpy has no bfloat16, so every dtype goes through bytes.
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy()).cast("B")  # type: ignore[arg-type]
