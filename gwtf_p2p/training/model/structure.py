"""What is known of a model before a part of it is built: its structure, its units, what crosses a boundary.

Everything here is computed once per config and process, and depends on the config alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from gwtf_p2p.protocol.errors import InputError, LocalProtocolError
from gwtf_p2p.protocol.wire.records import WeightsSpec
from gwtf_p2p.training.model.config import CONFIG_ERRORS, RUN_RECORD, load_config, one_line
from gwtf_p2p.training.model.doors import Doors, Structure
from gwtf_p2p.training.model.initial_weights import initialise
from gwtf_p2p.training.model.materialise import occupy
from gwtf_p2p.training.model.pretrained import PretrainedFiles, untrained_of
from gwtf_p2p.training.model.shrink import POSITIONS, small_copies
from gwtf_p2p.training.model.skeleton import build_skeleton, decoder_layers, unit_parameters, units_of
from gwtf_p2p.training.model.trace import trace

ROWS, LENGTH = 2, 16
MOST_WEIGHTS = 50_000_000
"""Of a copy that counts as small: its weights, gradients and activations fit beside anything."""

_REMEMBERED = 64


def structure_of(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> Structure:
    """How this model calls its layers. Raises InputError that says why it cannot be split."""
    return _remembered(json.dumps(dict(model_config), sort_keys=True, default=str), where)[0]


def small_config(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> PretrainedConfig:
    """The config of the small copy that was traced. Raises InputError."""
    return _remembered(json.dumps(dict(model_config), sort_keys=True, default=str), where)[1]


def probe(config: PretrainedConfig, where: str = RUN_RECORD) -> tuple[Structure, PretrainedConfig]:
    """The structure of a model, and the config of the small copy that shows it. Raises InputError that says why it has none."""
    reason = ""
    for small in small_copies(config):
        try:
            weights = sum(parameter.numel() for parameter in build_skeleton(small, where).parameters())
            if weights > MOST_WEIGHTS:
                reason = reason or f"its smallest copy has {weights} weights"
                continue
            model = whole_model(small, seed=0, where=where)
            with torch.no_grad():
                model(input_ids=sample_tokens(small, 0), use_cache=False)
        except (*CONFIG_ERRORS, InputError, LocalProtocolError, NotImplementedError) as error:
            reason = reason or one_line(error)
            continue
        return trace(model, (sample_tokens(small, 0), sample_tokens(small, 1)), where), small
    raise InputError(where, "model_config", f"no small copy of this model could be built and run: {reason}")


def layer_count(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> int:
    """Number of decoder layers of a config dict. Raises InputError."""
    return len(decoder_layers(build_skeleton(load_config(model_config, where), where), where)[1])


def whole_model(config: PretrainedConfig, seed: int, where: str = RUN_RECORD) -> PreTrainedModel:
    """The unsplit model of a `transformers` config, with the initial weights of a seed. Raises InputError."""
    model = build_skeleton(config, where)
    units = units_of(model, decoder_layers(model, where)[0])
    occupy(model, {name for unit in units for name in unit_parameters(model, unit)})
    initialise(model, units, seed)
    return model


def untrained_tensors(
    model_config: Mapping[str, Any], seed: int, weights: WeightsSpec, where: str = RUN_RECORD
) -> dict[str, Tensor]:
    """Tensors of the whole model's `state_dict` that are not trained, by name: buffers, and parameters without a gradient.

    They are those of the pre-trained model that the run started from, where it has them. Raises InputError.
    """
    model = build_skeleton(load_config(model_config, where), where)
    units = units_of(model, decoder_layers(model, where)[0])
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    fixed = [unit for unit in units if names & unit_parameters(model, unit).keys()]
    occupy(model, {name for unit in fixed for name in unit_parameters(model, unit)})
    initialise(model, fixed, seed)
    found = {name: t.detach().clone() for name, t in model.state_dict().items() if name in names or name not in parameters}
    if found and weights.source:
        skeleton = build_skeleton(model.config, where)
        found |= untrained_of(skeleton, set(found), PretrainedFiles(weights, where), where)
    return found


def embedding_weights(config: PretrainedConfig, where: str = RUN_RECORD) -> frozenset[str]:
    """Names of the weights beside the layers on which what the layers are given depends; the rest is norm and head.

    Told by a small copy of the model, whose modules beside the layers have the same names. Raises InputError.
    """
    return _embedding_weights(config.to_json_string(use_diff=False), config.model_type, where)


@lru_cache(maxsize=_REMEMBERED)
def _embedding_weights(text: str, model_type: str, where: str) -> frozenset[str]:
    structure, small = probe(load_config({**json.loads(text), "model_type": model_type}, where), where)
    model = whole_model(small, seed=0, where=where)
    prefix = f"{structure.layers}."
    hidden, sides = Doors(model, structure).embed(sample_tokens(small, 0))
    outputs = [tensor for tensor in (hidden, *sides.values()) if tensor.requires_grad]
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and not name.startswith(prefix)]
    if not outputs:
        return frozenset()
    found = torch.autograd.grad([tensor.sum() for tensor in outputs], [p for _, p in named], allow_unused=True)
    return frozenset(name for (name, _), gradient in zip(named, found, strict=True) if gradient is not None)


def sample_tokens(config: PretrainedConfig, number: int, rows: int = ROWS, length: int = LENGTH) -> Tensor:
    """tokens_BT of a small model by a number, the same everywhere; none of the ids that mean something."""
    usable = torch.tensor(_plain_tokens(config))
    steps = torch.arange(rows * length) * (7 + 4 * number) + torch.arange(rows * length) ** 2 * (3 + number) + 11 * number
    return usable[steps % len(usable)].view(rows, length)


def stand_in_tokens(config: PretrainedConfig, batch: tuple[int, int]) -> Tensor:
    """tokens_BT that say only how large a batch is, for a model whose embedding is elsewhere."""
    return torch.full(batch, _plain_tokens(config)[0])


def _plain_tokens(config: PretrainedConfig) -> list[int]:
    text = config.get_text_config(decoder=True)
    stated = [getattr(text, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    special = {token for value in stated for token in (value if isinstance(value, (list, tuple)) else [value])}
    return [token for token in range(min(int(text.vocab_size), POSITIONS)) if token not in special]


@lru_cache(maxsize=_REMEMBERED)
def _remembered(model_config: str, where: str) -> tuple[Structure, PretrainedConfig]:
    return probe(load_config(json.loads(model_config), where), where)
