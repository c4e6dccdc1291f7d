"""How much memory a part of a run takes, from its record alone: no weight is allocated, none is read.

Weights, gradient sum and AdamW's two moments are 16 bytes a parameter (10 with moments in 8 bits, 8 without moments), and what
is frozen under adapters is 4. Beside that there is no copy of any of it: averages, checkpoints, downloads and steps go through
a part's tensors one by one, or piece by piece (`live/compute/all_reduce_round`, `compute/updates`, `state/stored`), so what
they take is the largest tensor and some buffers. Between its passes a microbatch keeps, of every matrix, the values that go in
and those that come out (measured against torch's own count: 0.8 to 1.45 of it, most families within 2 %; a table is looked up,
and keeps none); the head's logits count three times, with their softmax and their gradient. In a subspace the products that
stand for weights are there while a pass lasts, and so are their gradients. What torch's kernels need for moments comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gwtf_p2p.protocol.core.lifecycle import done_bytes
from gwtf_p2p.protocol.view.memory_plan import StageMemory
from gwtf_p2p.protocol.wire.recipe import EIGHT_BIT_BLOCK, EIGHT_BIT_LEAST
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.protocol.wire.tensor_formats import FLOAT32
from gwtf_p2p.training.model.config import RUN_RECORD, load_config
from gwtf_p2p.training.model.split import PartSpec, all_shapes, boundary_of
from gwtf_p2p.training.model.structure import embedding_weights

BYTES_OF_MOMENTS = {"adamw": 8, "adamw_8bit": 2, "adafactor": 0}
"""Adafactor's are a row and a column of each matrix."""

BYTES_OF_A_WEIGHT = BYTES_OF_A_GRADIENT = BYTES_OF_A_VALUE = 4

LARGEST_TENSORS = {"adamw": 1, "adamw_8bit": 1, "adafactor": 4}
"""So many times the largest tensor is there at once: a gradient on its way to the sum, or what Adafactor makes of one in a
step."""

BUFFER_BYTES = 32_000_000
"""Batches of an average on their way, pieces of a step, chunks of a state: whatever the model."""

LOGITS = 3

Shapes = Mapping[str, tuple[tuple[int, ...], bool]]


def parameters_of(shapes: Shapes) -> tuple[int, int]:
    """(trained, frozen) numbers of parameters."""
    trained = sum(math.prod(shape) for shape, is_trained in shapes.values() if is_trained)
    return trained, sum(math.prod(shape) for shape, _ in shapes.values()) - trained


def state_bytes(run: RunRecord, shapes: Shapes) -> int:
    """Weights, gradient sum and moments; where steps are delayed, weights and sums of two iterations."""
    trained, frozen = parameters_of(shapes)
    total = (BYTES_OF_A_WEIGHT + BYTES_OF_A_GRADIENT) * trained + BYTES_OF_A_WEIGHT * frozen
    total *= 2 if run.delay_optimizer_step else 1
    if run.optimizer.kind != "adamw_8bit":
        return total + BYTES_OF_MOMENTS[run.optimizer.kind] * trained
    for shape, is_trained in shapes.values():
        values = math.prod(shape) if is_trained else 0
        in_eight_bits = BYTES_OF_MOMENTS["adamw_8bit"] * (values + BYTES_OF_A_VALUE * -(-values // EIGHT_BIT_BLOCK))
        total += in_eight_bits if values >= EIGHT_BIT_LEAST else BYTES_OF_MOMENTS["adamw"] * values
    return total


def stage_memory(run: RunRecord, stage: int, where: str = RUN_RECORD) -> StageMemory:
    """What one stage takes (0: the data peers', whose microbatches of an iteration count as one).

    Raises InputError where the record describes no model.
    """
    spec = PartSpec.of(run, stage)
    shapes = all_shapes(spec, where)
    full = all_shapes(replace(spec, subspace=0), where) if spec.subspace else shapes
    trained, _ = parameters_of(shapes)
    products = BYTES_OF_A_WEIGHT * sum(math.prod(shape) for name, (shape, _) in full.items() if shapes[name][0] != shape)
    has_tables = spec.holds_embedding and not spec.holds_head  # a table may be the head as well
    looked_up = embedding_weights(load_config(run.built_config, where), where) if has_tables else ()
    values = _values_of_a_token(run, {name: shape for name, shape in full.items() if name not in looked_up}, spec.holds_head)
    largest = max((math.prod(shape) for shape, is_trained in shapes.values() if is_trained), default=0)
    # Where a sum can be made again, gradients go into it at once (`StageExecutor.kept`); else there is a second set of them.
    in_place = stage > 0 and run.recovery == "exact"
    gradients = LARGEST_TENSORS[run.optimizer.kind] * largest if in_place else trained + largest
    ends = None if stage else run.end_bytes
    kept = done_bytes(run.activation_bytes, run.gradient_bytes) if ends is None else done_bytes(ends, ends)
    return StageMemory(
        stage=stage,
        state=state_bytes(run, shapes),
        beside=BYTES_OF_A_GRADIENT * gradients + 2 * products + BUFFER_BYTES,
        activations=BYTES_OF_A_VALUE * run.microbatch_size * run.sequence_length * values,
        microbatch=kept * (1 if stage else run.largest_share),
        recomputes=run.recompute and stage > 0,
    )


def full_hop_bytes(run: RunRecord, where: str = RUN_RECORD) -> int:
    """What would cross a boundary of this model if all values did, in float32."""
    full = boundary_of(replace(PartSpec.of(run, 0), subspace=0), where) if run.subspace else run.boundary
    return sum(tensor.encoded_bytes(FLOAT32) for tensor in full) or FLOAT32.encoded_bytes(run.boundary_values)


def _values_of_a_token(run: RunRecord, shapes: Shapes, with_head: bool) -> int:
    experts = _experts(run.model_config)
    found = 0
    for name, (shape, _) in shapes.items():
        if len(shape) == 3:  # one matrix for each expert, of which a token takes some
            found += experts * (shape[1] + shape[2])
        else:
            share = experts / _of_experts(run.model_config) if ".experts." in name else 1.0
            found += math.ceil(share * sum(shape))
    if with_head:
        found += LOGITS * max((shape[0] for shape, _ in shapes.values() if len(shape) == 2), default=0)
    return found


def _experts(config: Mapping[str, Any]) -> int:
    """Of how many experts a token goes through."""
    return max(1, _number(config, "num_experts_per_tok"))


def _of_experts(config: Mapping[str, Any]) -> int:
    return max(_experts(config), *(_number(config, name) for name in ("num_experts", "num_local_experts", "n_routed_experts")))


def _number(config: Mapping[str, Any], name: str) -> int:
    inner = config.get("text_config")
    value = config.get(name, inner.get(name) if isinstance(inner, Mapping) else None)
    return value if isinstance(value, int) else 0
