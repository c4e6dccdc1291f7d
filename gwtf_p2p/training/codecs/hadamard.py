"""4 bits per value after a Hadamard rotation of each block of 64: about 0.13 of float32's bytes. For activations.

A few channels of a transformer's residual stream are far larger than the others, and would leave 4 bits nothing for the rest
of their block. An orthonormal rotation spreads them over the block, whose values then look normally distributed, and are
rounded to -7 to 7 times a scale (QuaRot, arXiv 2404.00456, rotates weights and activations so; arXiv 2506.01352 the boundaries
of a pipeline). The rotation is Sylvester's matrix with fixed signs in front, so that a block of equal values is spread too.

    bytes = scales (bfloat16, one per block) . values (4 bits; the first half of a block is in the low ones)
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from gwtf_p2p.protocol.wire.tensor_formats import TensorFormat
from gwtf_p2p.training.codecs.blockwise import blocks_of, cut_of, in_range, parts_of, scales_for, spans
from gwtf_p2p.training.codecs.codec import Buffer, check_finite, root_mean_square
from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes

_TOP = 7.0
_ZERO = 8
"""What stands for 0 in the 4 bits. `encode` writes 1 to 15; a 0 is read as -8, which is as finite as the others."""


@cache
def rotation(size: int, device: str) -> Tensor:
    """An orthonormal `size` x `size` matrix, `size` a power of two; its transpose turns back."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    index = torch.arange(size)
    signs = 1.0 - 2.0 * ((index * index + 3 * index) // 4 % 2)
    scale = size**-0.5
    return (signs.unsqueeze(1) * matrix).mul_(scale).to(device)


class Int4Codec:
    """Rotated, scaled, rounded to 15 levels, two values to the byte."""

    def __init__(self, form: TensorFormat) -> None:
        self._form = form

    @property
    def form(self) -> TensorFormat:
        return self._form

    def encode(self, tensor: Tensor) -> memoryview:
        form, blocks = self._form, blocks_of(tensor, self._form)
        out = torch.empty(form.encoded_bytes(tensor.numel()), dtype=torch.uint8, device=blocks.device)
        cut, half = cut_of(tensor.numel(), form), form.block_values // 2
        scales, packed = out[:cut].view(torch.bfloat16), out[cut:].view(-1, half)
        turn = rotation(form.block_values, str(blocks.device))
        for span in spans(len(blocks), blocks.device):
            turned = blocks[span] @ turn
            largest = turned.abs().amax(dim=1)
            check_finite(in_range(largest, _TOP), form)
            scales[span], inverse = scales_for(largest, _TOP)
            levels = turned.mul_(inverse.unsqueeze(1)).round_().add_(_ZERO).to(torch.uint8)
            packed[span] = levels[:, :half] | (levels[:, half:] << 4)
        return tensor_bytes(out)

    def check(self, buffer: Buffer, values: int) -> float:
        return root_mean_square(parts_of(buffer, values, self._form)[0])

    def decode(self, buffer: Buffer, shape: tuple[int, ...], device: str | torch.device = "cpu") -> Tensor:
        count, half = math.prod(shape), self._form.block_values // 2
        scales, raw = (part.to(device) for part in parts_of(buffer, count, self._form))
        packed, back = raw.view(-1, half), rotation(self._form.block_values, str(raw.device)).T
        blocks = torch.empty((len(packed), self._form.block_values), dtype=torch.float32, device=raw.device)
        for span in spans(len(packed), raw.device):
            levels = torch.empty_like(blocks[span])
            levels[:, :half] = packed[span] & 0x0F
            levels[:, half:] = packed[span] >> 4
            torch.mm(levels.sub_(_ZERO).mul_(scales[span].unsqueeze(1)), back, out=blocks[span])
        return blocks.view(-1)[:count].view(shape)
