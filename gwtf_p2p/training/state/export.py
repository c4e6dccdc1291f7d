"""From a checkpoint directory to a folder that `transformers` loads.

The stages' weights already carry the whole model's names, so each stage becomes one shard of the Hugging Face layout, beside
`config.json`, the index and the tokenizer. No more than one stage is in memory at a time. A run that started from a pre-trained
model gets that one's generation settings; a run of adapters becomes a folder that `peft` loads on top of its base model; of a
run in a subspace the products are multiplied out, so what is written is an ordinary model. All files have the mode that the
user's umask gives.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.wire.codec import from_plain
from gwtf_p2p.protocol.wire.ranges import check_ranges
from gwtf_p2p.protocol.wire.records import AdapterSpec, WeightsSpec
from gwtf_p2p.training.data.tokenizer import load_tokenizer
from gwtf_p2p.training.model.adapters import lora_config, peft_name
from gwtf_p2p.training.model.config import load_config
from gwtf_p2p.training.model.parts.layer_split import free_from
from gwtf_p2p.training.model.pretrained import GENERATION, PretrainedFiles
from gwtf_p2p.training.model.skeleton import build_skeleton
from gwtf_p2p.training.model.structure import untrained_tensors
from gwtf_p2p.training.model.subspace.whole import multiplied_out
from gwtf_p2p.training.state.checkpoint import (
    MANIFEST,
    MODEL,
    Checkpoint,
    latest_common_iteration,
    stages_in,
    step_folder,
    verified_checkpoint,
)
from gwtf_p2p.training.state.evaluations import best_checkpoints

logger = logging.getLogger(__name__)


def export_hf(checkpoint_dir: Path, out: Path, *, best: bool = False) -> int:
    """Write `AutoModelForCausalLM.from_pretrained(out)` of the newest iteration that all stages have; returns the iteration.
    `best`: of the one whose evaluation had the lowest loss.

    Raises InputError: no such directory, a stage without a checkpoint, checkpoints of different runs, `out` not empty.
    """
    checkpoints = _common_checkpoints(checkpoint_dir, best)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(str(out), "", "expected a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    run = checkpoints[0].run
    load_tokenizer(run["tokenizer"]).save_pretrained(out)
    weights, adapters = _starts_from(checkpoints[0])
    if adapters.rank:
        _write_adapters(weights, adapters, checkpoints, out)
        return checkpoints[0].iteration
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, checkpoint in enumerate(checkpoints, start=1):
        shard = f"model-{number:05d}-of-{len(checkpoints):05d}.safetensors"
        tensors = load_file(checkpoint.folder / MODEL)
        if number == 1:
            tensors |= untrained_tensors(run["model_config"], int(run["seed"]), weights)
        if run.get("subspace"):
            free = free_from(run["layer_split"], bool(run.get("thin_data_peers")))
            config = load_config(run["model_config"])
            tensors = multiplied_out(tensors, config, int(run["subspace"]), int(run["seed"]), free)
        _write_tensors(out / shard, tensors)
        weight_map |= dict.fromkeys(tensors, shard)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    _write_config(dict(run["model_config"]), checkpoint_dir, out)
    _write_generation(weights, out)
    return checkpoints[0].iteration


def _common_checkpoints(checkpoint_dir: Path, best: bool) -> list[Checkpoint]:
    """One verified checkpoint per stage, all of one iteration and one model."""
    where = str(checkpoint_dir)
    stages = stages_in(checkpoint_dir)
    if stages != list(range(len(stages))) or len(stages) < 2:
        raise InputError(where, "", f"expected the folders stage_00000, stage_00001, ..., found those of stages {stages}")
    checkpoints = best_checkpoints(checkpoint_dir, stages[-1]) if best else _newest(checkpoint_dir, stages, where)
    if len({checkpoint.model_hash for checkpoint in checkpoints}) != 1:
        raise InputError(where, "model_hash", "expected checkpoints of one run, found several models, splits or seeds")
    expected = len(checkpoints[0].run["layer_split"])
    if stages[-1] != expected:
        raise InputError(where, "", f"expected checkpoints of stages 0 to {expected}, found up to {stages[-1]}")
    return checkpoints


def _newest(checkpoint_dir: Path, stages: list[int], where: str) -> list[Checkpoint]:
    iteration = latest_common_iteration(checkpoint_dir, stages[-1])
    if iteration is None:
        raise InputError(where, "", f"expected an iteration of which stages 0 to {stages[-1]} all have an intact checkpoint")
    found = [verified_checkpoint(step_folder(checkpoint_dir, stage, iteration)) for stage in stages]
    return [checkpoint for checkpoint in found if checkpoint is not None]


def _starts_from(checkpoint: Checkpoint) -> tuple[WeightsSpec, AdapterSpec]:
    """What the manifest says of the run's weights and adapters; an older one says nothing. Raises InputError."""
    where, run = str(checkpoint.folder / MANIFEST), checkpoint.run
    try:
        weights: WeightsSpec = from_plain(WeightsSpec, run.get("weights", {}), "weights")
        adapters: AdapterSpec = from_plain(AdapterSpec, run.get("adapters", {}), "adapters")
    except RemoteProtocolError as error:
        raise InputError(where, "run", str(error)) from error
    check_ranges(weights, where, "weights.")
    check_ranges(adapters, where, "adapters.")
    return weights, adapters


def _write_adapters(weights: WeightsSpec, adapters: AdapterSpec, checkpoints: list[Checkpoint], out: Path) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`: of all stages together, they are small."""
    tensors = {name: tensor for checkpoint in checkpoints for name, tensor in load_file(checkpoint.folder / MODEL).items()}
    config = lora_config(adapters, task_type="CAUSAL_LM", inference_mode=True)
    config.base_model_name_or_path, config.revision = weights.source, weights.revision or None
    config.save_pretrained(out)
    _write_tensors(out / "adapter_model.safetensors", {peft_name(name): tensor for name, tensor in tensors.items()})


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Safetensors, readable by whom the umask lets: the library itself makes files that only their owner may read."""
    mode = path.with_suffix(".mode")
    mode.touch()
    save_file(tensors, path, metadata={"format": "pt"})
    shutil.copymode(mode, path)
    mode.unlink()


def _write_config(model_config: dict[str, Any], checkpoint_dir: Path, out: Path) -> None:
    config = load_config(model_config, str(checkpoint_dir))
    config.architectures = [type(build_skeleton(config)).__name__]
    config.save_pretrained(out)


def _write_generation(weights: WeightsSpec, out: Path) -> None:
    """The pre-trained model's settings for sampling, where it has any and they can still be had."""
    if not weights.source:
        return
    try:
        found = PretrainedFiles(weights).find(GENERATION)
    except InputError as error:
        logger.warning("the generation settings of %s are left out: %s", weights.source, error)
        return
    if found is not None:
        shutil.copyfile(found, out / GENERATION)
