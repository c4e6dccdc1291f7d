"""The run file of `gwtf data --new_run FILE.toml`, and the models that the demo knows by name.

    run_id = "my-run"
    seed = 0
    stages = 3                              # or layer_split = [[0, 2], [2, 4]]
    model = { model_type = "llama", ... }   # a HF config dict, or a name: tiny-llama, tiny-gpt2, a config.json, a hub id
    wire = { activations = "int8", gradients = "int8", averages = "float32" }   # formats of what is sent; default float32
    thin_data_peers = true                  # embedding in the first stage, head in the last (default: data peers hold both)
    delay_optimizer_step = true             # the next iteration is computed while one is averaged, with weights one step older
    boundary = { subspace = 8 }             # another model: so many times fewer values cross for a token (default: all cross)
    dataset = "stdlib"                      # text:GLOB, a file or folder, a hub id, or a table; a list of tables is a mixture:
    # dataset = [{ path = "./books", text_column = "body", weight = 3 }, { path = "OWNER/NAME", messages = "messages" }]

    weights = "OWNER/NAME"                  # start from a pre-trained model; model and tokenizer are then its own
    adapters = { rank = 8, targets = ["q_proj", "v_proj"] }    # train low-rank adapters of it alone

Everything else is optional and named as in the run record; `gwtf run schema` prints all with their ranges. A wrong field is
refused with the file, the field and what was expected; nothing is published before the whole file is right.
"""

from __future__ import annotations

import difflib
import json
import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from gwtf_p2p.cli.shared.hub import hub_names, settle_hub
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.routers.factory import router_kind
from gwtf_p2p.protocol.view.wire_choice import chosen_wire
from gwtf_p2p.protocol.wire.codec import from_plain
from gwtf_p2p.protocol.wire.dataset import STDLIB, Dataset, DatasetSpec, evaluated_on, parts_of
from gwtf_p2p.protocol.wire.ranges import check_ranges
from gwtf_p2p.protocol.wire.records import (
    AdapterSpec,
    BoundarySpec,
    EvaluationSpec,
    LossSpec,
    OptimizerSpec,
    RunRecord,
    ToleranceSpec,
    WeightsSpec,
    WireSpec,
)
from gwtf_p2p.protocol.wire.signed import check_size

logger = logging.getLogger(__name__)

T = TypeVar("T")

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

SECTIONS: dict[str, Any] = {
    "optimizer": OptimizerSpec,
    "loss": LossSpec,
    "evaluation": EvaluationSpec,
    "adapters": AdapterSpec,
    "wire": WireSpec,
    "boundary": BoundarySpec,
    "audit_tolerance": ToleranceSpec,
}
"""Tables of a run file that are a dataclass of the record, but for `boundary`: what crosses follows from it."""

_OWN_FIELDS = {"model", "stages", "weights", *SECTIONS}
OLDER_FIELDS = {"relays_per_stage": "peers_per_stage"}
"""Fields of older run files, and how they are called now."""

WIRE_DTYPE = "wire_dtype"
"""An older field: one format for activations and gradients alike."""

AUTO = "auto"
"""As `wire`: decided when the run is published (`wire_choice`)."""

_INTERNAL = {"model_config", "weight_hashes", "boundary", "subspace", "fingerprint", "owner", "end_token"}
_INTERNAL |= {"sequence_number", "schema_version", "wire_version"}
FIELDS = ({f.name for f in fields(RunRecord)} - _INTERNAL) | _OWN_FIELDS
"""What a run file may say."""

MOST_STAGES = 4096
_NO_MODEL = {"model_config": {}, "layer_split": ((0, 1),)}


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
        stated = AutoConfig.from_pretrained(name).to_dict()
        return {field: value for field, value in stated.items() if value is not None}
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(MODELS))
        reason = str(error).splitlines()[0][:120]
        raise InputError(where, "model", f"expected {known}, a config.json or a hub id; {name!r}: {reason}") from error


def read_run_file(path: Path) -> RunRecord:
    """Raises InputError that names the file and the field."""
    return run_from_plain(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The fields of a run file as they stand there. Raises InputError that names the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), "", f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(str(path), "", f"not TOML: {error}") from error


def run_from_plain(plain: Mapping[str, Any], where: str, lines_bytes_per_s: Sequence[float] = ()) -> RunRecord:
    """A checked run record from the fields of a run file, the cheapest checks first. Lines decide where its `wire` is auto.

    Raises InputError.
    """
    plain = _with_source(_with_wire(_renamed(plain), where, lines_bytes_per_s), where)
    draft = check_settings(plain, where)
    check_local_files(draft, where)
    model = plain.get("model", "tiny-llama")
    settle_hub(hub_names(draft, model, tuple(MODELS)))
    from gwtf_p2p.training.data.held_out import prompt_ids
    from gwtf_p2p.training.data.tokenizer import load_tokenizer
    from gwtf_p2p.training.model.config import published_config
    from gwtf_p2p.training.model.parts.layer_split import default_layer_split
    from gwtf_p2p.training.model.preflight import Thin, preflight
    from gwtf_p2p.training.model.pretrained import resolved
    from gwtf_p2p.training.model.run_check import check_run
    from gwtf_p2p.training.model.split import PartSpec, boundary_of, parameter_shapes, thin_layer_split, weight_hashes
    from gwtf_p2p.training.model.structure import layer_count

    tokenizer = _at(where, lambda: load_tokenizer(draft.tokenizer))
    stated = load_model(model, where) if isinstance(model, str) else model
    model_config = published_config(stated, where)
    if isinstance(model, str) and model not in MODELS and not draft.weights.source and not model.endswith(".json"):
        logger.warning(
            "model = %r gives the config alone: training starts from random weights (weights = %r: from its own)", *[model] * 2
        )
    split = draft.layer_split
    if "layer_split" not in plain:
        split = default_layer_split(layer_count(model_config, where), plain.get("stages", 1), where)
        if draft.thin_data_peers:
            split = thin_layer_split(model_config, len(split), where)
    end_token = tokenizer.end_id if draft.attention == "document" else -1
    run = replace(draft, model_config=model_config, layer_split=split, end_token=end_token)
    check_run(run, tokenizer.vocabulary, where)
    for prompt in run.evaluation.prompts:
        _at(where, partial(prompt_ids, run, tokenizer, prompt), field="evaluation.prompts")
    thin = Thin.of(draft.thin_data_peers, run.stages)
    asked = {"by_document": draft.attention == "document", "subspace": bool(draft.subspace)}
    fingerprint = preflight(run.built_config, where, balance=draft.loss.balance, thin=thin, **asked)
    run = replace(run, boundary=boundary_of(PartSpec.of(run, 0), where), fingerprint=fingerprint)
    if run.adapters.rank and not any(parameter_shapes(PartSpec.of(run, stage), where) for stage in range(run.stages + 1)):
        raise InputError(where, "adapters.targets", "expected modules with weights")
    if run.weights.source:
        run = replace(run, weights=resolved(run.weights, where))
        run = replace(run, weight_hashes=weight_hashes(run, where))
    try:
        check_size(run)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(where, "model", f"expected what fits into a run record ({error})") from error
    return run


def check_settings(plain: Mapping[str, Any], where: str) -> RunRecord:
    """All that can be judged without the model: names, types, ranges, what goes together. No heavy library is loaded.

    The record that is returned has no model yet. Raises InputError that names the field.
    """
    plain = _with_wire(_renamed(plain), where)
    for name in plain:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            known = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(FIELDS))}"
            raise InputError(where, name, f"unknown field; {known}")
    model = plain.get("model", "tiny-llama")
    if not isinstance(model, (str, dict)) or not model:
        raise InputError(where, "model", f"expected a name, or a table with the model's config, got {model!r:.40}")
    stages = _typed(int, plain.get("stages", 1), where, "stages")
    if not 1 <= stages <= MOST_STAGES:
        raise InputError(where, "stages", f"expected a whole number, at least 1 and at most {MOST_STAGES}, got {stages}")
    hints = get_type_hints(RunRecord)
    values = {name: value for name, value in plain.items() if name not in _OWN_FIELDS and name != "dataset"}
    record: dict[str, Any] = {name: _typed(hints[name], value, where, name) for name, value in values.items()}
    for f in fields(RunRecord):
        required = f.default is MISSING and f.default_factory is MISSING and f.name not in _NO_MODEL
        if required and f.name not in record:
            raise InputError(where, f.name, "expected, but missing")
    record["dataset"] = _dataset(plain.get("dataset", STDLIB), where)
    record["weights"] = _weights(plain.get("weights", ""), where)
    record |= {name: _settings(kind, plain.get(name, {}), where, name) for name, kind in SECTIONS.items()}
    check_ranges(record["boundary"], where, "boundary.")
    record["boundary"].validate(where, record["weights"])
    record["subspace"] = record.pop("boundary").subspace
    run = RunRecord(**{**_NO_MODEL, **record})
    check_ranges(run, where)
    run = replace(run, optimizer=run.optimizer.in_iterations(run.tokens_per_iteration, where))
    run.validate(where)
    run.wire.validate(where)
    run.check_together(where)
    _at(where, lambda: router_kind(run.router), field="router")
    if "stages" in plain and "layer_split" in plain and stages != run.stages:
        raise InputError(where, "stages", f"expected {run.stages}, as layer_split has, or nothing, got {stages}")
    return run


def _with_wire(plain: dict[str, Any], where: str, lines_bytes_per_s: Sequence[float] = ()) -> dict[str, Any]:
    """What `wire_dtype` says, as `wire` says it now, and what "auto" is. Raises InputError when both say something."""
    if plain.get("wire") == AUTO:
        wire, reason = chosen_wire(lines_bytes_per_s)
        logger.info('wire = "auto": %s', reason)
        plain = {**plain, "wire": asdict(wire)}
    if WIRE_DTYPE not in plain:
        return plain
    if "wire" in plain:
        raise InputError(where, WIRE_DTYPE, "expected either wire_dtype or wire = { activations, gradients, averages }")
    dtype = plain.pop(WIRE_DTYPE)
    return {**plain, "wire": {"activations": dtype, "gradients": dtype}}


def _renamed(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {OLDER_FIELDS.get(name, name): value for name, value in plain.items()}


def check_local_files(run: RunRecord, where: str) -> None:
    """Local datasets are there, and it is certain which column is the text. Nothing is encoded. Raises InputError."""
    from gwtf_p2p.training.data.columns import look_at
    from gwtf_p2p.training.data.local_files import is_local

    for part in [*parts_of(run.dataset), *evaluated_on(run.evaluation.dataset, run.evaluation.split, run.dataset)]:
        if is_local(part):
            _at(where, partial(look_at, part, _silent))


def check_hub_files(run: RunRecord, where: str) -> None:
    """The same for hub datasets, which the network is asked for. Raises InputError."""
    from gwtf_p2p.training.data.columns import look_at
    from gwtf_p2p.training.data.local_files import is_local

    for part in [*parts_of(run.dataset), *evaluated_on(run.evaluation.dataset, run.evaluation.split, run.dataset)]:
        if not is_local(part):
            _at(where, partial(look_at, part, _silent))


def _dataset(value: Any, where: str) -> Dataset:
    """A text, a table, or a list of tables: a mixture."""
    if isinstance(value, str):
        return value
    tables = value if isinstance(value, list) else [value]
    found = []
    for number, table in enumerate(tables):
        field = f"dataset[{number}]" if isinstance(value, list) else "dataset"
        part = _settings(DatasetSpec, table, where, field)
        if "path" not in table:
            raise InputError(where, f"{field}.path", "expected, but missing")
        check_ranges(part, where, f"{field}.")
        found.append(part)
    return tuple(found)


def _weights(value: Any, where: str) -> WeightsSpec:
    """A folder or hub id, or a table with its revision."""
    if isinstance(value, str):
        value = {"source": value} if value else {}
    elif "source" not in (value if isinstance(value, dict) else ()):
        raise InputError(where, "weights.source", "expected, but missing")
    return _settings(WeightsSpec, value, where, "weights")


def _with_source(plain: dict[str, Any], where: str) -> dict[str, Any]:
    """What is not stated beside `weights` is as the pre-trained model has it: its config, its tokenizer."""
    source = _weights(plain.get("weights", ""), where).source
    if not source:
        return plain
    return {"model": source, "tokenizer": source, **plain}


def _settings(kind: type[T], value: Any, where: str, field: str) -> T:
    """A dataclass of a table whose names it knows."""
    if not isinstance(value, dict):
        raise InputError(where, field, f"expected a table, got {value!r:.40}")
    hints = get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise InputError(where, f"{field}.{name}", f"unknown field; expected one of {', '.join(sorted(hints))}")
    return kind(**{name: _typed(hints[name], plain, where, f"{field}.{name}") for name, plain in value.items()})


def _typed(kind: Any, value: Any, where: str, name: str) -> Any:
    try:
        return RunId(value) if kind is RunId and isinstance(value, str) else from_plain(kind, value, name)
    except RemoteProtocolError as error:
        raise InputError(where, name, str(error).partition(": ")[2] or str(error)) from error


def _silent(line: str) -> None:
    """Guesses are told when the dataset is opened."""


def _at(where: str, check: Callable[[], T], field: str = "") -> T:
    """The result of a check that does not know the file, with the file in front of what it refuses."""
    try:
        return check()
    except InputError as error:
        inside = ": ".join(word for word in (error.where, error.field) if word)
        raise InputError(where, field or inside, error.expected) from error
