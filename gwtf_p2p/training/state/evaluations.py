"""What checkpoints know of a run's evaluations: which version is the best, and how the newest was.

A manifest says what had been evaluated when its weights were made (`protocol/view/evaluations`), so it never names its own
version. The last weights are evaluated when no others follow: the data peer that does it writes what it found into the manifest
of its own last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.wire.codec import from_plain, to_plain
from gwtf_p2p.protocol.wire.commit_messages import Evaluations
from gwtf_p2p.training.state.checkpoint import MANIFEST, Checkpoint, step_folder, verified_checkpoint
from gwtf_p2p.training.state.epochs import read_epochs, replace_file

FIELD = "evaluations"


def evaluations_of(manifest: Mapping[str, Any]) -> Evaluations | None:
    """None where a manifest, perhaps of an older release, tells of none, or of what is none."""
    try:
        found: Evaluations | None = from_plain(Evaluations | None, manifest.get(FIELD), FIELD)
    except RemoteProtocolError:
        return None
    return found


def evaluations_at(root: Path, stage: int, iteration: int) -> Evaluations | None:
    """What the checkpoint of this stage and iteration tells; None if there is none that can be read."""
    manifest = _manifest(step_folder(root, stage, iteration))
    return evaluations_of(manifest) if manifest is not None else None


def note_evaluations(root: Path, stage: int, iteration: int, evaluations: Evaluations) -> None:
    """Into the manifest of a checkpoint that is there, if it is. Raises InputError for a disk that refuses."""
    folder = step_folder(root, stage, iteration)
    manifest = _manifest(folder)
    if manifest is None:
        return
    told = {**manifest, FIELD: to_plain(evaluations)}
    try:
        replace_file(folder / MANIFEST, json.dumps(told, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise InputError(str(root), "", f"expected a writable checkpoint directory ({error.strerror or error})") from error


def best_checkpoints(root: Path, stages: int) -> list[Checkpoint]:
    """The checkpoints of stages 0 to `stages` whose evaluation had the lowest loss.

    Raises InputError: nothing was evaluated, or some stage has not kept that version.
    """
    newest = newest_evaluations(root)
    if newest is None or newest.best_version < 0:
        what = "checkpoints of a run with evaluations" if newest is None else "an evaluation with a finite loss"
        raise InputError(str(root), "--best", f"expected {what}")
    version, found, lacking = newest.best_version, [], []
    epochs = read_epochs(root)
    for stage in range(stages + 1):
        checkpoint = verified_checkpoint(step_folder(root, stage, version))
        if checkpoint is not None and epochs.holds(checkpoint.epoch, version):
            found.append(checkpoint)
        else:
            lacking.append(stage)
    if lacking:
        missing = f"stage {', '.join(map(str, lacking))} has no intact checkpoint of it"
        kept = "that is what the run began with" if not version else "evaluation = { keep_best = true } has all peers keep it"
        raise InputError(str(root), "--best", f"expected the version after {version} iterations, but {missing}; {kept}")
    return found


def newest_evaluations(root: Path) -> Evaluations | None:
    """What the checkpoints of any stage know last, of the epoch that the run is in."""
    epochs, found = read_epochs(root), []
    for folder in root.glob("stage_" + "[0-9]" * 5 + "/step_" + "[0-9]" * 8):
        manifest = _manifest(folder)
        evaluations = evaluations_of(manifest) if manifest is not None else None
        if manifest is None or evaluations is None:
            continue
        epoch, iteration = manifest.get("epoch", 0), manifest.get("iteration")
        if isinstance(epoch, int) and isinstance(iteration, int) and epochs.holds(epoch, iteration):
            found.append(evaluations)
    return max(found, key=lambda each: (each.newest.version, each.waited), default=None)


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None
