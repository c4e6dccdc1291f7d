"""The state of a stage that is on no disk any more, from those of its neighbours: CheckFree's rule (arXiv 2506.15461).

Each layer is the average of a layer of the stage before and one of the stage after, weighted by how much those stages learn:
CheckFree weights by the squared norm of a stage's last gradient, here it is the running mean of that which the optimizer keeps
anyway (second moments, variances; equal weights where there is none yet). A first or last stage has one neighbour, whose
layers it takes over. The optimizer's moments are averaged as the weights are, so that the first step is no larger than usual.

A stage of n layers beside one of m takes, for each of its layers, the one at the nearest place in the other (by the middle of
its share of the stage) whose tensors have the same names and shapes: a model may have layers of several kinds. Where data peers
hold no weights the first stage has the embedding and the last one the head: they are like nothing in a neighbour, so that stage
is not rebuilt, and to its neighbour it gives its layers alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.training.compute.eight_bits import decode
from gwtf_p2p.training.compute.updates import CODES, ROOT_CODES, ROOT_SCALE, ROW_VARIANCE, SCALES, SECOND_MOMENT, VARIANCE
from gwtf_p2p.training.state.tensors import STEP, WEIGHTS

State = Mapping[str, Tensor]
Layers = dict[int, dict[str, Tensor]]
"""By the layer's number; the names of its tensors are without it."""

IN_EIGHT_BITS = (*CODES, *SCALES)
"""Codes and their scales go together: they are those of one neighbour."""

_NUMBER = re.compile(r"\.(\d+)\.")
"""The first number in a parameter's name is its layer's."""


def rebuilt_state(like: State, neighbours: Sequence[State]) -> dict[str, Tensor]:
    """A state with the names, shapes and types of `like`, of the neighbours' version.

    Raises RemoteProtocolError where they are of different versions, or a layer has no counterpart in any of them.
    """
    versions = {int(state[STEP]) for state in neighbours if STEP in state}
    if len(versions) != 1:
        raise RemoteProtocolError(f"state: {STEP}: expected neighbours of one version, got {sorted(versions)}")
    neighbours = [_of_layers(state) for state in neighbours]
    own, theirs = _layers(like), [_layers(state) for state in neighbours]
    learns = [_squared_gradient(state) for state in neighbours]
    rebuilt = {STEP: torch.tensor(versions.pop(), dtype=torch.int64)}
    for place, (number, layer) in enumerate(sorted(own.items())):
        at = (place + 0.5) / len(own)
        found = [(_counterpart(layer, at, other), share) for other, share in zip(theirs, learns, strict=True)]
        sources = [(source, share) for source, share in found if source is not None]
        if not sources:
            raise RemoteProtocolError(f"state: no layer of the neighbouring stages is like layer {number}")
        for name in layer:
            mean = sources[0][0][name].clone() if name.startswith(IN_EIGHT_BITS) else _mean([(s[name], w) for s, w in sources])
            rebuilt[_NUMBER.sub(f".{number}.", name, count=1)] = mean
    return rebuilt


def _of_layers(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name == STEP or _NUMBER.search(name)}


def _layers(state: State) -> Layers:
    """Raises RemoteProtocolError for a tensor that is of no layer."""
    found: Layers = {}
    for name, tensor in state.items():
        if name == STEP:
            continue
        number = _NUMBER.search(name)
        if number is None:
            raise RemoteProtocolError(f"state: {name}: it is of no layer, so it cannot be rebuilt")
        found.setdefault(int(number[1]), {})[_NUMBER.sub(".0.", name, count=1)] = tensor
    return found


def _counterpart(layer: State, at: float, other: Layers) -> State | None:
    """Of the layers of another stage that are of the same kind, the one nearest to this place (0 to 1); the first of two."""
    kind = _kind(layer)
    alike = [
        (abs((place + 0.5) / len(other) - at), place, candidate)
        for place, (_, candidate) in enumerate(sorted(other.items()))
        if _kind(candidate) == kind
    ]
    return min(alike, key=lambda each: each[:2])[2] if alike else None


def _kind(layer: State) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in layer.items()}


def _mean(sources: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Weighted; equal weights where all are 0. Whole numbers are the first's."""
    first = sources[0][0]
    if not first.is_floating_point():
        return first.clone()
    total = sum(share for _, share in sources)
    shares = [share / total if total > 0 else 1.0 / len(sources) for _, share in sources]
    mean = torch.zeros_like(first)
    for (tensor, _), share in zip(sources, shares, strict=True):
        mean += share * tensor
    return mean


def _squared_gradient(state: State) -> float:
    """The running mean of the squared norm of a stage's gradient, by its optimizer; 0.0 before the first step."""
    total = 0.0
    for name, tensor in state.items():
        if name.startswith(ROOT_CODES):
            scales = state[ROOT_SCALE + name.removeprefix(ROOT_CODES)]
            total += float(decode(tensor.reshape(-1), scales).double().square().sum())
        elif name.startswith((SECOND_MOMENT, VARIANCE)):
            total += float(tensor.double().sum())
        elif name.startswith(ROW_VARIANCE):  # means over the columns of a parameter
            columns = state[WEIGHTS + name.removeprefix(ROW_VARIANCE)].shape[-1]
            total += float(tensor.double().sum()) * columns
    return total if total > 0 and total < float("inf") else 0.0
