"""What a model does with its decoder layers, found out by running a small copy of it twice (`doors.Structure`).

Two batches of different tokens go through the whole small model; every layer notes its arguments and what it returns. The
hidden state is the argument that *is* (the same object) what the layer before has returned. An argument that needs a
gradient, or that differs between the two batches, carries content: it is a side input and has to travel. Refused by name:
layers that are called in another order than their list's or more than once (a looped model), something computed between two
layers, an argument that carries what another layer has computed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.model.config import RUN_RECORD
from gwtf_p2p.training.model.doors import Doors, Path, Structure, tensors_in
from gwtf_p2p.training.model.skeleton import decoder_layers

FIELD = "model_config.model_type"
SHOWN = 10
"""Calls of layers that a refusal lists."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a decoder layer."""

    layer: int
    inputs: dict[Path, Tensor]
    returned: Any


def trace(model: PreTrainedModel, batches: tuple[Tensor, Tensor], where: str = RUN_RECORD) -> Structure:
    """The structure of a small model with its weights. Raises InputError that says why it cannot be split."""
    name, layers = decoder_layers(model, where)
    first, second = (recorded(model, layers, tokens_BT) for tokens_BT in batches)
    kind = model.config.model_type
    order = [call.layer for call in first]
    if order != list(range(len(layers))):
        why = "a looped model" if len(order) > len(set(order)) else "not each once, in the order of their list"
        shown = ", ".join(str(layer) for layer in order[:SHOWN]) + (", ..." if len(order) > SHOWN else "")
        raise InputError(where, FIELD, f"{kind} cannot be split: its layers are called [{shown}]: {why}")
    hidden = _hidden_path(first, kind, where)
    output, output_at = _output_of(first[0], first[1].inputs[hidden], kind, where)
    content = {
        path: None
        for before, after in zip(first, second, strict=True)
        for path, tensor in before.inputs.items()
        if path != hidden and _has_content(tensor, after.inputs.get(path))
    }
    structure = Structure(name, hidden, output, output_at, tuple(content))
    _check_sides(model, structure, (batches[0], first), where)
    return structure


def recorded(model: PreTrainedModel, layers: nn.ModuleList, tokens_BT: Tensor) -> list[Call]:
    """All calls of a small model's layers while it computes a batch."""
    calls: list[Call] = []

    def recording(number: int, original: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs = dict(tensors_in({"args": args, "kwargs": kwargs}))
            returned = original(*args, **kwargs)
            calls.append(Call(number, inputs, returned))
            return returned

        return forward

    try:
        for number, layer in enumerate(layers):
            layer.forward = recording(number, layer.forward)
        with torch.enable_grad():
            model(input_ids=tokens_BT, use_cache=False)
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
    return calls


def _hidden_path(calls: list[Call], kind: str, where: str) -> Path:
    """The argument that is, in every layer, what the layer before has returned."""
    found: set[Path] | None = None
    for before, after in itertools.pairwise(calls):
        returned = {id(tensor) for _, tensor in tensors_in(before.returned)}
        here = {path for path, tensor in after.inputs.items() if id(tensor) in returned}
        if not here:
            text = f"{kind} cannot be split: something is computed between its layers {before.layer} and {after.layer}"
            raise InputError(where, FIELD, text)
        found = here if found is None else found & here
    if not found:
        raise InputError(where, FIELD, f"{kind} cannot be split: no argument of its layers is always the hidden state")
    if len(found) > 1:
        names = ", ".join(sorted(spelled(path) for path in found))
        raise InputError(where, FIELD, f"{kind} cannot be split: its layers hand on more than a hidden state: {names}")
    return found.pop()


def _output_of(call: Call, hidden: Tensor, kind: str, where: str) -> tuple[tuple[Any, ...] | None, int]:
    returned = call.returned
    if isinstance(returned, Tensor):
        return None, 0
    if not isinstance(returned, (tuple, list)):
        raise InputError(where, FIELD, f"{kind} cannot be split: its layers return a {type(returned).__name__}")
    at = next(at for at, value in enumerate(returned) if value is hidden)
    return tuple(None if any(True for _ in tensors_in(value)) else value for value in returned), at


def _has_content(one: Tensor, other: Tensor | None) -> bool:
    return one.requires_grad or other is None or one.shape != other.shape or not torch.equal(one, other)


def _check_sides(model: PreTrainedModel, structure: Structure, seen: tuple[Tensor, list[Call]], where: str) -> None:
    """A side input has to be there without any layer computed, and equal: else a layer has made it."""
    tokens_BT, calls = seen
    layers = model.get_submodule(structure.layers)
    try:
        _, sides = Doors(model, structure).embed(tokens_BT)
    finally:
        for layer in layers.children():
            layer.__dict__.pop("forward", None)
    for call in calls:
        for path in structure.sides:
            real = call.inputs.get(path)
            alone = sides.get((call.layer, path))
            if real is not None and (alone is None or not torch.equal(real, alone)):
                text = f"argument {spelled(path)} of layer {call.layer} carries what an earlier layer has computed"
                raise InputError(where, FIELD, f"{model.config.model_type} cannot be split: {text}")


def spelled(path: Path) -> str:
    """A path for people."""
    return ".".join(str(key) for key in path[1:])
