"""A gradient that is asked for in pieces, so that nobody needs a second copy of it in memory.

Its tensors are float32 and known by name and shape; a piece is a run of values of one of them, in row-major order. What is
computed of one piece after the other (a norm, an optimizer step) takes the memory of `PIECE_VALUES` values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

PIECE_VALUES = 1 << 17
"""Half a megabyte: what an optimizer step reads and writes of one stays in a core's cache."""

Shapes = Mapping[str, tuple[int, ...]]


class Gradient(Protocol):
    """Tensors by name, in the order of `shapes`."""

    @property
    def shapes(self) -> Shapes: ...

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """Values `start` to `stop` of a tensor, flat, float32, on the CPU. They may be its own memory: do not write."""
        ...


@dataclass(frozen=True, slots=True)
class HeldGradient:
    """In memory, divided by `count` when it is asked for: with the sum of a part's gradients their mean, without a copy."""

    tensors: Mapping[str, Tensor]
    count: int = 1

    @property
    def shapes(self) -> Shapes:
        """See `Gradient`."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """See `Gradient`."""
        values = self.tensors[name].detach().reshape(-1)[start:stop]
        return (values / self.count if self.count != 1 else values).to("cpu", torch.float32)


def values_in(shape: tuple[int, ...]) -> int:
    """How many values a tensor of this shape has."""
    return math.prod(shape)


def spans(values: int, most: int = PIECE_VALUES) -> Iterator[tuple[int, int]]:
    """Cut so many values into pieces of at most `most`."""
    return ((start, min(values, start + most)) for start in range(0, values, most))


def whole(gradient: Gradient, name: str) -> Tensor:
    """One of the tensors, in fresh memory or the gradient's own."""
    shape = gradient.shapes[name]
    return gradient.piece(name, 0, values_in(shape)).reshape(shape)


def all_of(gradient: Gradient) -> dict[str, Tensor]:
    """All tensors, in memory."""
    return {name: whole(gradient, name) for name in gradient.shapes}
