"""The run file of `gwtf data --new_run FILE.toml`, and the models that the demo knows by name.

    run_id = "my-run"
    seed = 0
    stages = 3                              # or layer_split = [[0, 2], [2, 4]]
    model = { model_type = "llama", ... }   # a HF config dict, or a name: tiny-llama, tiny-gpt2, a config.json, a hub id
    wire = { activations = "int8", gradients = "int8", averages = "float32" }   # formats of what is sent; default float32

Everything else is optional and named as in the run record. A wrong field is refused with the file, the field and what was
expected; nothing is published before the whole file is right.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.codec import from_plain
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord, WireSpec

VOCABULARY = 257
"""Of the byte-level tokenizer: 256 bytes and the end of a document."""

MODELS: dict[str, dict[str, Any]] = {
    "tiny-llama": {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": 256,
    },
    "tiny-gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_positions": 1024,
        "n_embd": 128,
        "n_layer": 6,
        "n_head": 4,
        "bos_token_id": 256,
        "eos_token_id": 256,
    },
}

Section = TypeVar("Section", OptimizerSpec, WireSpec)

_OWN_FIELDS = {"model", "stages", "optimizer", "wire"}
OLDER_FIELDS = {"relays_per_stage": "peers_per_stage"}
"""Fields of older run files, and how they are called now."""

WIRE_DTYPE = "wire_dtype"
"""An older field: one format for activations and gradients alike."""

_INTERNAL = {"model_config", "sequence_number", "schema_version", "wire_version"}


def load_model(name: str, where: str) -> dict[str, Any]:
    """A config dict by name, from a JSON file, or from the hub. Raises InputError."""
    if name in MODELS:
        return dict(MODELS[name])
    path = Path(name)
    if path.suffix == ".json" or path.exists():
        try:
            config = json.loads((path / "config.json" if path.is_dir() else path).read_text())
        except (OSError, ValueError) as error:
            raise InputError(where, "model", f"expected a readable JSON config, {path}: {error}") from error
        if not isinstance(config, dict):
            raise InputError(where, "model", f"expected a JSON object in {path}")
        return config
    from transformers import AutoConfig

    try:
        return dict(AutoConfig.from_pretrained(name).to_diff_dict())
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(MODELS))
        reason = str(error).splitlines()[0][:120]
        raise InputError(where, "model", f"expected {known}, a config.json or a hub id; {name!r}: {reason}") from error


def read_run_file(path: Path) -> RunRecord:
    """Raises InputError that names the file and the field."""
    try:
        plain = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(str(path), "", f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(str(path), "", f"not TOML: {error}") from error
    return run_from_plain(plain, str(path))


def run_from_plain(plain: Mapping[str, Any], where: str) -> RunRecord:
    """A checked run record from the fields of a run file. Raises InputError."""
    from gwtf_p2p.training.data.tokenizer import load_tokenizer
    from gwtf_p2p.training.model.families import check_run, default_layer_split, layer_count

    plain = _with_wire({OLDER_FIELDS.get(name, name): value for name, value in plain.items()}, where)
    allowed = ({f.name for f in fields(RunRecord)} - _INTERNAL) | _OWN_FIELDS
    for name in plain:
        if name not in allowed:
            raise InputError(where, name, f"unknown field; expected one of {', '.join(sorted(allowed))}")
    model = plain.get("model", "tiny-llama")
    model_config = load_model(model, where) if isinstance(model, str) else _table(model, where, "model")
    values: dict[str, Any] = {k: v for k, v in plain.items() if k not in _OWN_FIELDS}
    if "layer_split" not in values:
        stages = _typed(int, plain.get("stages", 1), where, "stages")
        split = default_layer_split(layer_count(model_config, where), stages, where)
        values["layer_split"] = [list(part) for part in split]
    hints = get_type_hints(RunRecord)
    record: dict[str, Any] = {name: _typed(hints[name], value, where, name) for name, value in values.items()}
    for f in fields(RunRecord):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in record and f.name != "model_config":
            raise InputError(where, f.name, "expected, but missing")
    optimizer = _section(OptimizerSpec, plain.get("optimizer", {}), where, "optimizer")
    wire = _section(WireSpec, plain.get("wire", {}), where, "wire")
    run = RunRecord(model_config=model_config, optimizer=optimizer, wire=wire, **record)
    run.validate(where)
    check_run(run, load_tokenizer(run.tokenizer).vocabulary, where)
    return run


def _with_wire(plain: dict[str, Any], where: str) -> dict[str, Any]:
    """What `wire_dtype` says, as `wire` says it now. Raises InputError when both say something."""
    if WIRE_DTYPE not in plain:
        return plain
    if "wire" in plain:
        raise InputError(where, WIRE_DTYPE, "expected either wire_dtype or wire = { activations, gradients, averages }")
    dtype = plain.pop(WIRE_DTYPE)
    return {**plain, "wire": {"activations": dtype, "gradients": dtype}}


def _section(kind: type[Section], value: Any, where: str, section: str) -> Section:
    """A table of the file as the dataclass of its section. Raises InputError."""
    plain, hints = _table(value, where, section), get_type_hints(kind)
    for name in plain:
        if name not in hints:
            raise InputError(where, f"{section}.{name}", f"unknown field; expected one of {', '.join(sorted(hints))}")
    return kind(**{name: _typed(hints[name], value, where, f"{section}.{name}") for name, value in plain.items()})


def _table(value: Any, where: str, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(where, name, f"expected a table, got {value!r:.40}")
    return value


def _typed(kind: Any, value: Any, where: str, name: str) -> Any:
    try:
        return RunId(value) if kind is RunId and isinstance(value, str) else from_plain(kind, value, name)
    except RemoteProtocolError as error:
        raise InputError(where, name, str(error).partition(": ")[2] or str(error)) from error
