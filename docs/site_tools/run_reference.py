"""The reference of run.toml, made from the code: fields, types and defaults are those of the run record's dataclasses.

Ranges and meanings are the annotations that the checks go by, so the page cannot fall behind the code; a field without a
meaning ends the build.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, Field, fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from gwtf_p2p.cli.shared.run_file import MODELS
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.protocol.wire.ranges import Field as Described
from gwtf_p2p.protocol.wire.ranges import described_fields, expectation
from gwtf_p2p.protocol.wire.records import BoundarySpec, OptimizerSpec, RunRecord, WireSpec

INTERNAL = {"model_config", "owner", "sequence_number", "schema_version", "wire_version", "optimizer", "wire"}
INTERNAL |= {"boundary", "subspace"}
"""Fields of the record that a run file does not have, or has as something else."""

THE_WIRE = """`wire = { activations = "int8", gradients = "int8" }`, a table `[wire]`, or `wire = "auto"`, which is decided when
the run is published, by the line that its publisher states."""

INTRODUCTION = f"""# run.toml

The file of `gwtf data --new_run run.toml` says what is trained. It becomes the run record, which the first data peer publishes
and signs, and from which everybody else learns the run. A wrong, missing or unknown field is refused by its name, before
anything is published. This page is made from the code.

Besides the fields below a file has `model`, a name ({", ".join(MODELS)}), a `config.json`, a hub id or a table such as
`{{ model_type = "llama", ... }}`, and `stages`, the number of stages of about equal size (1, unless `layer_split` is given).
"""


def page() -> str:
    """Markdown of the whole page. Raises ValueError (see the module)."""
    about = "`optimizer = { learning_rate = 3e-3 }`, or a table `[optimizer]`. AdamW; every peer of a stage must step alike."
    parts = "`dataset` is a text, a table with these fields, or a list of such tables: a mixture by weight."
    sections = (
        ("The run", "", table(RunRecord, INTERNAL)),
        ("The optimizer", about, table(OptimizerSpec)),
        ("The wire", THE_WIRE, table(WireSpec)),
        ("Boundaries", "`boundary = { subspace = 8 }`.", table(BoundarySpec)),
        ("Datasets", parts, table(DatasetSpec)),
    )
    return "\n".join((INTRODUCTION, *(f"## {title}\n\n{text}\n\n{rows}\n" for title, text, rows in sections)))


def table(kind: type, without: Collection[str] = ()) -> str:
    """The fields of a dataclass as rows. Raises ValueError for one without a meaning."""
    known = described_fields(kind)
    rows = ["| field | type and range | default | meaning |", "|---|---|---|---|"]
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in without:
            described = known[field.name]
            if not described.meaning:
                raise ValueError(f"{kind.__name__}.{field.name} has no meaning in its annotation")
            rows.append(f"| `{field.name}` | {_range(described)} | {_default(field)} | {described.meaning} |")
    return "\n".join(rows)


def _range(described: Described) -> str:
    if described.choices:
        return " or ".join(f"`{choice}`" for choice in described.choices)
    kind = _kind(described.kind)
    return kind + expectation(described, kind).removeprefix(expectation(replace(described, bounds=()), kind)).replace(
        "|", "\\|"
    )


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return f"`{field.default!r}`" if isinstance(field.default, str | int | float | bool | tuple) else str(field.default)
    return "required" if field.default_factory is MISSING else "see below"


def _kind(hint: Any) -> str:
    """The type in a user's words."""
    if hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    hint = getattr(hint, "__supertype__", hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "string"
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in inner if part is not NoneType)
    if origin is tuple:
        return "list of " + _kind(inner[0]) if inner[-1] is Ellipsis else "pair"
    names = {int: "whole number", float: "number", str: "string", bool: "true or false"}
    return names.get(hint, "table")
