"""The gradient sum of one part, counted by microbatch id.

The sum is over counted microbatches, in float32, under the whole model's parameter names. The iteration's gradient is the mean
over the counted microbatches of all peers of the stage: each hands over its mean and its count as weight. Microbatches have
equal size, so the mean over microbatches is the mean over tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gwtf_p2p.protocol.errors import LocalProtocolError, RemoteProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.wire.commit_messages import NOT_FINITE
from gwtf_p2p.training.compute.values import Gradient, HeldGradient, spans, values_in


def squared_norm(gradient: Gradient) -> float:
    """Sum of squares over all tensors, in float64, rounded to float32 so that another order of summing gives the same."""
    total = 0.0
    for name, shape in gradient.shapes.items():
        for start, stop in spans(values_in(shape)):
            total += float(gradient.piece(name, start, stop).double().square().sum())
    rounded = float(torch.tensor(total, dtype=torch.float32))
    return rounded if math.isfinite(rounded) else NOT_FINITE


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every value is finite, with one answer from the device, unless a sum overflows."""
    tensors = list(tensors)
    if not tensors:
        return True
    sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors])
    return bool(torch.isfinite(sums).all()) or all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


class AlreadyCountedError(LocalProtocolError):
    """A microbatch's gradient would be added a second time."""


class NotHeldError(LocalProtocolError):
    """A step was asked for a microbatch whose earlier step this part does not hold."""


@dataclass(frozen=True, slots=True)
class GradientSum:
    """Sum of the gradients of `counted`, float32 by parameter name. The tensors are the accumulator's own: do not write."""

    tensors: Mapping[str, Tensor]
    counted: frozenset[MicrobatchId]

    @property
    def count(self) -> int:
        return len(self.counted)

    def mean(self) -> dict[str, Tensor]:
        """Fresh CPU tensors: the mean gradient of the counted microbatches, zeros if there are none.

        The average of these over the peers of the stage, weighted by `count`, is the iteration's gradient.
        """
        return {name: (tensor / max(self.count, 1)).cpu() for name, tensor in self.tensors.items()}

    def in_pieces(self) -> HeldGradient:
        """The same by sorted names, without a copy: divided piece by piece, for as long as the sum does not change."""
        return HeldGradient(dict(sorted(self.tensors.items())), max(self.count, 1))


class GradientAccumulator:
    """The sum, and the ids in it as they were counted. Adding a gradient and counting its id are two calls: a data peer's comes
    in two halves.

    `refused` are ids, counted or to be, whose gradient is not in the sum, or only a half of it: it is not finite."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._sums = {name: torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for name, p in parameters.items()}
        self.counted: dict[MicrobatchId, None] = {}
        self.refused: set[MicrobatchId] = set()

    def add(self, gradients: Mapping[str, Tensor], sign: int = 1) -> bool:
        """Add (or, with sign -1, subtract) gradients of some or all parameters; False, and none is, where one is not finite."""
        if not all_finite(gradients.values()):
            return False
        for name, gradient in gradients.items():
            self._sums[name].add_(gradient, alpha=sign)
        return True

    def count(self, microbatch: MicrobatchId) -> None:
        """Its gradient has been added, or refused."""
        self.counted[microbatch] = None

    def uncount(self, microbatch: MicrobatchId) -> None:
        """Its gradient has been subtracted, or was never added."""
        self.counted.pop(microbatch, None)
        self.refused.discard(microbatch)

    def clear(self) -> None:
        """An exactly empty sum."""
        self.counted.clear()
        self.refused.clear()
        self.clear_sums()

    def clear_sums(self) -> None:
        """Zeros, of whatever is counted."""
        for total in self._sums.values():
            total.zero_()

    def export(self) -> GradientSum:
        """The sum without a copy."""
        return GradientSum(dict(self._sums), frozenset(self.counted))

    def merge(self, other: GradientSum) -> None:
        """Add another sum. Raises AlreadyCountedError on a common microbatch, RemoteProtocolError on other names or shapes."""
        twice = self.counted.keys() & other.counted
        if twice:
            raise AlreadyCountedError(f"{min(twice)}: counted in both gradient sums")
        shapes = {name: total.shape for name, total in self._sums.items()}
        if {name: tensor.shape for name, tensor in other.tensors.items()} != shapes:
            raise RemoteProtocolError("gradient sum: parameter names or shapes are not this stage's")
        self.add({name: tensor.to(self._sums[name].device) for name, tensor in other.tensors.items()})
        self.counted |= dict.fromkeys(sorted(other.counted))
