"""The model in parts: the data peers' (stage 0) and one contiguous range of decoder layers per stage 1..S.

    tokens_BT -> embedding(s) -> payload -> stage 1 -> ... -> stage S -> payload -> norm, head -> logits_BTV -> loss

Shape suffixes: B microbatch size, T sequence length, V vocabulary. A payload is the hidden state and the side inputs; every
boundary has the same tensors with the same shapes (`boundary_of`), and so have their gradients. A stage hands on the side
inputs that it got. Thin data peers hold no weights: stage 1 has the embedding(s), and stage S norm, head and loss. Then token
ids and labels go out, labels travel with the payload, and a loss comes back (`RunRecord.boundary_after`).

A part owns only its own weights. They are float32 and named as in the whole model's `state_dict`, so that a checkpoint, a
gradient and a state download speak the names of `transformers`. Tied weights are one parameter under the first of its names.
The hidden state between parts is float32; under bfloat16 compute the matrix products inside a part are rounded, not it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import BoundaryTensor, RunRecord
from gwtf_p2p.protocol.wire.run_parts import COEFFICIENTS, HIDDEN, LABELS, TOKENS
from gwtf_p2p.training.model.adapters import add_adapters
from gwtf_p2p.training.model.balance import Balance
from gwtf_p2p.training.model.config import RUN_RECORD, load_config
from gwtf_p2p.training.model.doors import Doors, Payload, Structure, document_positions, places_of
from gwtf_p2p.training.model.initial_weights import initialise
from gwtf_p2p.training.model.materialise import move, occupy
from gwtf_p2p.training.model.parts.layer_split import LayerSplit, weighed_layer_split
from gwtf_p2p.training.model.parts.layer_split import check_layer_split as check_layer_split
from gwtf_p2p.training.model.parts.layer_split import default_layer_split as default_layer_split
from gwtf_p2p.training.model.parts.spec import PartSpec as PartSpec
from gwtf_p2p.training.model.parts.spec import positions_tensor
from gwtf_p2p.training.model.parts.thin import ThinDataPart
from gwtf_p2p.training.model.pretrained import PretrainedFiles, load_pretrained
from gwtf_p2p.training.model.skeleton import Unit, build_skeleton, decoder_layers, unit_parameters, units_of
from gwtf_p2p.training.model.structure import embedding_weights, stand_in_tokens, structure_of, whole_model
from gwtf_p2p.training.model.subspace.basis import dimensions
from gwtf_p2p.training.model.subspace.parametrised import Products, Subspace
from gwtf_p2p.training.model.trace import spelled

FROZEN = "(as drawn)"
"""Behind the name of a table that every peer of a subspace run has, besides what is trained of it."""


class _Part:
    """A model of which some weights are here. `parameters` maps the whole model's names to this part's trained weights.

    `model` is the library's, with doors; `boundaries` are what its payloads are made of.
    """

    def __init__(self, model: PreTrainedModel, doors: Doors, names: set[str], spec: PartSpec) -> None:
        self.model, self._doors, self.end_token = model, doors, spec.end_token
        own = {id(parameter) for name, parameter in model.named_parameters() if name in names}
        if spec.adapters.rank:
            own |= add_adapters(model, spec.adapters, own, spec.seed)
        self._own = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}
        self.parameters = {name: parameter for name, parameter in self._own.items() if parameter.requires_grad}
        vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
        self.boundaries = spec.boundaries(_boundary(model, doors, spec), vocabulary)
        self._subspace: Subspace | None = None
        if spec.subspace:
            layout = spec.layout(model)
            products = Products(model, layout, set(self.parameters), spec.seed)
            self._subspace = Subspace(products, doors)
            self._own = {name: each for name, each in self._own.items() if name not in products.trained}
            for name in layout.tables if not spec.holds_embedding else ():
                self._own[name] = model.get_parameter(name)
                self._own[name].requires_grad_(False)
            self.parameters |= products.trained
        self._tokens_BT = stand_in_tokens(model.config, spec.batch)

    def _move(self, device: torch.device) -> None:
        move(self.model, device, self._own)
        if self._subspace is not None:
            self._subspace.products.to(device)
        self._tokens_BT = self._tokens_BT.to(device)


class StagePart(_Part):
    """The decoder layers of one stage."""

    def __init__(self, model: PreTrainedModel, doors: Doors, names: set[str], spec: PartSpec, where: str = RUN_RECORD) -> None:
        """Raises InputError for a balance loss of a model that has none."""
        super().__init__(model, doors, names, spec)
        self._holds_embedding, self.holds_head = spec.holds_embedding, spec.holds_head
        own = range(*spec.layer_split[spec.stage - 1])
        self._balance = Balance(model, decoder_layers(model, where)[0], own, spec.balance, where) if spec.balance else None

    def balance_loss(self) -> Tensor | None:
        """What the forward that was just done adds to the loss here, a scalar with its graph; None where it is nothing."""
        return self._balance.taken() if self._balance is not None else None

    def to(self, device: torch.device) -> StagePart:
        """Move weights and buffers in place; returns self."""
        self._move(device)
        return self

    def forward(self, payload: Payload) -> Payload:
        """The payload after this stage's layers: a new hidden state, the same side inputs. Where the head is in this part the
        hidden state is whole."""
        positions_BT = payload[-1] if self.end_token >= 0 else None
        if self._subspace is not None:
            return self._in_subspace(self._subspace, payload, positions_BT)
        if self._holds_embedding:
            tokens_BT, *rest = payload
            hidden, sides = self._doors.embed(tokens_BT, positions_BT)
            payload = (hidden, *places_of(sides)[1], *rest)
        return (self._doors.layers(self._tokens_BT, payload, positions_BT), *payload[1:])

    def logits(self, hidden: Tensor) -> Tensor:
        """logits_BTV of the hidden state that `forward` gives, where the head is in this part."""
        return self._doors.head(self._tokens_BT, hidden)

    def labels(self, payload: Payload) -> Tensor:
        """labels_BT in what came from before or is handed on, of a run with thin data peers."""
        return payload[-2] if self.end_token >= 0 else payload[-1]

    def _in_subspace(self, subspace: Subspace, payload: Payload, positions_BT: Tensor | None) -> Payload:
        if self._holds_embedding:
            known_BTd = subspace.known(payload[0], positions_BT)
            subspace.products.multiply()
            hidden_BTd, _ = self._doors.embed(payload[0], positions_BT)
            rest = payload
        else:
            known_BTd = subspace.known(payload[1], positions_BT)
            hidden_BTd = subspace.hidden(payload[0], known_BTd)
            subspace.products.multiply()
            rest = payload[1:]
        hidden_BTd = self._doors.layers(self._tokens_BT, (hidden_BTd,), positions_BT)
        return (hidden_BTd if self.holds_head else subspace.coefficients(hidden_BTd, known_BTd), *rest)


class DataPart(_Part):
    """Embedding(s), final norm and output head, and whatever else is not a decoder layer."""

    def to(self, device: torch.device) -> DataPart:
        """Move weights and buffers in place, tied ones together; returns self."""
        self._move(device)
        return self

    def embed(self, tokens_BT: Tensor) -> Payload:
        """The payload of stage 1: what stands before the first layer, and all side inputs."""
        positions_BT = self._positions(tokens_BT)
        last = () if positions_BT is None else (positions_BT,)
        if self._subspace is not None:
            known_BTd = self._subspace.known(tokens_BT, positions_BT)
            self._subspace.products.multiply()
            hidden, _ = self._doors.embed(tokens_BT, positions_BT)
            return (self._subspace.coefficients(hidden, known_BTd), tokens_BT, *last)
        hidden, sides = self._doors.embed(tokens_BT, positions_BT)
        return (hidden, *places_of(sides)[1], *last)

    def logits(self, tokens_BT: Tensor, hidden: Tensor) -> Tensor:
        """logits_BTV of what the last stage put out; but in a subspace the tokens say only what the library asks of a batch."""
        if self._subspace is not None:
            hidden = self._subspace.hidden(hidden, self._subspace.known(tokens_BT, self._positions(tokens_BT)))
        return self._doors.head(tokens_BT, hidden)

    def _positions(self, tokens_BT: Tensor) -> Tensor | None:
        return None if self.end_token < 0 else document_positions(tokens_BT, self.end_token)


def build_stage_part(spec: PartSpec, where: str = RUN_RECORD) -> StagePart:
    """The part of one stage on the CPU with its initial weights; memory for this part only. Raises InputError."""
    return stage_part(load_config(spec.model_config, where), structure_of(spec.model_config, where), spec, where)


def build_data_part(spec: PartSpec, where: str = RUN_RECORD) -> DataPart | ThinDataPart:
    """The data peers' part (stage 0) on the CPU with its initial weights; memory for this part only. Raises InputError."""
    if spec.thin and not spec.stage:
        return ThinDataPart(spec)
    return data_part(load_config(spec.model_config, where), structure_of(spec.model_config, where), spec, where)


def stage_part(config: PretrainedConfig, structure: Structure, spec: PartSpec, where: str = RUN_RECORD) -> StagePart:
    """As `build_stage_part`, of a `transformers` config. Raises InputError."""
    if not 1 <= spec.stage <= len(spec.layer_split):
        raise InputError(where, "stage", f"expected a stage of layers, 1 to {len(spec.layer_split)}, got {spec.stage}")
    return StagePart(*_assemble(config, structure, spec, where), spec, where)


def data_part(config: PretrainedConfig, structure: Structure, spec: PartSpec, where: str = RUN_RECORD) -> DataPart:
    """As `build_data_part`, of a `transformers` config. Raises InputError."""
    if spec.stage != 0:
        raise InputError(where, "stage", f"expected 0, the data peers' stage, got {spec.stage}")
    return DataPart(*_assemble(config, structure, spec, where), spec)


def build_whole_model(model_config: Mapping[str, Any], seed: int, where: str = RUN_RECORD) -> PreTrainedModel:
    """The unsplit `AutoModelForCausalLM` on the CPU in float32, with the run's initial weights: the control of every part."""
    return whole_model(load_config(model_config, where), seed, where)


def parameter_shapes(spec: PartSpec, where: str = RUN_RECORD) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a part's parameters, without memory for them: 4 bytes each, times 4 with gradient and AdamW."""
    return {name: shape for name, (shape, is_trained) in all_shapes(spec, where).items() if is_trained}


def all_shapes(spec: PartSpec, where: str = RUN_RECORD) -> dict[str, tuple[tuple[int, ...], bool]]:
    """The same with what is not trained (the model under adapters): shape, and whether it is trained."""
    if spec.thin and not spec.stage:
        return {}
    model = build_skeleton(load_config(spec.model_config, where), where)
    names = {name for unit in _own_units(model, spec, where) for name in unit_parameters(model, unit)}
    own = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    if spec.adapters.rank:
        own |= add_adapters(model, spec.adapters, own, None)
    found = {name: (tuple(p.shape), p.requires_grad) for name, p in model.named_parameters() if id(p) in own}
    if not spec.subspace:
        return found
    layout = spec.layout(model, where)
    trained = {name: (layout.shape_of(name, shape), is_trained) for name, (shape, is_trained) in found.items()}
    return trained | {f"{name} {FROZEN}": (tuple(model.get_parameter(name).shape), False) for name in layout.tables}


def thin_layer_split(model_config: Mapping[str, Any], stages: int, where: str = RUN_RECORD) -> LayerSplit:
    """The split of a run with thin data peers: the last stage bears norm and head beside its layers, the first one the
    embedding, of which half counts, as nothing is computed with it. Raises InputError (`stages`)."""
    model = build_skeleton(load_config(model_config, where), where)
    name, layers = decoder_layers(model, where)
    before = embedding_weights(model.config, where)
    loads = [0.0] * len(layers)
    for unit in units_of(model, name):
        parameters = unit_parameters(model, unit)
        values = sum(parameter.numel() for parameter in parameters.values())
        at = unit.layer if unit.layer >= 0 else 0 if parameters.keys() & before else -1
        loads[at] += values / 2 if unit.layer < 0 and at == 0 else values
    return weighed_layer_split(loads, stages, where)


def weight_hashes(run: RunRecord, where: str = RUN_RECORD) -> tuple[str, ...]:
    """What the pre-trained weights of every part hash to; one part at a time is in memory. Raises InputError."""
    files = PretrainedFiles(run.weights, where)
    found = []
    for stage in range(run.stages + 1):
        model = build_skeleton(load_config(run.built_config, where), where)
        units = _own_units(model, PartSpec.of(run, stage), where)
        occupy(model, {name for unit in units for name in unit_parameters(model, unit)})
        found.append(load_pretrained(model, units, files, where))
    return tuple(found)


def boundary_of(spec: PartSpec, where: str = RUN_RECORD) -> tuple[BoundaryTensor, ...]:
    """What crosses every boundary between the parts of this run. Raises InputError."""
    model = build_skeleton(load_config(spec.model_config, where), where)
    occupy(model, set(), _layer_names(model))
    return _boundary(model, Doors(model, structure_of(spec.model_config, where)), spec)


def _assemble(
    config: PretrainedConfig, structure: Structure, spec: PartSpec, where: str
) -> tuple[PreTrainedModel, Doors, set[str]]:
    """The model with this part's weights and doors at its layers, and the names of what is here."""
    model = build_skeleton(config, where)
    units = _own_units(model, spec, where)
    names = {name for unit in units for name in unit_parameters(model, unit)}
    own = {unit.layer for unit in units}
    if spec.subspace and not spec.holds_embedding:
        tables = spec.layout(model, where).tables
        units += [unit for unit in units_of(model, structure.layers) if unit_parameters(model, unit).keys() & tables.keys()]
    here = {name for unit in units for name in unit_parameters(model, unit)}
    occupy(model, here, tuple(name for number, name in enumerate(_layer_names(model)) if number not in own))
    if spec.weights.source:
        found = load_pretrained(model, units, PretrainedFiles(spec.weights, where), where)
        if spec.weights_hash not in ("", found):
            expected = (
                f"expected weights of stage {spec.stage} that hash to {spec.weights_hash}, {spec.weights.source} has {found}"
            )
            raise InputError(where, "weights.source", expected)
    else:
        initialise(model, units, spec.seed)
    layers = range(*spec.layer_split[spec.stage - 1]) if spec.stage else range(0)
    return model, Doors(model, structure, layers), names


def _own_units(model: PreTrainedModel, spec: PartSpec, where: str) -> list[Unit]:
    """The units of a part of a skeleton; what lies outside the layers and is never trained (a table of positions that they are
    given) is in every part. Raises InputError for a split that cuts through shared weights."""
    name, layers = decoder_layers(model, where)
    check_layer_split(spec.layer_split, len(layers), where)
    stage_of = {layer: stage for stage, (start, end) in enumerate(spec.layer_split, 1) for layer in range(start, end)}
    before = embedding_weights(model.config, where) if spec.thin else frozenset[str]()
    own: list[Unit] = []
    holders: dict[int, tuple[int, str]] = {}
    for unit in units_of(model, name):
        stage = stage_of.get(unit.layer, 0)
        if spec.thin and not stage:
            stage = 1 if unit_parameters(model, unit).keys() & before else len(spec.layer_split)
        for parameter_name, parameter in unit_parameters(model, unit).items():
            first_stage, first_name = holders.setdefault(id(parameter), (stage, parameter_name))
            if first_stage != stage:
                shared = f"{first_name} of stage {first_stage} and {parameter_name} of stage {stage} are one weight"
                if {first_name, parameter_name} & before:
                    raise InputError(where, "thin_data_peers", f"expected false, or a single stage: {shared}")
                raise InputError(where, "layer_split", f"{model.config.model_type} cannot be split so: {shared}")
        if stage == spec.stage or (unit.layer < 0 and not any(p.requires_grad for p in unit_parameters(model, unit).values())):
            own.append(unit)
    return own


def _layer_names(model: PreTrainedModel) -> tuple[str, ...]:
    name, layers = decoder_layers(model)
    return tuple(f"{name}.{number}" for number in range(len(layers)))


def _boundary(model: PreTrainedModel, doors: Doors, spec: PartSpec) -> tuple[BoundaryTensor, ...]:
    """Shapes for a batch, from a run through the model without its layers; tells the doors where side inputs are."""
    with torch.no_grad():
        hidden, sides = doors.embed(stand_in_tokens(model.config, spec.batch))
    last = [BoundaryTensor(LABELS, spec.batch, is_integer=True)] if spec.thin else []
    last += [positions_tensor(spec)] if spec.end_token >= 0 else []
    if spec.subspace:
        shape = (*hidden.shape[:-1], dimensions(hidden.shape[-1], spec.subspace))
        return (BoundaryTensor(COEFFICIENTS, shape), BoundaryTensor(TOKENS, spec.batch, is_integer=True), *last)
    places, tensors = places_of(sides)
    doors.side_places = places
    names = {place: f"{spelled(path)}.{layer}" for (layer, path), place in reversed(places.items())}
    found = [BoundaryTensor(HIDDEN, tuple(hidden.shape))]
    for place, tensor in enumerate(tensors, 1):
        found.append(BoundaryTensor(names[place], tuple(tensor.shape), not tensor.is_floating_point()))
    return (*found, *last)
