"""Which weights write to the residual stream, found on a small copy of the model and verified in numbers.

Rules.
- A candidate is an axis, as long as the stream is wide, of a weight. All weights of the copy are moved at random first, since a
  norm's weights of one would hide that they stretch what passes.
- With every candidate kept in the span, what a layer adds has to lie in it: else the family cannot be kept there (a norm behind
  a writer, a gate) and is refused by its layer. A candidate is a writer if, left free alone, it lets something out.
- With the writers alone in the span and all other weights free, what every layer adds has to lie in it to `BOUND` of the
  stream's norm. That is the proof; how the writers were found does not matter to it.
- The same for the embedding: what moves between two settings of its weights has to lie in the span.
- Kinds of weights are named without numbers, so that what holds for a layer of the copy holds for the model's layers of its
  kind. A weight of a kind that the copy does not have is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.model.config import RUN_RECORD
from gwtf_p2p.training.model.doors import Structure
from gwtf_p2p.training.model.skeleton import decoder_layers, seeded
from gwtf_p2p.training.model.structure import probe, sample_tokens, whole_model
from gwtf_p2p.training.model.subspace.basis import FIELD, basis, in_span, outside
from gwtf_p2p.training.model.trace import recorded, spelled

BOUND = 1e-5
"""Of the stream's norm; float32 leaves about 1e-7 outside."""

SEED, _MOVED = 0, 0.05

Axis = tuple[str, int]
"""A kind of weight, and which of its axes."""


@dataclass(frozen=True, slots=True)
class Writers:
    """`layers` maps kinds of a layer's weights (`self_attn.o_proj.weight`) to the axis along which they write; `known` are all
    kinds that were seen. `tables` are the same of the embedding's, by the model's own names."""

    layers: Mapping[str, int]
    known: frozenset[str]
    tables: Mapping[str, int]


def writers_of(config: PretrainedConfig, where: str = RUN_RECORD) -> Writers:
    """Of a model that can be split. Raises InputError that says why it cannot be kept in a subspace."""
    return _remembered(_Asked(config.to_json_string(use_diff=False), config), where)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A config, known again by its text."""

    text: str
    config: PretrainedConfig = field(compare=False)


@lru_cache(maxsize=64)
def _remembered(asked: _Asked, where: str) -> Writers:
    structure, small = probe(asked.config, where)
    return find_writers(small, structure, where)


def find_writers(small: PretrainedConfig, structure: Structure, where: str = RUN_RECORD) -> Writers:
    """The same of a small copy. Raises InputError."""
    kind = small.model_type
    if structure.sides:
        named = ", ".join(sorted({spelled(path) for path in structure.sides}))
        raise _refusal(where, f"the layers of {kind} take {named} beside the hidden state, which would cross in full")
    model = whole_model(small, SEED, where)
    _move_all(model)
    probed = _Probed(model, structure, where)
    return Writers(probed.layer_writers(), probed.kinds, probed.table_writers())


def kind_of(name: str) -> str:
    """A weight's name without the numbers in it."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


class _Probed:
    """A small model whose weights are exchanged and that is run again and again."""

    def __init__(self, model: PreTrainedModel, structure: Structure, where: str) -> None:
        self._model, self._structure, self._where = model, structure, where
        self._tokens_BT = sample_tokens(model.config, 0)
        hidden = self._stream()[0][0]
        if hidden.dim() != 3:
            shape = " x ".join(str(size) for size in hidden.shape)
            raise _refusal(where, f"the hidden state of {model.config.model_type} is no single stream ({shape})")
        self.width = hidden.shape[-1]
        self._basis = basis(self.width, max(2, self.width // 4), SEED)
        prefix = f"{structure.layers}."
        named = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        self._inside = {name: p for name, p in named.items() if name.startswith(prefix)}
        self._beside = {name: p for name, p in named.items() if not name.startswith(prefix)}
        self._kind = {name: kind_of(name.removeprefix(prefix)) for name in self._inside}
        self.kinds = frozenset(self._kind.values())

    def layer_writers(self) -> dict[str, int]:
        """Raises InputError."""
        before = {name: p.detach().clone() for name, p in self._inside.items()}
        candidates = self._candidates(self._inside, self._kind)

        def let_out(held: Iterable[Axis]) -> list[float]:
            held = set(held)
            self._set(self._inside, {name: self._held(t, self._kind[name], held) for name, t in before.items()})
            return [outside(after - at, self._basis) / float(after.double().norm()) for at, after in self._stream()]

        self._require(let_out(candidates), "write to the residual stream what does not stay in a subspace")
        writers = {axis for axis in candidates if max(let_out(candidates - {axis})) > BOUND}
        self._require(let_out(writers), "write to the residual stream in a way that was not understood")
        self._set(self._inside, before)
        return self._one_axis_each(writers)

    def table_writers(self) -> dict[str, int]:
        """Raises InputError."""
        before = {name: p.detach().clone() for name, p in self._beside.items()}
        steps = {name: _noise(p, f"step of {name}") for name, p in before.items()}
        names = {name: name for name in before}
        candidates = self._candidates(self._beside, names)
        start = self._stream()[0][0]

        def let_out(held: Iterable[Axis]) -> list[float]:
            held = set(held)
            self._set(self._beside, {name: t + self._held(steps[name], name, held) for name, t in before.items()})
            now = self._stream()[0][0]
            return [outside(now - start, self._basis) / float(now.double().norm())]

        self._require(let_out(candidates), "get from their embedding what does not stay in a subspace")
        writers = {axis for axis in candidates if max(let_out(candidates - {axis})) > BOUND}
        self._require(let_out(writers) if writers else [], "get from their embedding what was not understood")
        self._set(self._beside, before)
        return self._one_axis_each(writers)

    def _candidates(self, weights: Mapping[str, nn.Parameter], kinds: Mapping[str, str]) -> set[Axis]:
        return {(kinds[n], axis) for n, p in weights.items() for axis, size in enumerate(p.shape) if size == self.width}

    def _held(self, tensor: Tensor, kind: str, held: set[Axis]) -> Tensor:
        for axis in range(tensor.dim()):
            if (kind, axis) in held and tensor.shape[axis] == self.width:
                tensor = in_span(tensor, self._basis, axis)
        return tensor

    def _one_axis_each(self, writers: set[Axis]) -> dict[str, int]:
        found = dict(sorted(writers))
        if len(found) < len(writers):
            raise _refusal(self._where, f"a weight of {self._model.config.model_type} writes to the residual stream twice")
        return found

    def _set(self, weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(values[name])

    def _stream(self) -> list[tuple[Tensor, Tensor]]:
        """The hidden state in front of every layer and behind it."""
        layers = decoder_layers(self._model, self._where)[1]
        calls = recorded(self._model, layers, self._tokens_BT)
        structure = self._structure
        pairs = []
        for call in calls:
            pairs.append((call.inputs[structure.hidden].detach(), structure.hidden_of(call.returned).detach()))
        return pairs

    def _require(self, let_out: list[float], what: str) -> None:
        if not let_out:
            raise _refusal(self._where, f"nothing that is trained is in front of the layers of {self._model.config.model_type}")
        worst = max(range(len(let_out)), key=lambda number: let_out[number])
        if not let_out[worst] <= BOUND:
            kind = self._model.config.model_type
            raise _refusal(self._where, f"the layers of {kind} {what} (layer {worst}: {let_out[worst]:.1e} of it is outside)")


def _move_all(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                parameter.add_(_noise(parameter, name))


def _noise(parameter: Tensor, name: str) -> Tensor:
    with seeded(SEED, name):
        return _MOVED * torch.randn(parameter.shape, dtype=parameter.dtype)


def _refusal(where: str, why: str) -> InputError:
    return InputError(where, FIELD, f"expected none: {why}")
