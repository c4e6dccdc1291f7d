"""What of this machine's files a run names, and whether it may have them.

A run record comes from a stranger. What it names is looked for on this machine before it is looked for on the hub, so a peer
refuses what is here unless its user has named it too: whoever holds the next stage, or is given weights, could tell from what
is sent what the files say.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import STDLIB, DatasetSpec, evaluated_on, parts_of
from gwtf_p2p.protocol.wire.records import RunRecord

BYTE = "byte"
"""The tokenizer that is built in."""

OF_STAGE_PEERS = ("weights",)
OF_CLIENTS = ("weights", "tokenizer")
OF_DATA_PEERS = (*OF_CLIENTS, "dataset", "evaluation.dataset")
"""Fields of a run whose files each kind of peer reads."""


@dataclass(frozen=True, slots=True)
class Named:
    """A file, folder or hub id that a run names in `field`."""

    field: str
    name: str
    is_local: bool


def named_by(run: RunRecord) -> list[Named]:
    """All that the run reads and that is not built in."""
    evaluated = evaluated_on(run.evaluation.dataset, run.evaluation.split, run.dataset)
    found = [Named("weights", run.weights.source, is_here(run.weights.source))]
    found += [Named("dataset", part.path, is_local(part)) for part in parts_of(run.dataset)]
    found += [Named("evaluation.dataset", part.path, is_local(part)) for part in evaluated]
    found.append(Named("tokenizer", run.tokenizer, is_here(run.tokenizer)))
    return [each for each in found if each.name and (each.field, each.name) != ("tokenizer", BYTE) and each.name != STDLIB]


def local_names(run: RunRecord) -> tuple[str, ...]:
    """What a run that this machine's user has made may read here: all that it names."""
    return tuple(named.name for named in named_by(run) if named.is_local)


def refuse_unasked(run: RunRecord, allowed: Sequence[str], reads: Collection[str]) -> None:
    """`reads`: what of the run's fields the peer reads (`OF_*`). Raises InputError for a file of this machine that its user
    has not named."""
    for named in named_by(run):
        if named.is_local and named.field in reads and named.name not in allowed:
            flag = "--dataset" if named.field.endswith("dataset") else "--allow_path"
            expected = f"the run's {named.field} would be read from this machine; allow that with {flag} {named.name!r}"
            raise InputError(flag, named.name, expected)


def is_here(name: str) -> bool:
    """Whether a name is a path on this machine, or could only be one by its spelling."""
    return name.startswith((".", "/", "~")) or Path(name).exists()


def in_home(name: str) -> Path:
    """The path with `~` written out; one of an unknown user's home stays as it is, and so is not there."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser raises


def is_local(part: DatasetSpec) -> bool:
    """Whether a dataset is on this machine, or could only be here by its spelling."""
    # Without a slash it is no repository's name but one of the formats that `datasets` reads files of.
    return part.is_plain_text or is_here(part.path) or (bool(part.data_files) and "/" not in part.path)
