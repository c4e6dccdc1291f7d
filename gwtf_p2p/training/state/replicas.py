"""The copy of a stage that one peer has, as something to be averaged with the other copies (`protocol/replica_sync`): its mean
gradient, its weights and what its optimizer keeps, in float32, under the names of `tensors`, gradients under `gradient/`.

Moments are averaged as they are, variances too: the mean of what is never negative is never negative. A member may say
otherwise, within the bound of its size: what is negative then is taken for 0, by all alike, as an update takes its root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gwtf_p2p.protocol.errors import LocalProtocolError
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.compute.updates import NEVER_NEGATIVE
from gwtf_p2p.training.compute.values import Gradient, HeldGradient, Shapes, spans
from gwtf_p2p.training.state.tensors import STEP, live_state

GRADIENT = "gradient/"


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy, in pieces: no value is copied before it is asked for, and none may change meanwhile."""

    gradient: Gradient
    state: Gradient

    @property
    def shapes(self) -> Shapes:
        """See `values.Gradient`."""
        return {f"{GRADIENT}{name}": shape for name, shape in self.gradient.shapes.items()} | dict(self.state.shapes)

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """See `values.Gradient`."""
        own = name.removeprefix(GRADIENT)
        return (self.state if own == name else self.gradient).piece(own, start, stop)


@dataclass(frozen=True, slots=True)
class GradientOf:
    """The gradient in an average of copies."""

    average: Gradient

    @property
    def shapes(self) -> Shapes:
        """See `values.Gradient`."""
        named = self.average.shapes.items()
        return {name.removeprefix(GRADIENT): shape for name, shape in named if name.startswith(GRADIENT)}

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """See `values.Gradient`."""
        return self.average.piece(f"{GRADIENT}{name}", start, stop)


def copy_of(gradient: Gradient, parameters: Mapping[str, nn.Parameter], optimizer: PartOptimizer) -> Copy:
    """The copy as it is now."""
    return Copy(gradient, HeldGradient(_tensors(parameters, optimizer)))


def take_over(average: Gradient, parameters: Mapping[str, nn.Parameter], optimizer: PartOptimizer) -> None:
    """Put the weights and moments of an average of copies in place of these. Raises LocalProtocolError, and changes nothing,
    when it is not one of this part's."""
    tensors = _tensors(parameters, optimizer)
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = {name: shape for name, shape in average.shapes.items() if not name.startswith(GRADIENT)}
    if found != expected:
        raise LocalProtocolError("average of copies: names or shapes are not this part's")
    with torch.no_grad():
        for name, tensor in tensors.items():
            flat = tensor.view(-1)
            for start, stop in spans(len(flat)):
                flat[start:stop].copy_(average.piece(name, start, stop))
            if name.startswith(NEVER_NEGATIVE):
                flat.clamp_(min=0)


def _tensors(parameters: Mapping[str, nn.Parameter], optimizer: PartOptimizer) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in live_state(parameters, optimizer).items() if name != STEP}
