"""The JSON schema of a run file, made from the settings' own annotations: editors check with it, and docs are made of it."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, create_model
from pydantic import Field as SchemaField

from gwtf_p2p.cli.shared.run_file import AUTO, FIELDS, MOST_STAGES, SECTIONS
from gwtf_p2p.protocol.routers.factory import KINDS
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.protocol.wire.ranges import Matches, described_fields
from gwtf_p2p.protocol.wire.records import RunRecord, WeightsSpec


def run_file_model() -> type[BaseModel]:
    """The run file as a pydantic model: the fields of the run record, and those that a file says otherwise."""
    own: dict[str, Any] = {
        "model": (str | dict[str, Any], SchemaField("tiny-llama", description="name, config.json, hub id, or a config itself")),
        "stages": (
            int,
            SchemaField(1, ge=1, le=MOST_STAGES, description="stages of equal size, without a layer_split"),
        ),
    }
    for name, kind in SECTIONS.items():
        meaning = described_fields(RunRecord)[name].meaning
        own[name] = (_model_of(kind, name.capitalize()), SchemaField(default_factory=dict, description=meaning))
    literal: Any = Literal
    own["wire"] = (literal[AUTO] | own["wire"][0], own["wire"][1])
    part = _model_of(DatasetSpec, "Dataset", required=frozenset({"path"}))
    dataset: Any = str | part | list[part]  # type: ignore[valid-type]
    own["dataset"] = (dataset, SchemaField("stdlib", description=described_fields(RunRecord)["dataset"].meaning))
    source = _model_of(WeightsSpec, "Weights", required=frozenset({"source"}))
    weights: Any = str | source
    own["weights"] = (weights, SchemaField("", description=described_fields(RunRecord)["weights"].meaning))
    router: Any = Literal[tuple(KINDS)]
    own["router"] = (router, SchemaField("gwtf", description=described_fields(RunRecord)["router"].meaning))
    split = _setting(RunRecord, next(f for f in fields(RunRecord) if f.name == "layer_split"))
    own["layer_split"] = (split[0] | None, SchemaField(None, description=described_fields(RunRecord)["layer_split"].meaning))
    own |= {f.name: _setting(RunRecord, f) for f in fields(RunRecord) if f.name in FIELDS and f.name not in own}
    return create_model("RunFile", __config__=ConfigDict(extra="forbid", strict=True), **own)


def run_file_schema() -> dict[str, Any]:
    """JSON schema of the TOML file's contents."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **run_file_model().model_json_schema()}


def _model_of(kind: Any, name: str, required: frozenset[str] = frozenset()) -> type[BaseModel]:
    settings: dict[str, Any] = {f.name: _setting(kind, f, f.name in required) for f in fields(kind)}
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **settings)


def _setting(kind: Any, field: Field[Any], required: bool = False) -> tuple[Any, Any]:
    """Type and bounds of one setting. Pydantic knows `annotated_types` itself; a pattern is handed over by name."""
    known = described_fields(kind)[field.name]
    bounds = [bound for bound in known.bounds if not isinstance(bound, Matches)]
    pattern = next((f"^(?:{bound.pattern})$" for bound in known.bounds if isinstance(bound, Matches)), None)
    default: Any = ... if required or (field.default is MISSING and field.default_factory is MISSING) else field.default
    described = SchemaField(default, description=known.meaning or None, pattern=pattern)
    described.metadata += bounds
    return _plain(known.kind), described


def _plain(kind: Any) -> Any:
    """TOML has lists where the record has tuples."""
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if items[-1] is Ellipsis:
            return list[_plain(items[0])]  # type: ignore[misc]
        return list[items[0]]  # type: ignore[valid-type]
    return kind
