"""What a stage takes, said from the run record, beside what torch allocates and keeps for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.model.memory import BUFFER_BYTES, stage_memory
from gwtf_p2p.training.model.split import PartSpec, boundary_of, build_stage_part
from gwtf_p2p.training.state.tensors import export_state
from tests.training.swarm import GPT2, LLAMA, run_record

WIDTHS = {"llama": "hidden_size", "gpt2": "n_embd"}


def of(config: dict[str, Any], *, thin: bool = False) -> tuple[RunRecord, StageExecutor]:
    run = replace(run_record(config), microbatch_size=2, sequence_length=32, thin_data_peers=thin)
    return run, StageExecutor(build_stage_part(PartSpec.of(run, 1)), ExecutorConfig())


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_the_state_is_said_to_the_byte(config: dict[str, Any], kind: str) -> None:
    run, stage = of({**config, WIDTHS[config["model_type"]]: 128})
    run = replace(run, optimizer=OptimizerSpec(kind))
    state = export_state(stage.part.parameters, PartOptimizer(stage.part.parameters, run.optimizer))
    assert any(tensor.dtype == torch.uint8 for tensor in state.values()) == (kind == "adamw_8bit")
    sums = stage.gradient_vector().tensors.values()
    held = sum(tensor.nbytes for name, tensor in state.items() if name != "step") + sum(tensor.nbytes for tensor in sums)
    assert stage_memory(run, 1).state == held


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("config", [LLAMA, {**GPT2, "tie_word_embeddings": False}], ids=["llama", "gpt2"])
def test_the_activations_of_a_microbatch_are_said_within_a_tenth(config: dict[str, Any], *, thin: bool) -> None:
    run, stage = of(config, thin=thin)
    weights = {p.untyped_storage().data_ptr() for p in (*stage.part.model.parameters(), *stage.part.model.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    payload = tuple(torch.ones(tensor.shape) for tensor in stage.part.boundaries.input)  # ids, where data peers are thin
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stage.forward(MicrobatchId(PeerId("d"), 0, 0), payload)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert stage_memory(run, 1).activations == pytest.approx(kept, rel=0.1)


def test_gradients_are_there_twice_only_where_a_sum_cannot_be_made_again() -> None:
    run, stage = of(LLAMA)
    sizes = [parameter.nbytes for parameter in stage.part.parameters.values()]
    exact, fast = stage_memory(run, 1), stage_memory(replace(run, recovery="fast"), 1)
    assert exact.beside - BUFFER_BYTES == max(sizes) and fast.beside - exact.beside == sum(sizes)


def test_a_thin_data_peer_keeps_ids_and_losses_of_its_microbatches() -> None:
    run, _ = of(LLAMA, thin=True)
    run = replace(run, boundary=boundary_of(PartSpec.of(run, 0)))
    ids, a_loss = 2 * 4 * 2 * 32, 4 * 3
    kept = 2 * (ids + a_loss) * run.microbatches_per_data_peer
    assert kept <= stage_memory(run, 0).microbatch <= 2 * kept < stage_memory(replace(run, thin_data_peers=False), 0).microbatch
