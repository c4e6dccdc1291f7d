"""The reference of run.toml, made from the code: fields, types and defaults are those of the run record's dataclasses.

Meanings are annotations of the fields where these have any; for the others they stand here. `page` raises ValueError for a
field without a meaning and for a meaning without a field, so the page cannot fall behind the code unseen.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gwtf_p2p.cli.shared.run_file import MODELS
from gwtf_p2p.protocol.routers.factory import KINDS
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord, WireSpec
from gwtf_p2p.protocol.wire.tensor_formats import FORMATS

INTERNAL = {"model_config", "sequence_number", "schema_version", "wire_version", "optimizer", "wire"}
"""Fields of the record that a run file does not have, or has as something else."""

MEANINGS = {
    "run_id": "names the run on its DHT: 1 to 64 characters without dots, slashes or spaces, not beginning with _",
    "layer_split": "layers of each stage as half-open ranges, such as [[0, 2], [2, 6]]; instead of `stages`",
    "seed": "draws the initial weights and the order of the data",
    "sequence_length": "tokens in a sequence",
    "microbatch_size": "sequences in a microbatch",
    "microbatches_per_data_peer": "microbatches of one data peer in an iteration",
    "dataset": "stdlib (this Python's library source), text:GLOB, or the name of a hub dataset",
    "tokenizer": "byte, or the name of a Hugging Face tokenizer",
    "data_peers": "shards that the dataset is cut into; so many data peers must be online before iteration 0",
    "peers_per_stage": "stage peers that must be online in each stage before iteration 0",
    "router": "how microbatches find their way: " + ", ".join(KINDS),
    "recovery": "exact: a crash at any moment changes no gradient; fast: it may cost a microbatch, and less memory",
    "total_iterations": "iterations in all (0: without end)",
    "wire.activations": "format of what goes forwards: " + ", ".join(sorted(FORMATS)),
    "wire.gradients": "format of what comes back",
    "wire.averages": "format of the parts of a stage's gradient; int8 keeps an error feedback",
    "optimizer.learning_rate": "step size, at its highest",
    "optimizer.beta1": "decay of AdamW's first moment",
    "optimizer.beta2": "decay of AdamW's second moment",
    "optimizer.epsilon": "added to the root of the second moment",
    "optimizer.weight_decay": "decoupled weight decay, times the learning rate",
    "optimizer.schedule": "constant, linear or cosine, after the warm-up",
    "optimizer.warmup_iterations": "iterations in which the learning rate rises",
    "optimizer.total_iterations": "iteration at which linear and cosine reach 0",
    "optimizer.gradient_clip": "limit of the gradient's norm (0: none)",
}

INTRODUCTION = f"""# run.toml

The file of `gwtf data --new_run run.toml` says what is trained. It becomes the run record, which the first data peer publishes
and signs, and from which everybody else learns the run. A wrong, missing or unknown field is refused by its name, before
anything is published. This page is made from the code.

Besides the fields below a file has `model`, a name ({", ".join(MODELS)}), a `config.json`, a hub id or a table such as
`{{ model_type = "llama", ... }}`, and `stages`, the number of stages of about equal size (1, unless `layer_split` is given).
"""


def page() -> str:
    """Markdown of the whole page. Raises ValueError (see the module)."""
    unused = set(MEANINGS)
    run = _table(RunRecord, "", INTERNAL, unused)
    optimizer = _table(OptimizerSpec, "optimizer.", set(), unused)
    wire = _table(WireSpec, "wire.", set(), unused)
    if unused:
        raise ValueError(f"meanings of fields that are not there: {', '.join(sorted(unused))}")
    about = "`optimizer = { learning_rate = 3e-3 }`, or a table `[optimizer]`. AdamW; every peer of a stage must step alike."
    return f"{INTRODUCTION}\n## The run\n\n{run}\n\n## The optimizer\n\n{about}\n\n{optimizer}\n\n## The wire\n\n{wire}\n"


def _table(kind: type, prefix: str, without: set[str], unused: set[str]) -> str:
    hints = get_type_hints(kind, include_extras=True)
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in without:
            hint = hints[field.name]
            notes = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, str)]
            meaning = notes[-1] if notes else MEANINGS.get(prefix + field.name)
            unused.discard(prefix + field.name)
            if not meaning:
                raise ValueError(f"{kind.__name__}.{field.name} has no meaning in its annotation, nor in docs/site_tools")
            rows.append(f"| `{field.name}` | {_kind(hint)} | {_default(field)} | {meaning} |")
    return "\n".join(rows)


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
