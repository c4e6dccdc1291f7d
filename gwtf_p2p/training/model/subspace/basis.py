"""The basis of a run: k orthonormal directions of the residual stream, from the seed alone.

It is drawn and made orthonormal in float64 and then rounded, so machines that round otherwise have the same float32 numbers but
for a rare last bit, which is as far as initial weights of different machines may be apart, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.model.config import RUN_RECORD
from gwtf_p2p.training.model.skeleton import seeded

FIELD = "boundary.subspace"


def dimensions(width: int, factor: int, where: str = RUN_RECORD) -> int:
    """k: so many coefficients stand for `width` values of a token. Raises InputError where that is none."""
    if factor > width:
        raise InputError(where, FIELD, f"expected at most the model's width of {width}, got {factor}")
    return -(-width // factor)


def basis(width: int, count: int, seed: int) -> Tensor:
    """U_dk, float32, whose columns are orthonormal."""
    with seeded(seed, "subspace"):
        drawn = torch.randn(width, count, dtype=torch.float64)
    orthonormal, upper = torch.linalg.qr(drawn)
    # A factorisation is free in its signs; these are those of Gram and Schmidt.
    basis_dk: Tensor = (orthonormal * torch.sign(torch.diagonal(upper))).float().contiguous()
    return basis_dk


def in_span(tensor: Tensor, basis_dk: Tensor, axis: int = -1) -> Tensor:
    """The part of a tensor that lies in the span along an axis of size d."""
    moved = tensor.movedim(axis, -1)
    return ((moved @ basis_dk) @ basis_dk.T).movedim(-1, axis)


def outside(tensor_BTd: Tensor, basis_dk: Tensor) -> float:
    """Norm of what is outside the span."""
    return float((tensor_BTd - in_span(tensor_BTd, basis_dk)).double().norm())
