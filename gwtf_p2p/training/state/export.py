"""From a checkpoint directory to a folder that `transformers` loads.

The stages' weights already carry the whole model's names, so each stage becomes one shard of the Hugging Face layout, beside
`config.json`, the index and the tokenizer. No more than one stage is in memory at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data.tokenizer import load_tokenizer
from gwtf_p2p.training.model.config import load_config
from gwtf_p2p.training.model.skeleton import build_skeleton
from gwtf_p2p.training.model.structure import untrained_tensors
from gwtf_p2p.training.state.checkpoint import (
    MODEL,
    Checkpoint,
    latest_common_iteration,
    stages_in,
    step_folder,
    verified_checkpoint,
)


def export_hf(checkpoint_dir: Path, out: Path) -> int:
    """Write `AutoModelForCausalLM.from_pretrained(out)` of the newest iteration that all stages have; returns the iteration.

    Raises InputError: no such directory, a stage without a checkpoint, checkpoints of different runs, `out` not empty.
    """
    checkpoints = _common_checkpoints(checkpoint_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(str(out), "", "expected a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, checkpoint in enumerate(checkpoints, start=1):
        shard = f"model-{number:05d}-of-{len(checkpoints):05d}.safetensors"
        tensors = load_file(checkpoint.folder / MODEL)
        if number == 1:
            tensors |= _constants(checkpoint)
        save_file(tensors, out / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    run = checkpoints[0].run
    _write_config(dict(run["model_config"]), checkpoint_dir, out)
    load_tokenizer(run["tokenizer"]).save_pretrained(out)
    return checkpoints[0].iteration


def _common_checkpoints(checkpoint_dir: Path) -> list[Checkpoint]:
    """One verified checkpoint per stage, all of one iteration and one model."""
    where = str(checkpoint_dir)
    stages = stages_in(checkpoint_dir)
    if stages != list(range(len(stages))) or len(stages) < 2:
        raise InputError(where, "", f"expected the folders stage_00000, stage_00001, ..., found those of stages {stages}")
    iteration = latest_common_iteration(checkpoint_dir, stages[-1])
    if iteration is None:
        raise InputError(where, "", f"expected an iteration of which stages 0 to {stages[-1]} all have an intact checkpoint")
    found = [verified_checkpoint(step_folder(checkpoint_dir, stage, iteration)) for stage in stages]
    checkpoints = [checkpoint for checkpoint in found if checkpoint is not None]
    if len({checkpoint.model_hash for checkpoint in checkpoints}) != 1:
        raise InputError(where, "model_hash", "expected checkpoints of one run, found several models, splits or seeds")
    expected = len(checkpoints[0].run["layer_split"])
    if stages[-1] != expected:
        raise InputError(where, "", f"expected checkpoints of stages 0 to {expected}, found up to {stages[-1]}")
    return checkpoints


def _constants(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What the whole model's `state_dict` has besides trained weights (routing biases, fixed position tables), at its start.

    No step changes it, so no peer sends it; it comes from the config and the run's seed.
    """
    run = checkpoint.run
    return untrained_tensors(run["model_config"], int(run["seed"]))


def _write_config(model_config: dict[str, Any], checkpoint_dir: Path, out: Path) -> None:
    config = load_config(model_config, str(checkpoint_dir))
    config.architectures = [type(build_skeleton(config)).__name__]
    config.save_pretrained(out)
