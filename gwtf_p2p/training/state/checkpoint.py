"""Checkpoints: one folder per stage and iteration, complete as soon as its manifest is there.

    stage_00003/step_00001200/{model.safetensors, optimizer.safetensors, manifest.json}

Rules.
- The manifest is written last, by atomic rename, and holds the other files' sizes and sha256. A crash at any moment leaves
  either a complete checkpoint or a folder without a manifest, which readers pass over.
- A checkpoint whose files don't match its manifest is treated as absent, so the one before it is used.
- Several peers of a stage may write to one folder: their states are equal to the bit, every file appears by rename, so the
  last one wins and nothing is torn.
- `model.safetensors` holds the weights under the whole model's names; tied weights once, under the embedding's name.
- A run resumes from the newest iteration that **all** stages have.
- A checkpoint counts only if it belongs to the epoch that the run is in (`epochs`); the others are passed over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import DATA_STAGE
from gwtf_p2p.protocol.wire.codec import to_plain
from gwtf_p2p.protocol.wire.commit_messages import Evaluations
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.state.epochs import read_epochs, replace_file
from gwtf_p2p.training.state.stored import StoredState, described, renamed
from gwtf_p2p.training.state.tensor_file import flush, stored_tensors, write_tensors
from gwtf_p2p.training.state.tensors import STEP, WEIGHTS

MANIFEST, MODEL, OPTIMIZER = "manifest.json", "model.safetensors", "optimizer.safetensors"
FORMAT = 1
BYTES_OF_A_NAME, MANIFEST_BYTES = 256, 1 << 16
"""More than what is written of a tensor beside its values, and more than any manifest."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint: its manifest and its folder. `read` loads the state."""

    folder: Path
    stage: int
    iteration: int
    model_hash: str
    run: Mapping[str, Any]
    epoch: int = 0

    def read(self) -> StoredState:
        """The state as `state.load_state` takes it; its tensors are read when they are asked for. Raises OSError."""
        weights = stored_tensors(self.folder / MODEL).places
        rest = stored_tensors(self.folder / OPTIMIZER).places
        return StoredState({f"{WEIGHTS}{name}": place for name, place in weights.items()} | rest)


def _whole() -> bool:
    """Of a state that nobody changes."""
    return True


def step_folder(root: Path, stage: int, iteration: int) -> Path:
    """Where a checkpoint lies under the checkpoint directory."""
    return root / f"stage_{stage:05d}" / f"step_{iteration:08d}"


def save_checkpoint(
    root: Path,
    run: RunRecord,
    stage: int,
    state: Mapping[str, Tensor],
    epoch: int = 0,
    evaluations: Evaluations | None = None,
    *,
    read: Callable[[], bool] = _whole,
) -> Path:
    """Write the state of one stage after `state["step"]` iterations, and what was evaluated before it (`evaluations`).

    `read` is called when all tensors have been read, which then may change; false if they did before.
    Raises InputError naming the directory if it can't be written.
    """
    iteration = int(state[STEP])
    folder = step_folder(root, stage, iteration)
    parts = {
        MODEL: renamed(state, {name.removeprefix(WEIGHTS): name for name in state if name.startswith(WEIGHTS)}),
        OPTIMIZER: renamed(state, {name: name for name in state if not name.startswith(WEIGHTS)}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in parts.items():
            write_tensors(_unfinished(folder / name), tensors)
        if not read():
            raise OSError(errno.ETIMEDOUT, "it takes so long that training went on without it")
        files = {name: _finish(folder / name) for name in parts}
        manifest = {
            "format": FORMAT,
            "stage": stage,
            "iteration": iteration,
            "model_hash": run.model_hash,
            "epoch": epoch,
            "evaluations": to_plain(evaluations) if evaluations is not None else None,
            "run": {
                "run_id": run.run_id,
                "model_config": dict(run.model_config),
                "layer_split": [list(layers) for layers in run.layer_split],
                "seed": run.seed,
                "tokenizer": run.tokenizer,
                "subspace": run.subspace,
                "thin_data_peers": run.thin_data_peers,
                "weights": asdict(run.weights),
                "adapters": {**asdict(run.adapters), "targets": list(run.adapters.targets)},
                "data_peers_before": [list(pair) for pair in run.data_peers_until(iteration)],
            },
            "files": files,
        }
        replace_file(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    except OSError as error:
        _undo(folder)
        raise InputError(str(root), "", f"expected a writable checkpoint directory ({error.strerror or error})") from error
    return folder


def _undo(folder: Path) -> None:
    """What a failed write has left would keep a full disk full. A complete checkpoint of an earlier write stays."""
    for left in folder.glob(f"*.{os.getpid()}.writing"):
        left.unlink(missing_ok=True)
    if folder.is_dir() and not (folder / MANIFEST).exists():
        _remove(folder)


def drop_unfinished(root: Path) -> None:
    """Remove what writers that are gone (a power cut, a crash) have left half written."""
    for left in root.glob("stage_*/step_*/*.writing"):
        pid = left.name.rpartition(".writing")[0].rpartition(".")[2]
        if not pid.isdigit() or not _is_running(int(pid)):
            with suppress(OSError):  # of another user, or another peer of this machine drops it just now
                left.unlink()
                left.parent.rmdir()  # where it was all


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def drop_checkpoints(root: Path, stage: int, worth_keeping: Callable[[Sequence[int]], Collection[int]]) -> None:
    """Remove what is not worth keeping of the complete checkpoints of a stage, given in rising order.

    With it goes what has been left unfinished, if it is older than all that is kept, and what belongs to an epoch that the
    run has gone back from: its later versions would count as the newest.
    """
    folders = {int(folder.name.removeprefix("step_")): folder for folder in _all_step_folders(root / f"stage_{stage:05d}")}
    manifests = {iteration: _read_manifest(folder) for iteration, folder in folders.items()}
    epochs = read_epochs(root)
    complete = {i: manifest for i, manifest in manifests.items() if manifest is not None}
    kept = worth_keeping(sorted(i for i, manifest in complete.items() if epochs.holds(_epoch_of(manifest), i)))
    for iteration, folder in folders.items():
        if iteration not in kept and (iteration in complete or iteration < min(kept, default=0)):
            _remove(folder)


def checkpoint_sizes(root: Path) -> dict[tuple[int, int], int]:
    """Bytes on the disk by (stage, iteration), of complete checkpoints and of what is being written."""
    found: dict[tuple[int, int], int] = {}
    for folder in root.glob("stage_" + "[0-9]" * 5 + "/step_" + "[0-9]" * 8):
        sizes = (path.lstat().st_size for path in folder.iterdir())
        with suppress(FileNotFoundError):  # another peer of this machine drops it just now
            key = int(folder.parent.name.removeprefix("stage_")), int(folder.name.removeprefix("step_"))
            found[key] = sum(sizes)
    return found


def drop_checkpoint(root: Path, stage: int, iteration: int) -> None:
    """Remove one, complete or not."""
    _remove(step_folder(root, stage, iteration))


def written_bytes(state: Mapping[str, Tensor]) -> int:
    """At most so many bytes a checkpoint of this state takes: its tensors, their names, and the manifest."""
    return sum(each.nbytes for each in described(state).values()) + BYTES_OF_A_NAME * len(state) + MANIFEST_BYTES


def newest_checkpoint(root: Path, run: RunRecord, stage: int) -> Checkpoint | None:
    """The newest intact checkpoint of a stage of this very run's model, or None.

    Raises InputError if it belongs to another model, split or seed.
    """
    return next(_intact(root, run, stage), None)


def intact_iterations(root: Path, run: RunRecord, stage: int) -> tuple[int, ...]:
    """All iterations of which there is an intact checkpoint of this stage, in rising order. Raises InputError as above."""
    return tuple(sorted(checkpoint.iteration for checkpoint in _intact(root, run, stage)))


def listed_iterations(root: Path, model_hash: str, stage: int) -> tuple[int, ...]:
    """Iterations of which there is a manifest of this model, in rising order; the files are not checked."""
    found, epochs = [], read_epochs(root)
    for folder in reversed(_step_folders(root / f"stage_{stage:05d}")):
        manifest = _read_manifest(folder)
        if manifest is not None and manifest.get("model_hash") == model_hash:
            iteration = int(folder.name.removeprefix("step_"))
            if epochs.holds(_epoch_of(manifest), iteration):
                found.append(iteration)
    return tuple(found)


def _intact(root: Path, run: RunRecord, stage: int) -> Iterator[Checkpoint]:
    """Newest first."""
    epochs = read_epochs(root)
    for folder in _step_folders(root / f"stage_{stage:05d}"):
        checkpoint = verified_checkpoint(folder)
        if checkpoint is not None:
            _check_model(checkpoint, run.model_hash)
            _check_data_peers(checkpoint, run)
            if epochs.holds(checkpoint.epoch, checkpoint.iteration):
                yield checkpoint


def load_checkpoint(root: Path, run: RunRecord, stage: int, iteration: int) -> StoredState:
    """The verified state of one stage after `iteration` iterations; its tensors are read when they are asked for.

    Raises InputError if it is absent, damaged or of another model.
    """
    folder = step_folder(root, stage, iteration)
    checkpoint = verified_checkpoint(folder)
    if checkpoint is None:
        raise InputError(str(folder), "", "expected a complete checkpoint whose files match its manifest")
    _check_model(checkpoint, run.model_hash)
    _check_data_peers(checkpoint, run)
    if not read_epochs(root).holds(checkpoint.epoch, iteration):
        raise InputError(str(folder), "", "it belongs to an epoch that the run has gone back from")
    return checkpoint.read()


def latest_common_iteration(root: Path, stages: int) -> int | None:
    """The newest iteration of which stages 0 to `stages` all have an intact checkpoint; None if there is none."""
    epochs = read_epochs(root)
    folders = [{folder.name: folder for folder in _step_folders(root / f"stage_{stage:05d}")} for stage in range(stages + 1)]
    common = set.intersection(*(set(by_name) for by_name in folders))
    for name in sorted(common, reverse=True):
        found = [verified_checkpoint(by_name[name]) for by_name in folders]
        if all(checkpoint is not None and epochs.holds(checkpoint.epoch, checkpoint.iteration) for checkpoint in found):
            return int(name.removeprefix("step_"))
    return None


def stages_in(root: Path) -> list[int]:
    """Stages that have a folder in a checkpoint directory. Raises InputError if it is not one."""
    if not root.is_dir():
        raise InputError(str(root), "", "expected a checkpoint directory")
    matches = (re.fullmatch(r"stage_(\d{5})", entry.name) for entry in root.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def verified_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder if its manifest can be read and every file matches it, else None."""
    manifest = _read_manifest(folder)
    try:
        if manifest is None or manifest["format"] != FORMAT:
            return None
        for name in (MODEL, OPTIMIZER):
            wanted = manifest["files"][name]
            path = folder / name
            if path.stat().st_size != wanted["bytes"] or _sha256(path) != wanted["sha256"]:
                return None
        names = (manifest["stage"], manifest["iteration"], manifest["model_hash"], manifest["run"])
        return Checkpoint(folder, *names, _epoch_of(manifest))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a torn or foreign file is the case that this function exists for


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """None for one that is damaged, in whatever way."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        _epoch_of(manifest)
    except (OSError, ValueError, RecursionError, TypeError, AttributeError, OverflowError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _check_model(checkpoint: Checkpoint, model_hash: str) -> None:
    if checkpoint.model_hash != model_hash:
        raise InputError(
            str(checkpoint.folder / MANIFEST), "model_hash", f"expected the run's {model_hash}, got {checkpoint.model_hash}"
        )


def _check_data_peers(checkpoint: Checkpoint, run: RunRecord) -> None:
    """Who deals windows has to know among how many they were dealt before: otherwise some are read twice, others never."""
    made_with = checkpoint.run.get("data_peers_before")
    said = [list(pair) for pair in run.data_peers_until(checkpoint.iteration)]
    if checkpoint.stage == DATA_STAGE and made_with not in (None, said):
        expected = f"expected data_peers_before = {made_with}, with which the checkpoint was made, the run says {said}"
        raise InputError(str(checkpoint.folder / MANIFEST), "data_peers", expected)


def _step_folders(stage_folder: Path) -> Sequence[Path]:
    """Checkpoint folders with a manifest, newest first."""
    return sorted((folder for folder in _all_step_folders(stage_folder) if (folder / MANIFEST).is_file()), reverse=True)


def _all_step_folders(stage_folder: Path) -> Iterator[Path]:
    return stage_folder.glob("step_" + "[0-9]" * 8)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.writing")


def _finish(path: Path) -> dict[str, Any]:
    """Flush what is written to disk and rename it into place; returns size and hash for the manifest."""
    temporary = _unfinished(path)
    flush(temporary)
    entry = {"bytes": temporary.stat().st_size, "sha256": _sha256(temporary)}
    temporary.replace(path)
    return entry


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    """The manifest goes first: a half-removed checkpoint must not look complete."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _epoch_of(manifest: Mapping[str, Any]) -> int:
    """Which epoch a checkpoint was written in; manifests of an older release call it `history`."""
    return int(manifest.get("epoch", manifest.get("history", 0)))
