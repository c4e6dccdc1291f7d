"""The torch device that a name stands for on this machine."""

from __future__ import annotations

import torch

from gwtf_p2p.protocol.errors import InputError


def resolve_device(name: str, where: str = "--device") -> torch.device:
    """The torch device of `cpu`, `cuda` or `cuda:N`. Raises InputError if this machine has none such."""
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cpu" and colon) or (colon and not index.isdigit()):
        raise InputError(where, "", f"expected cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(where, "", f"expected cpu or one of {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return torch.device(name)
