"""What is trained is read without a copy: a step waits until all is read, but not for a disk that hangs."""

from __future__ import annotations

import asyncio

import torch

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.readings import Readings
from gwtf_p2p.live.peer.assembly import Place, make_compute
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.protocol.effects import Step
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.training.compute.values import HeldGradient
from gwtf_p2p.training.state.tensors import state_hash
from tests.training.swarm import LLAMA, run_record


def stage() -> Compute:
    return make_compute(PeerConfig("peer"), run_record(LLAMA), Place(Stage(1)))


def gradient_of(compute: Compute) -> HeldGradient:
    return HeldGradient({name: torch.ones_like(p) for name, p in compute.executor.part.parameters.items()})


async def test_a_step_waits_until_the_state_is_read_and_takes_no_copy_of_it() -> None:
    compute = stage()
    try:
        parameter = next(iter(compute.executor.part.parameters.values()))
        reading, other = await compute.read(), await compute.read()
        assert any(tensor.data_ptr() == parameter.data_ptr() for tensor in reading.state.values())
        before = state_hash(reading.state)
        step = asyncio.create_task(compute.step(gradient_of(compute), Step(0, 1, 1.0)))
        assert await asyncio.to_thread(state_hash, reading.state) == before
        assert other.end() and not step.done()
        assert state_hash(reading.state) == before and reading.end()
        await step
        assert state_hash((await compute.read()).state) != before and compute.optimizer.steps == 1
    finally:
        compute.close()


def test_who_reads_for_too_long_is_told_that_it_is_of_no_use() -> None:
    readings = Readings()
    slow, later = readings.begin(0, {}), None
    readings.wait(0.0)
    later = readings.begin(1, {})
    assert not slow.end() and later.end()
    readings.wait()
