"""The model in parts: the data peers' (stage 0) and one contiguous range of decoder layers per stage peer stage 1..S.

    tokens_BT -> embedding(s) -> x_BTH -> stage 1 -> ... -> stage S -> x_BTH -> norm, head -> logits_BTV -> loss

Shape suffixes: B microbatch size, T sequence length, H hidden size, V vocabulary.
A part owns only its own weights. They are float32 and named as in the whole model's `state_dict`, so that a checkpoint, a
gradient and a state download speak the names of `transformers`. Tied embeddings are one parameter under the embedding's name.
The residual stream between parts is float32; under bfloat16 compute the matrix products inside a part are rounded, not it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.model.families import (
    RUN_RECORD,
    Family,
    build_from_config,
    build_skeleton,
    check_layer_split,
    family_of,
    load_config,
)
from gwtf_p2p.training.model.initial_weights import initialise_unit, seeded


@dataclass(frozen=True, slots=True)
class PartSpec:
    """Which part of which model: `stage` 0 is the data peers', stage k holds the layers `layer_split[k - 1]`."""

    model_config: Mapping[str, Any]
    layer_split: tuple[tuple[int, int], ...]
    stage: int
    seed: int

    @property
    def hidden_size(self) -> int:
        """H, under either of the two names that configs use."""
        return int(self.model_config.get("hidden_size") or self.model_config["n_embd"])

    @classmethod
    def of(cls, run: RunRecord, stage: int) -> PartSpec:
        return cls(run.model_config, tuple((a, b) for a, b in run.layer_split), stage, run.seed)


class StagePart:
    """The decoder layers of one stage peer stage. `parameters` maps the whole model's names to this part's float32 weights."""

    def __init__(self, spec: PartSpec, layers: dict[str, nn.Module], rotary: nn.Module | None) -> None:
        self.spec = spec
        self.hidden_size = spec.hidden_size
        self._layers = layers
        self._rotary = rotary
        self.parameters = _named_parameters(layers)

    def to(self, device: torch.device) -> StagePart:
        """Move weights and buffers in place; returns self."""
        for module in (*self._layers.values(), *([self._rotary] if self._rotary is not None else [])):
            module.to(device)
        self.parameters = _named_parameters(self._layers)
        return self

    def forward(self, x_BTH: Tensor) -> Tensor:
        """x_BTH after this stage's layers."""
        position_ids_1T = torch.arange(x_BTH.shape[1], device=x_BTH.device).unsqueeze(0)
        arguments: dict[str, Any] = {}
        if self._rotary is not None:
            arguments = {"position_ids": position_ids_1T, "position_embeddings": self._rotary(x_BTH, position_ids_1T)}
        for layer in self._layers.values():
            output = layer(x_BTH, **arguments)
            # Before transformers 4.54 a decoder layer returned a tuple.
            x_BTH = output[0] if isinstance(output, tuple) else output
        return x_BTH


class DataPart:
    """Embedding(s), final norm and output head. `head_parameters` are those that the loss reaches from the last hop."""

    def __init__(self, spec: PartSpec, embeddings: dict[str, nn.Module], norm: tuple[str, nn.Module], head: nn.Module) -> None:
        self.spec = spec
        self.hidden_size = spec.hidden_size
        self._embeddings = embeddings
        self._norm = norm[1]
        self._head = head
        family = family_of(spec.model_config)
        self._units = {**embeddings, norm[0]: norm[1], family.head: head}
        self._name_parameters()

    def _name_parameters(self) -> None:
        self.parameters = _named_parameters(self._units)
        self.embedding_parameters = _named_parameters(self._embeddings)
        reached = {id(p) for module in (self._norm, self._head) for p in module.parameters()}
        self.head_parameters = {name: p for name, p in self.parameters.items() if id(p) in reached}

    def to(self, device: torch.device) -> DataPart:
        """Move weights in place, tied ones together; returns self."""
        tied = self._head.weight is next(iter(self._embeddings.values())).weight
        for module in self._units.values():
            module.to(device)
        if tied:
            self._head.weight = next(iter(self._embeddings.values())).weight
        self._name_parameters()
        return self

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """x_BTH, the input of stage 1: the token embedding, plus the position embedding where the family has one."""
        inputs = (tokens_BT, torch.arange(tokens_BT.shape[1], device=tokens_BT.device).unsqueeze(0))
        x_BTH: Tensor | None = None
        for module, indices in zip(self._embeddings.values(), inputs, strict=False):
            x_BTH = module(indices) if x_BTH is None else x_BTH + module(indices)
        assert x_BTH is not None
        return x_BTH

    def logits(self, x_BTH: Tensor) -> Tensor:
        """logits_BTV of what the last stage put out."""
        logits_BTV: Tensor = self._head(self._norm(x_BTH))
        return logits_BTV


def build_stage_part(spec: PartSpec, where: str = RUN_RECORD) -> StagePart:
    """The part of one stage peer stage on the CPU with its initial weights; memory for this part only. Raises InputError."""
    family, skeleton = _checked_skeleton(spec, where)
    if not 1 <= spec.stage <= len(spec.layer_split):
        raise InputError(where, "stage", f"expected a stage of layers, 1 to {len(spec.layer_split)}, got {spec.stage}")
    names = [f"{family.layers}.{i}" for i in range(*spec.layer_split[spec.stage - 1])]
    layers = {name: _materialise(skeleton, name, spec.seed) for name in names}
    rotary = None
    if family.rotary:
        # Its table is a buffer that no checkpoint holds and the meta device lost: built anew, on the CPU.
        rotary = type(skeleton.get_submodule(family.rotary))(config=skeleton.config)
    return StagePart(spec, layers, rotary)


def build_data_part(spec: PartSpec, where: str = RUN_RECORD) -> DataPart:
    """The data peers' part (stage 0) on the CPU with its initial weights; memory for this part only. Raises InputError."""
    family, skeleton = _checked_skeleton(spec, where)
    if spec.stage != 0:
        raise InputError(where, "stage", f"expected 0, the data peers' stage, got {spec.stage}")
    embeddings = {name: _materialise(skeleton, name, spec.seed) for name in family.embeddings}
    norm = (family.norm, _materialise(skeleton, family.norm, spec.seed))
    if skeleton.config.tie_word_embeddings:
        head = skeleton.get_submodule(family.head)
        head.weight = next(iter(embeddings.values())).weight
    else:
        head = _materialise(skeleton, family.head, spec.seed)
    return DataPart(spec, embeddings, norm, head.train())


def build_whole_model(model_config: Mapping[str, Any], seed: int, where: str = RUN_RECORD) -> PreTrainedModel:
    """The unsplit `AutoModelForCausalLM` on the CPU in float32, with the run's initial weights: the control of every part."""
    family, config = family_of(model_config, where), load_config(model_config, where)
    build_skeleton(config, where)  # a wrong config is named before memory is taken
    with seeded(seed, "construction"):  # its draws are overwritten below; it must not move the global RNG
        model = build_from_config(config)
    tied = bool(config.tie_word_embeddings)
    for name in unit_names(family, config):
        if not (tied and name == family.head):
            initialise_unit(model.get_submodule(name), name, seed, model)
    model.train()
    return model


def unit_names(family: Family, config: PretrainedConfig) -> tuple[str, ...]:
    """Dotted names of all units of a model: embedding(s), layers, norm, head."""
    layers = tuple(f"{family.layers}.{i}" for i in range(int(config.num_hidden_layers)))
    return (*family.embeddings, *layers, family.norm, family.head)


def parameter_shapes(spec: PartSpec, where: str = RUN_RECORD) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a part's parameters, without memory for them: 4 bytes each, times 4 with gradient and AdamW."""
    family, skeleton = _checked_skeleton(spec, where)
    if spec.stage == 0:
        names: tuple[str, ...] = (*family.embeddings, family.norm, family.head)
    else:
        names = tuple(f"{family.layers}.{i}" for i in range(*spec.layer_split[spec.stage - 1]))
    units = {name: skeleton.get_submodule(name) for name in names}
    shapes = {name: tuple(p.shape) for name, p in _named_parameters(units).items()}
    if skeleton.config.tie_word_embeddings:
        shapes.pop(f"{family.head}.weight", None)
    return shapes


def _checked_skeleton(spec: PartSpec, where: str) -> tuple[Family, PreTrainedModel]:
    family, config = family_of(spec.model_config, where), load_config(spec.model_config, where)
    check_layer_split(spec.layer_split, int(config.num_hidden_layers), where)
    return family, build_skeleton(config, where)


def _materialise(skeleton: PreTrainedModel, name: str, seed: int) -> nn.Module:
    """A unit with memory and its initial weights, on the CPU."""
    unit = skeleton.get_submodule(name)
    if any(True for _ in unit.buffers()):
        # Older layers keep their causal mask as a buffer: only the constructor can fill it.
        with seeded(seed, "construction"):
            unit = type(unit)(copy.copy(skeleton.config), layer_idx=int(name.rsplit(".", 1)[1]))
    else:
        unit = unit.to_empty(device="cpu")
    initialise_unit(unit, name, seed, skeleton)
    return unit.train()


def _named_parameters(units: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Whole-model names to parameters; a tied parameter appears once, under the first unit that has it."""
    seen: set[int] = set()
    named: dict[str, nn.Parameter] = {}
    for unit_name, unit in units.items():
        for name, parameter in unit.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                named[f"{unit_name}.{name}"] = parameter
    return named
