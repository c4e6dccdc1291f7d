"""Two versions of a part's weights that take turns: w[i + 1] = step(w[i], gradient at w[i - 1]), whatever is under way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.control import control_losses
from gwtf_p2p.training.data.batches import open_data
from gwtf_p2p.training.model.split import PartSpec, build_data_part, build_stage_part
from gwtf_p2p.training.state.tensors import export_state, live_state, load_state, state_hash
from gwtf_p2p.training.turns import Turns, take_turns
from tests.training.swarm import LLAMA, microbatch, run_record

ITERATIONS = 6


def stage(run: RunRecord) -> Turns[StageExecutor]:
    newest, before = (StageExecutor(build_stage_part(PartSpec.of(run, 1)), ExecutorConfig()) for _ in range(2))
    return take_turns(newest, run.optimizer, before)


def data(run: RunRecord) -> Turns[DataExecutor]:
    newest, before = (DataExecutor(build_data_part(PartSpec.of(run, 0)), ExecutorConfig()) for _ in range(2))
    return take_turns(newest, run.optimizer, before)


def a_run(kind: str = "adamw") -> RunRecord:
    spec = OptimizerSpec(kind=kind, learning_rate=3e-3, gradient_clip=0.0)
    return replace(run_record(LLAMA, stages=1, optimizer=spec, dataset=f"text:{__file__}"), delay_optimizer_step=True)


class Swarm:
    """One stage and one data peer in one process. Of each iteration, half of the microbatches have gone forwards before the
    step of the iteration before it, and come back after it."""

    def __init__(self, run: RunRecord) -> None:
        self.run, (self.source, _) = run, open_data(run)
        self.stage, self.data = stage(run), data(run)
        self.losses: list[float] = []

    def batch(self, iteration: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.source.batch(iteration, index, 0, 1)

    def forwards(self, iteration: int, index: int) -> None:
        name, (tokens, labels) = microbatch(index, iteration), self.batch(iteration, index)
        data, stage = self.data.of(iteration), self.stage.of(iteration)
        output = stage.forward(name, data.embed(name, tokens, labels))
        loss, self.gradient = data.loss_and_gradient(name, output, labels)
        self.losses.append(loss)

    def backwards(self, iteration: int, index: int) -> None:
        name = microbatch(index, iteration)
        self.data.of(iteration).finish(name, self.stage.of(iteration).backward(name, self.gradient))

    def step(self, iteration: int) -> None:
        for turns in (self.stage, self.data):
            executor = turns.of(iteration)
            turns.optimizer.step(executor.gradient_vector().mean(), iteration)
            turns.stepped()


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "adafactor"])
def test_losses_are_those_of_one_process_with_the_same_delay(kind: str) -> None:
    run = a_run(kind)
    swarm, curve = Swarm(run), []
    swarm.forwards(0, 0)
    for iteration in range(ITERATIONS):
        swarm.backwards(iteration, 0)
        swarm.forwards(iteration, 1)
        swarm.backwards(iteration, 1)
        mean = sum(swarm.losses[-2:]) / 2
        curve.append(mean)
        swarm.forwards(iteration + 1, 0)  # its graph is held across the step
        swarm.step(iteration)
    control = control_losses(run, ITERATIONS, 1)
    assert max(abs(a - b) for a, b in zip(control, curve, strict=True)) < 1e-5
    at_once = control_losses(replace(run, delay_optimizer_step=False), ITERATIONS, 1)
    assert control[0] == at_once[0] and abs(control[1] - at_once[1]) > 1e-4, "the second iteration has the first weights"


def test_a_state_has_both_versions_and_goes_on_to_the_bit() -> None:
    run = a_run()
    there, here = Swarm(run), Swarm(run)
    for iteration in range(3):
        for index in range(2):
            there.forwards(iteration, index)
            there.backwards(iteration, index)
        there.step(iteration)
    for mine, its in ((here.stage, there.stage), (here.data, there.data)):
        state = export_state(its.newest.part.parameters, its.optimizer)
        assert any(name.startswith("previous/") for name in state)
        load_state(mine.newest.part.parameters, mine.optimizer, state)
        mine.reset_gradients()
    for swarm in (here, there):
        for index in range(2):
            swarm.forwards(3, index)
            swarm.backwards(3, index)
        swarm.step(3)
    hashes = [state_hash(live_state(s.stage.newest.part.parameters, s.stage.optimizer)) for s in (here, there)]
    assert hashes[0] == hashes[1] and here.losses[-2:] == there.losses[-2:]


def test_a_step_that_is_skipped_keeps_the_weights_and_gives_the_turn_on() -> None:
    run = a_run()
    turns = stage(run)
    before = {name: p.detach().clone() for name, p in turns.newest.part.parameters.items()}
    turns.optimizer.skip(0, -1.0)
    turns.stepped()
    assert turns.optimizer.steps == 1
    for executor in turns.all:
        assert all(torch.equal(p, before[name]) for name, p in executor.part.parameters.items())


def test_without_a_delay_there_is_one_executor() -> None:
    run = a_run()
    turns = take_turns(StageExecutor(build_stage_part(PartSpec.of(run, 1)), ExecutorConfig()), run.optimizer)
    assert turns.of(0) is turns.of(1) is turns.newest and turns.all == (turns.newest,)
    assert not any(name.startswith("previous/") for name in turns.optimizer.state_tensors())
