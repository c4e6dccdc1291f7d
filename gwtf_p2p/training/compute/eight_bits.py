"""Floats in eight bits, in blocks: what AdamW keeps of moments where a run asks for 8-bit ones.

A block of 256 values is divided by a scale, so that its largest is the largest that the format has, and each value is kept as
`float8_e4m3fn` (a sign, four bits of exponent, three of mantissa: steps of 6 to 12 %, five decades in a block). Moments change
by less than such a step at a time, so a value is rounded up or down by chance, in proportion to where it lies between the two
(stochastic rounding): on average it moves as it should, where rounding to the nearest would leave it as it is for ever.

That chance is drawn from a hash of the step's number and of the value's place, and everything is made of single operations that
are rounded alike on all devices: peers with equal states and gradients have equal bits after it.

Why not a library's: bitsandbytes 0.50 and torchao 0.18 both step with torch 2.13 on a CPU. Nothing says that two machines get
the same bits of them, which a stage rests on: the one rounds in native code of each device, the other compiles its step on each
machine (57 s before the first one, where this was tried).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gwtf_p2p.protocol.wire.recipe import EIGHT_BIT_BLOCK

BLOCK_VALUES = EIGHT_BIT_BLOCK
LARGEST = 448.0
"""Of the format."""

LEAST = 2.0**-6
"""The format's smallest normal number: below it steps are as wide as at it. Of a block's largest 3.5e-5."""

_KEPT_BITS = 3
_LOST_BITS = 23 - _KEPT_BITS
_LOST = (1 << _LOST_BITS) - 1
NOT_A_NUMBER = 0x7F
"""The code of what is no number, without its sign."""


def blocks_of(values: int) -> int:
    """How many blocks hold so many values."""
    return -(-values // BLOCK_VALUES)


def chances(values: int, step: int, salt: int, device: torch.device) -> Tensor:
    """So many numbers of `_LOST_BITS` random bits (int32), the same for all that call with the same step and salt.

    Of at most so many values as a piece has: they are drawn again for each piece.
    """
    mixed = torch.arange(values, dtype=torch.int32, device=device)
    for number in (step, salt, 0x3C6EF35F):
        mixed = (mixed + _int32(number * 0x9E3779B1)) * _int32(0x85EBCA6B)
        mixed = mixed ^ ((mixed >> 15) & 0x1FFFF)
    return mixed & _LOST


def encode(values: Tensor, chance: Tensor, *, never_zero: bool) -> tuple[Tensor, Tensor]:
    """(codes, scales) of flat float32 values, which may be finite numbers only: a uint8 for each, a float32 for each block.

    With `never_zero` a value that is not 0 gets no code of 0, where what it divides would have no bound. Else one that is too
    small for the format is 0 or the least by chance, too.
    """
    padded = torch.nn.functional.pad(values, (0, -len(values) % BLOCK_VALUES)).view(-1, BLOCK_VALUES)
    scales = padded.abs().amax(dim=1) / LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    scaled = (padded / scales.unsqueeze(1)).view(-1)[: len(values)]
    away, chance = scaled.abs(), chance[: len(values)]
    from_zero = away > (0.0 if never_zero else chance.float() * (LEAST / (1 << _LOST_BITS)))
    least = torch.where(from_zero, torch.full_like(away, LEAST), torch.zeros_like(away))
    bits = (away.view(torch.int32) + chance) & ~_LOST
    rounded = torch.where(away < LEAST, least, bits.view(torch.float32).clamp(max=LARGEST))
    rounded = torch.copysign(rounded, scaled)
    return rounded.to(torch.float8_e4m3fn).view(torch.uint8), scales


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 values of flat codes."""
    values = codes.view(torch.float8_e4m3fn).float()
    padded = torch.nn.functional.pad(values, (0, -len(values) % BLOCK_VALUES)).view(-1, BLOCK_VALUES)
    return (padded * scales.unsqueeze(1)).view(-1)[: len(values)]


def all_numbers(codes: Tensor) -> bool:
    """Whether every code is that of a number."""
    return not bool(((codes & NOT_A_NUMBER) == NOT_A_NUMBER).any())


def _int32(number: int) -> int:
    """As it overflows in int32."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
