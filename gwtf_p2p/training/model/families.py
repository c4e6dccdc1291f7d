"""Which Hugging Face models can be split, and where their parts are called what.

A family is a table row: the dotted names of the embedding(s), the list of decoder layers, the final norm, the output head and
the rotary embedding inside the `AutoModelForCausalLM` of that model type. Everything else (the layers' code, the initial
distribution, the meaning of every config field) is the installed `transformers`' own.

Rules.
- A config is a plain dict with `model_type`; no hub is needed. A wrong one raises InputError with one line that names the
  field, before any weight is allocated.
- Dropout is off, whatever the config says: a microbatch that is recomputed on another peer has to give the same numbers.
- The config's own dtype is ignored: weights are float32, and `torch_dtype` of the executor says how to compute.
- Attention is torch's scaled dot product with its causal flag, so no mask tensor is built. `transformers` >= 4.48.
"""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import huggingface_hub.errors
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import RunRecord

logger = logging.getLogger(__name__)

RUN_RECORD = "run record"
# Older hubs have no strict dataclasses, and their configs raise ValueError.
_STRICT_ERROR: type[Exception] = getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)
_CONFIG_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError, _STRICT_ERROR)
# Written into every hub config by the library that saved it; they say nothing about the model that is built here.
_IGNORED_FIELDS = ("dtype", "torch_dtype", "model_type", "architectures", "transformers_version", "_name_or_path", "use_cache")


@dataclass(frozen=True, slots=True)
class Family:
    """Names inside one kind of model, and config fields by purpose.

    `sizes`: whole numbers that a config has to state, hidden size and heads third and fifth; `transformers` would fill in those
    of a model with billions of weights. `dropouts`: the fields that are set to 0.
    """

    model_type: str
    embeddings: tuple[str, ...]
    layers: str
    norm: str
    head: str
    rotary: str
    sizes: tuple[str, ...]
    dropouts: tuple[str, ...]


FAMILIES = {
    "gpt2": Family(
        model_type="gpt2",
        embeddings=("transformer.wte", "transformer.wpe"),
        layers="transformer.h",
        norm="transformer.ln_f",
        head="lm_head",
        rotary="",
        sizes=("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
        dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    ),
    "llama": Family(
        model_type="llama",
        embeddings=("model.embed_tokens",),
        layers="model.layers",
        norm="model.norm",
        head="lm_head",
        rotary="model.rotary_emb",
        sizes=(
            "vocab_size",
            "max_position_embeddings",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ),
        dropouts=("attention_dropout",),
    ),
}


def family_of(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> Family:
    """The table row of a config dict. Raises InputError that names the supported families."""
    name = model_config.get("model_type")
    if name not in FAMILIES:
        raise InputError(where, "model_config.model_type", f"expected one of {', '.join(sorted(FAMILIES))}, got {name!r}")
    return FAMILIES[str(name)]


def load_config(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> PretrainedConfig:
    """The `transformers` config of a plain dict, with dropout off. Raises InputError that names the field."""
    family = family_of(model_config, where)
    kept = {name: value for name, value in model_config.items() if name not in _IGNORED_FIELDS}
    _check_fields(kept, family, where)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        kept.setdefault(name, None)  # the defaults are those of the family's first tokenizer, not of this run's
    try:
        config = AutoConfig.for_model(family.model_type, **kept)
    except _CONFIG_ERRORS as error:
        raise InputError(where, "model_config", _one_line(error)) from error
    if getattr(config, "add_cross_attention", False):
        raise InputError(where, "model_config.add_cross_attention", "expected false: a decoder alone is trained here")
    for name in family.dropouts:
        if kept.get(name):
            logger.warning("model_config.%s: %s is ignored, this program trains without dropout", name, kept[name])
        setattr(config, name, 0.0)
    return config


def build_from_config(config: PretrainedConfig) -> PreTrainedModel:
    """The whole model on torch's current device, as `transformers` builds and initialises it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    return model


def build_skeleton(config: PretrainedConfig, where: str = RUN_RECORD) -> PreTrainedModel:
    """The whole model on torch's meta device: every module, no memory for weights. Raises InputError."""
    try:
        with torch.device("meta"):
            return build_from_config(config)
    except _CONFIG_ERRORS as error:
        raise InputError(where, "model_config", _one_line(error)) from error


def layer_count(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> int:
    """Number of decoder layers of a config dict. Raises InputError."""
    return int(load_config(model_config, where).num_hidden_layers)


def default_layer_split(layers: int, stages: int, where: str = RUN_RECORD) -> tuple[tuple[int, int], ...]:
    """Contiguous ranges of decoder layers, as even as can be, the longer ones first. Raises InputError (`stages`)."""
    if not 1 <= stages <= layers:
        raise InputError(where, "stages", f"expected 1 to {layers} (the model's decoder layers), got {stages}")
    size, longer = divmod(layers, stages)
    starts = [k * size + min(k, longer) for k in range(stages + 1)]
    return tuple(itertools.pairwise(starts))


def check_layer_split(layer_split: tuple[tuple[int, int], ...], layers: int, where: str = RUN_RECORD) -> None:
    """The ranges have to cover layers 0 to `layers` in order, each with at least one layer. Raises InputError."""
    if len(layer_split) > layers:
        raise InputError(where, "layer_split", f"expected at most {layers} stages (decoder layers), got {len(layer_split)}")
    expected_start = 0
    for start, end in layer_split:
        if start != expected_start or end <= start:
            raise InputError(where, "layer_split", f"expected a range that starts at layer {expected_start}, got {start}-{end}")
        expected_start = end
    if expected_start != layers:
        raise InputError(where, "layer_split", f"expected ranges up to layer {layers}, got up to {expected_start}")


def check_run(run: RunRecord, vocabulary: int = 0, where: str = RUN_RECORD) -> None:
    """Everything about a run record that only the model can judge; `vocabulary` is the tokenizer's size, 0 if unknown.

    Raises InputError that names the field: family, config, layer split, sequence length, vocabulary.
    """
    config = load_config(run.model_config, where)
    build_skeleton(config, where)
    check_layer_split(tuple((a, b) for a, b in run.layer_split), int(config.num_hidden_layers), where)
    positions = int(config.max_position_embeddings)
    if run.sequence_length > positions:
        expected = f"expected at most the model's {positions} positions, got {run.sequence_length}"
        raise InputError(where, "sequence_length", expected)
    if vocabulary > config.vocab_size:
        raise InputError(
            where, "model_config.vocab_size", f"expected at least the tokenizer's {vocabulary}, got {config.vocab_size}"
        )


def _check_fields(fields: Mapping[str, Any], family: Family, where: str) -> None:
    """Sizes have to be stated and to fit; a field that looks like a known one's misspelling is refused.

    `transformers` takes any field in silence, so without this a typing error trains another model than was meant.
    """
    default = AutoConfig.for_model(family.model_type)
    known = {*default.to_dict(), *default.attribute_map}
    for name in fields:
        near = [] if name in known else difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.85)
        if near:
            raise InputError(where, f"model_config.{name}", f"unknown field, expected {near[0]}")
    other_names = {native: general for general, native in default.attribute_map.items()}
    values = [fields.get(name, fields.get(other_names.get(name, name))) for name in family.sizes]
    for name, value in zip(family.sizes, values, strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            got = "nothing" if value is None else repr(value)
            raise InputError(where, f"model_config.{name}", f"expected a whole number above 0, got {got}")
    hidden, heads, groups = values[2], values[4], fields.get("num_key_value_heads") or values[4]
    if hidden % heads and not fields.get("head_dim"):
        raise InputError(where, f"model_config.{family.sizes[2]}", f"expected a multiple of the {heads} heads, got {hidden}")
    if not isinstance(groups, int) or groups < 1 or heads % groups:
        raise InputError(where, "model_config.num_key_value_heads", f"expected a divisor of the {heads} heads, got {groups!r}")


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"expected a config that transformers can build ({type(error).__name__}: {lines[-1] if lines else ''})"
