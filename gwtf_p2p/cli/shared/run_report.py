"""What a run will take: memory of each stage, bytes of each hop and average, how layers are split, and what is trained on.

Figures are of float32: weights, gradient sum and AdamW's two moments are 16 bytes a parameter, without moments 8, and what is
frozen under adapters is 4. While an iteration is under way a
stage peer also keeps, of each microbatch that it holds, the input and the output and both gradients. What torch needs while it
computes comes on top and depends on the device; `gwtf doctor` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gwtf_p2p.protocol.core.lifecycle import done_bytes
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.replica_sync import what_holds
from gwtf_p2p.protocol.wire.dataset import parts_of
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.protocol.wire.tensor_formats import average_bytes

BALANCE = ("router_aux_loss_coef", "aux_loss_alpha", "router_z_loss_coef")
"""Fields of configs that weigh a loss of the router's."""


def report_of(run: RunRecord, where: str) -> dict[str, Any]:
    """Plain figures of a checked run. Raises InputError: a dataset, or the tokenizer does not go with it."""
    from gwtf_p2p.training.data.tokenizer import load_tokenizer
    from gwtf_p2p.training.model.memory import full_hop_bytes, parameters_of
    from gwtf_p2p.training.model.split import PartSpec, all_shapes

    counts = [parameters_of(all_shapes(PartSpec.of(run, stage), where)) for stage in range(run.stages + 1)]
    trained = sum(count for count, _ in counts)
    tokenizer = load_tokenizer(run.tokenizer)
    return {
        "run_id": run.run_id,
        "parameters": sum(trained + frozen for trained, frozen in counts),
        "trained_parameters": trained,
        "stages": [_stage(run, stage, count) for stage, count in enumerate(counts)],
        "hop_bytes": run.activation_bytes,
        "gradient_bytes": run.gradient_bytes,
        "wire": asdict(run.wire),
        "hop_ratio": (run.activation_bytes + run.gradient_bytes) / (2 * full_hop_bytes(run, where)),
        "subspace": run.subspace,
        "end_bytes": run.end_bytes,
        "replica_sync": run.replica_sync,
        "tokens_per_iteration": _tokens(run),
        "datasets": _datasets(run, tokenizer),
        "vocabulary": tokenizer.vocabulary,
        "left_out": _left_out(run, where),
    }


def told(report: Mapping[str, Any]) -> list[str]:
    """The same in lines for people."""
    lines = [f"run {report['run_id']}: {report['parameters']:,} parameters, {len(report['stages']) - 1} stages"]
    for stage in report["stages"]:
        what = "data peers" if stage["stage"] == 0 else f"layers {stage['layers'][0]}-{stage['layers'][1] - 1}"
        average = f"{_size(stage['average_bytes'])} up and down per average of two"
        if report["replica_sync"]:
            average += f" of copies, {_size(stage['average_bytes'] / report['replica_sync'])} per iteration"
        lines.append(
            f"  stage {stage['stage']} ({what}): {stage['parameters']:,} parameters, {_size(stage['state_bytes'])} of weights, "
            f"gradients and moments, {_size(stage['microbatch_bytes'])} more per microbatch held, "
            f"{_size(stage['least_memory_bytes'])} of memory at least; "
            f"{average}"
        )
    lines.append(
        f"  a hop carries {_size(report['hop_bytes'])} forward ({report['wire']['activations']}) and "
        f"{_size(report['gradient_bytes'])} backward ({report['wire']['gradients']}): {report['hop_ratio']:.3g} of all values "
        f"in float32; averages are {report['wire']['averages']}"
    )
    if report["end_bytes"] is not None:
        lines.append(
            f"  data peers are thin: {_size(report['end_bytes'])} to and from them at most; embedding in the first stage, "
            "norm, head and loss in the last"
        )
    if report["replica_sync"]:
        lines.append(f"  {what_holds(report['replica_sync'])}")
    if report["subspace"]:
        lines.append(
            f"  boundaries are in a subspace of 1/{report['subspace']} of the width: another model than without, of fewer "
            "weights; the token ids travel with them, and every peer has the embedding as it was drawn"
        )
    lines.append(f"  an iteration is {report['tokens_per_iteration']:,} tokens; the tokenizer has {report['vocabulary']:,} ids")
    lines += [f"  left out: {what}" for what in report["left_out"]]
    for dataset in report["datasets"]:
        lines += [f"  {line}" for line in dataset["notes"]]
        lines.append(f"  dataset {dataset['path']}: {dataset['summary']}")
    return lines


def _stage(run: RunRecord, stage: int, counts: tuple[int, int]) -> dict[str, Any]:
    from gwtf_p2p.training.model.memory import BYTES_OF_A_WEIGHT, stage_memory

    trained, frozen = counts
    memory = stage_memory(run, stage)
    return {
        "stage": stage,
        "layers": list(run.layer_split[stage - 1]) if stage else [],
        "parameters": trained + frozen,
        "state_bytes": memory.state,
        "least_memory_bytes": memory.least,
        "microbatch_bytes": done_bytes(run.activation_bytes, run.gradient_bytes),
        "average_bytes": _average_bytes(run, stage, memory.state - BYTES_OF_A_WEIGHT * frozen),
    }


def _average_bytes(run: RunRecord, stage: int, copy_bytes: int) -> int:
    """Of gradients, or of copies: weights, gradients and moments, in float32."""
    from gwtf_p2p.training.model.split import PartSpec, parameter_shapes

    if run.sync.is_on:
        return copy_bytes
    return average_bytes(parameter_shapes(PartSpec.of(run, stage)).values(), run.wire.averages, run.wire.rank)


def _left_out(run: RunRecord, where: str) -> list[str]:
    """What the model's own library may add to its loss, and this program does not."""
    from gwtf_p2p.training.model.config import load_config

    text = load_config(run.model_config, where).get_text_config(decoder=True)
    found = [name for name in BALANCE if getattr(text, name, None)]
    each = "the experts' balance loss, whose means are over all layers and so no sum over stages; "
    if run.loss.balance:
        each += f"loss.balance = {run.loss.balance:g} adds each layer's own instead, the mean over layers"
    else:
        each += "routers learn by the loss alone, unless loss.balance adds each layer's own"
    return [f"{name} = {getattr(text, name)}: {each}" for name in found]


def _tokens(run: RunRecord) -> int:
    return run.tokens_per_iteration


def _datasets(run: RunRecord, tokenizer: Any) -> list[dict[str, Any]]:
    from gwtf_p2p.training.data.documents import Documents
    from gwtf_p2p.training.data.local_files import is_local

    found = []
    for part in parts_of(run.dataset):
        notes: list[str] = []
        try:
            documents = Documents(part, tokenizer, notes.append)
        except InputError as error:
            if is_local(part):
                raise
            summary = f"not checked, the hub cannot be asked ({error.expected})"
        else:
            kind, column = documents.files[0].format, documents.column
            inside = "one document each" if kind in ("text", "source") else f"column {column.name!r} ({column.kind})"
            summary = f"{len(documents.files)} files of {kind}, {inside}"
        found.append({"path": part.path, "weight": part.weight, "summary": summary, "notes": notes})
    return found


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
