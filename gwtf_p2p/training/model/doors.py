"""The library's own forward, entered and left at the doors of the decoder layers.

Nobody writes a forward here: every peer runs the model's own, so masks, rotary tables, per-layer types, scaling and
soft-capping are the library's. What a *door* does, which stands in front of every decoder layer, depends on the pass:

    embed   every door notes the side inputs, the first one the hidden state; every layer hands its input through; the last
            door ends the forward
    layers  doors before the own layers hand through; the first own door puts in what came over the wire; after the last own
            layer the forward ends
    head    every layer hands through, the last one returns what came back; the library goes on to norm and head

*Side inputs* are arguments of layers, beside the hidden state, that depend on the tokens (per-layer embeddings, the token ids
themselves). The data peer notes them with their graph; they travel with the hidden state and their gradients come back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gwtf_p2p.protocol.errors import LocalProtocolError

Path = tuple[str | int, ...]
"""Where a tensor is among a layer's arguments: ("args", 0), ("kwargs", "hidden_states"), or deeper."""

Payload = tuple[Tensor, ...]
"""What crosses a boundary between parts: the hidden state, then the side inputs."""


@dataclass(frozen=True, slots=True)
class Structure:
    """How a model calls its decoder layers, as a trace has found out (`trace`).

    `layers` is the list's dotted name. `output` is None where a layer returns its hidden state alone, else the tuple that it
    returns, tensors as None; `output_at` is the hidden state's place in it.
    """

    layers: str
    hidden: Path
    output: tuple[Any, ...] | None
    output_at: int
    sides: tuple[Path, ...]

    def returned(self, hidden: Tensor) -> Any:
        """What a layer returns whose hidden state this is."""
        if self.output is None:
            return hidden
        return tuple(hidden if at == self.output_at else value for at, value in enumerate(self.output))

    def hidden_of(self, returned: Any) -> Tensor:
        hidden: Tensor = returned if self.output is None else returned[self.output_at]
        return hidden


SideKey = tuple[int, Path]
"""A side input at the door of one layer."""


class _Stop(BaseException):
    """Ends a forward; no library's `except Exception` may catch it."""


@dataclass
class _Pass:
    """One run through the model: which doors do what, and what they have noted."""

    kind: str
    payload: Payload = ()
    hidden: Tensor | None = None
    sides: dict[SideKey, Tensor] = field(default_factory=dict)
    result: Tensor | None = None


class Doors:
    """Doors at all decoder layers of a model. `own` is the range of layers that are really there.

    `side_places` says where in a payload each layer's side input is. The model's `forward` is not reentrant: one thread.
    """

    def __init__(self, model: PreTrainedModel, structure: Structure, own: range = range(0)) -> None:
        self._model, self._structure, self._own = model, structure, own
        self.side_places: Mapping[SideKey, int] = {}
        layers = model.get_submodule(structure.layers)
        assert isinstance(layers, nn.ModuleList)
        self._last = len(layers) - 1
        self._pass = _Pass("")
        for number, layer in enumerate(layers):
            layer.forward = self._door(number, layer.forward)

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> tuple[Tensor, dict[SideKey, Tensor]]:
        """The first layer's hidden state, and every layer's side inputs, with their graph."""
        done = self._run(_Pass("embed"), tokens_BT, positions_BT)
        assert done.hidden is not None
        return done.hidden, done.sides

    def layers(self, tokens_BT: Tensor, payload: Payload, positions_BT: Tensor | None = None) -> Tensor:
        """The hidden state after the own layers; `tokens_BT` only says how large the batch is. Positions that begin anew within
        a row are documents that do not see each other."""
        done = self._run(_Pass("layers", payload), tokens_BT, positions_BT)
        assert done.result is not None
        return done.result

    def head(self, tokens_BT: Tensor, hidden: Tensor) -> Tensor:
        """logits_BTV of what the last layer has put out."""
        self._pass = _Pass("head", hidden=hidden)
        logits_BTV: Tensor = self._model(input_ids=tokens_BT, use_cache=False).logits
        return logits_BTV

    def _run(self, started: _Pass, tokens_BT: Tensor, positions_BT: Tensor | None) -> _Pass:
        self._pass = started
        positions = {} if positions_BT is None else {"position_ids": positions_BT}
        try:
            self._model(input_ids=tokens_BT, use_cache=False, **positions)
        except _Stop:
            return started
        finally:
            self._pass = _Pass("")
        raise LocalProtocolError(f"{type(self._model).__name__}: its forward does not reach its decoder layers")

    def _door(self, number: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def door(*args: Any, **kwargs: Any) -> Any:
            inputs = {"args": args, "kwargs": kwargs}
            match self._pass.kind:
                case "embed":
                    return self._note(number, inputs)
                case "layers":
                    return self._compute(number, inputs, original)
                case "head" if number == self._last:
                    assert self._pass.hidden is not None
                    return self._structure.returned(self._pass.hidden)
                case _:
                    return self._structure.returned(take(inputs, self._structure.hidden))

        return door

    def _note(self, number: int, inputs: dict[str, Any]) -> Any:
        hidden = take(inputs, self._structure.hidden)
        if number == 0:
            self._pass.hidden = hidden
        for path in self._structure.sides:
            value = take(inputs, path)
            if isinstance(value, Tensor):
                self._pass.sides[number, path] = value
        if number == self._last:
            raise _Stop
        return self._structure.returned(hidden)

    def _compute(self, number: int, inputs: dict[str, Any], original: Callable[..., Any]) -> Any:
        structure, payload = self._structure, self._pass.payload
        if number < self._own.start:
            return structure.returned(take(inputs, structure.hidden))
        if number == self._own.start:
            inputs = put(inputs, structure.hidden, payload[0])
        for path in structure.sides:
            if (number, path) in self.side_places:
                inputs = put(inputs, path, payload[self.side_places[number, path]])
        returned = original(*inputs["args"], **inputs["kwargs"])
        if number == self._own.stop - 1:
            self._pass.result = structure.hidden_of(returned)
            raise _Stop
        return returned


def places_of(sides: Mapping[SideKey, Tensor]) -> tuple[dict[SideKey, int], tuple[Tensor, ...]]:
    """Where each side input is in a payload, and the different ones in order: one that many layers get travels once."""
    found: dict[int, int] = {}
    tensors: list[Tensor] = []
    places: dict[SideKey, int] = {}
    for key, tensor in sides.items():
        if id(tensor) not in found:
            found[id(tensor)] = len(tensors) + 1
            tensors.append(tensor)
        places[key] = found[id(tensor)]
    return places, tuple(tensors)


def take(value: Any, path: Path) -> Any:
    """What is at a path; None where nothing is."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def put(value: Any, path: Path, new: Tensor) -> Any:
    """A copy of nested arguments with one tensor exchanged."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        return {**value, key: put(value[key], rest, new)}
    items = list(value)
    items[int(key)] = put(items[int(key)], rest, new)
    return type(value)(items) if type(value) in (list, tuple) else tuple(items)


def tensors_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """All tensors of nested arguments, with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, (*path, key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for at, item in enumerate(value):
            yield from tensors_in(item, (*path, at))


def zeros_from(module: nn.Module) -> Callable[..., Any]:
    """A forward for a module whose weights are not here: zeros of the shapes that its twin on the meta device computes.

    What comes out of it never reaches a result: it stands where an embedding would, before the layers that hand through.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        device = next((t.device for _, t in tensors_in([args, kwargs])), torch.device("cpu"))
        with torch.no_grad():
            out = module(*_mapped(args, lambda t: t.to("meta")), **_mapped(kwargs, lambda t: t.to("meta")))
        return _mapped(out, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=device))

    return forward


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        changed = copy.copy(value)  # keeps the kind: the library's outputs are dicts of their own
        for key in value:
            changed[key] = _mapped(value[key], change)
        return changed
    return value


def document_positions(tokens_BT: Tensor, end_token: int) -> Tensor:
    """positions_BT, int64: 0 at the beginning of a window and behind every `end_token`, else one more than before."""
    begins_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    begins_BT[:, 0] = True
    begins_BT[:, 1:] = tokens_BT[:, :-1] == end_token
    steps_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    first_BT = torch.where(begins_BT, steps_T, 0).cummax(dim=1).values
    return steps_T - first_BT
