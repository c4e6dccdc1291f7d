"""The model's config: what of it is about the model, how it is spelled for all releases, and which fields are known.

Rules.
- A config is a plain dict with `model_type`; no hub is needed. A wrong one raises InputError with one line that names the
  field, before any weight is allocated. A field that the installed `transformers` does not know is refused: it takes any in
  silence.
- What is not about the model (quantisation of the weights it was saved with, generation settings, who saved it) is left out of
  what is published, and said.
- Rotary settings are published as top-level `rope_theta` and `rope_scaling`, which all releases from 4.48 on read; the nested
  `rope_parameters` of release 5 say nothing to older ones. A table per layer type has no such spelling and stays nested, as
  does one of which the installed release would make something else.
- A run may name the kernel of attention (`attention_implementation`); what a config says of it is left out.
- Dropout and router noise are off, whatever the config says: a microbatch that is computed again on another peer has to give
  the same numbers. The experts' balance loss over all layers (`output_router_logits`) is no part of the loss; a run may
  add each layer's own (`balance`). Weights are float32, whatever its dtype; the executor's `torch_dtype` says how to compute.
"""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, get_args

import huggingface_hub.errors
import transformers
from transformers import AutoConfig, GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.run_parts import ATTENTION, AttentionImplementation

logger = logging.getLogger(__name__)

RUN_RECORD = "run record"
# Older hubs have no strict dataclasses, and their configs raise ValueError.
_STRICT_ERROR: type[Exception] = getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)
CONFIG_ERRORS = (
    ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError, IndexError, AssertionError, ImportError,
    _STRICT_ERROR,
)  # fmt: skip

# Written into hub configs by the library that saved them, or by trainers; they say nothing about the model that is built here.
_NOT_THE_MODEL = frozenset((
    "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path",
    "use_cache", "output_attentions", "output_hidden_states", "return_dict", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "_experts_implementation_internal", "quantization_config", "compression_config",
    "pruned_heads", "problem_type", "id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params",
    "torchscript", "use_bfloat16", "tokenizer_class", "prefix", "unsloth_version", "unsloth_fixed", "is_encoder_decoder",
    "chunk_size_feed_forward", "output_router_logits", "gradient_checkpointing", "_commit_hash", "_sliding_window_pattern",
    "transformers.js_config", "tf_legacy_loss",
))  # fmt: skip
_QUIET = frozenset((
    "architectures", "id2label", "label2id", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache",
    "model_type",
))  # fmt: skip
_SIZES = (
    "vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
)  # fmt: skip
_PART = "partial_rotary_factor"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def supported_families() -> tuple[str, ...]:
    """Every `model_type` that the installed `transformers` has a causal language model for."""
    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def family_of(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> str:
    """The `model_type` of a config dict. Raises InputError for one that has no causal language model."""
    name, known = model_config.get("model_type"), supported_families()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3)
        hint = f" ({', '.join(near)}?)" if near else ""
        expected = f"expected one of the {len(known)} causal language models of transformers {transformers.__version__}{hint}"
        raise InputError(where, "model_config.model_type", f"{expected}, got {name!r}")
    return str(name)


def published_config(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> dict[str, Any]:
    """The config dict as it goes into a run record; what was left out is logged. Raises InputError for an unknown family."""
    family_of(model_config, where)
    kept = _about_the_model(model_config)
    for name in sorted(model_config.keys() - kept.keys() - _QUIET):
        if model_config[name] != _default(str(model_config["model_type"])).to_dict().get(name):
            logger.warning("model_config.%s is left out of the run: it is not about the model", name)
    return _rotary_for_all_releases(kept)


def vocabulary_of(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> int:
    """How many token ids the model knows. Raises InputError."""
    return int(load_config(model_config, where).get_text_config(decoder=True).vocab_size)


def load_config(model_config: Mapping[str, Any], where: str = RUN_RECORD) -> PretrainedConfig:
    """The `transformers` config of a plain dict, with dropout off. Raises InputError that names the field."""
    family = family_of(model_config, where)
    kept = copy.deepcopy(_about_the_model(model_config))  # the library fills in nested tables
    kept.pop("model_type", None)
    default = _default(family)
    _check_sizes(kept, default, where)
    for name in _TOKENS:
        if not _is_composite(default):
            kept.setdefault(name, None)  # the defaults are those of the family's first tokenizer, not of this run's
    try:
        config = AutoConfig.for_model(family, **kept)
    except CONFIG_ERRORS as error:
        raise InputError(where, "model_config", one_line(error)) from error
    _check_known(kept, config, default, where)
    _choose_attention(config, model_config.get(ATTENTION), where)
    if getattr(config, "add_cross_attention", False):
        raise InputError(where, "model_config.add_cross_attention", "expected false: a decoder alone is trained here")
    _without_chance(config, kept)
    return config


def _choose_attention(config: PretrainedConfig, kernel: Any, where: str) -> None:
    """By name, where one is named. Raises InputError for a name that the library might fetch code for."""
    if kernel is None:
        return
    known = tuple(name for name in get_args(AttentionImplementation) if name != "auto")
    if kernel not in known:
        raise InputError(where, "attention_implementation", f"expected {' or '.join(known)}, got {kernel!r:.40}")
    config._attn_implementation = kernel


def one_line(error: BaseException) -> str:
    """The last line of what a library says about a config."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"expected a config that transformers can build ({type(error).__name__}: {lines[-1] if lines else ''})"


def _about_the_model(model_config: Mapping[str, Any]) -> dict[str, Any]:
    default = _default(str(model_config["model_type"]))
    of_generation: Any = GenerationConfig  # it has no annotations
    generation = of_generation().to_dict().keys() - default.to_dict().keys() - set(_TOKENS)
    return {name: _inner(value) for name, value in model_config.items() if name not in _NOT_THE_MODEL | generation}


def _inner(value: Any) -> Any:
    """Of a config inside a config (`text_config`), too, only what is about the model."""
    if isinstance(value, Mapping):
        named = "model_type" in value
        return {name: _inner(each) for name, each in value.items() if not (named and name in _NOT_THE_MODEL)}
    return value


def _rotary_for_all_releases(config: dict[str, Any]) -> dict[str, Any]:
    table = config.get("rope_parameters")
    if not isinstance(table, Mapping) or any(isinstance(value, Mapping) for value in table.values()):
        return config
    flat = {name: value for name, value in config.items() if name != "rope_parameters"}
    scaling = dict(table)
    if "rope_theta" in scaling:
        flat.setdefault("rope_theta", scaling.pop("rope_theta"))
    part = scaling.pop(_PART, None)
    if scaling.get("rope_type", "default") != "default":
        flat.setdefault("rope_scaling", scaling)
    spellings = [{}] if part is None else [{_PART: part}, {"rotary_pct": part}]
    same = [{**flat, **spelling} for spelling in spellings if _rotary_of({**flat, **spelling}) == _rotary_of(config)]
    return same[0] if same else config


def _rotary_of(model_config: Mapping[str, Any]) -> Any:
    """The rotary settings that the installed `transformers` makes of a config dict."""
    kept = copy.deepcopy({name: value for name, value in model_config.items() if name != "model_type"})
    try:
        config = AutoConfig.for_model(str(model_config["model_type"]), **kept)
    except CONFIG_ERRORS:
        return None
    if hasattr(config, "rope_parameters"):
        return config.rope_parameters
    return getattr(config, "rope_theta", None), getattr(config, _PART, None), getattr(config, "rope_scaling", None)


@lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


@lru_cache(maxsize=256)
def _default(family: str) -> PretrainedConfig:
    try:
        default: PretrainedConfig = AutoConfig.for_model(family)
    except CONFIG_ERRORS:  # a config class whose own defaults do not fit each other
        default = PretrainedConfig()
    return default


def _is_composite(config: PretrainedConfig) -> bool:
    return config.get_text_config(decoder=True) is not config


def _check_sizes(fields: Mapping[str, Any], default: PretrainedConfig, where: str) -> None:
    """Sizes have to be stated and to fit: `transformers` would fill in those of a model with billions of weights."""
    if _is_composite(default):
        return
    plain, native = default.to_dict(), default.attribute_map
    general = {value: name for name, value in native.items()}
    values: dict[str, int] = {}
    for size in _SIZES:
        name = native.get(size, size)
        if not isinstance(plain.get(name), int):
            continue
        value = fields.get(name, fields.get(general.get(name, name)))
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            got = "nothing" if value is None else repr(value)
            raise InputError(where, f"model_config.{name}", f"expected a whole number above 0, got {got}")
        values[size] = value
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    if heads is None or hidden is None:
        return
    own_head_size = any("head_dim" in name and value for name, value in {**plain, **fields}.items() if name != "head_dim")
    if hidden % heads and not own_head_size and not fields.get("head_dim"):
        name = native.get("hidden_size", "hidden_size")
        raise InputError(where, f"model_config.{name}", f"expected a multiple of the {heads} heads, got {hidden}")
    groups = fields.get("num_key_value_heads") or heads
    if not isinstance(groups, int) or groups < 1 or heads % groups:
        raise InputError(where, "model_config.num_key_value_heads", f"expected a divisor of the {heads} heads, got {groups!r}")


def _check_known(fields: Mapping[str, Any], config: PretrainedConfig, default: PretrainedConfig, where: str) -> None:
    """A field that the config class neither declares nor consumes is left over as an attribute, which nothing reads."""
    declared = {*default.to_dict(), *default.attribute_map, *getattr(type(config), "__dataclass_fields__", {}), *_TOKENS}
    for name in fields:
        taken = name == _PART and (getattr(config, "rope_parameters", None) or {}).get(_PART) == fields[name]
        if name not in declared and name in vars(config) and not name.startswith("rope_") and not taken:
            near = difflib.get_close_matches(name, sorted(declared), n=1, cutoff=0.85)
            kind = f"unknown field of {config.model_type} in transformers {transformers.__version__}"
            hint = f", expected {near[0]}" if near else ""
            raise InputError(where, f"model_config.{name}", f"{kind}{hint}")


def _without_chance(config: PretrainedConfig, stated: Mapping[str, Any]) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _without_chance(value, stated.get(name) or {})
        elif isinstance(value, float) and value and any(word in name for word in ("drop", "jitter")):
            if stated.get(name):
                _warn_once(f"model_config.{name}: {value} is ignored, this program trains without dropout or noise")
            setattr(config, name, 0.0)
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False
