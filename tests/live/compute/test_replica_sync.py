"""Two copies of a stage that are averaged every three iterations, against the same algorithm in one process."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import pytest
import torch
from torch import Tensor, nn

from gwtf_p2p.live.compute.all_reduce import Averager
from gwtf_p2p.live.compute.averages import AverageResult, average_of_copies
from gwtf_p2p.live.compute.averaging_group import AveragingGroup
from gwtf_p2p.live.compute.compute import Compute, state_digest
from gwtf_p2p.protocol.effects import Step
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.compute.gradients import squared_norm
from gwtf_p2p.training.compute.values import all_of
from gwtf_p2p.training.model.split import PartSpec, build_stage_part
from gwtf_p2p.training.turns import take_turns
from tests.live.conftest import LivePeer, StartPeer
from tests.training.swarm import LENGTH, LLAMA, ROWS, run_record

pytestmark = pytest.mark.live

EVERY, ITERATIONS, CLIP = 3, 7, 0.05
SHARES = [(2, 1), (1, 2), (1, 1), (0, 3), (2, 1), (3, 0), (1, 1)]
"""Microbatches of the two copies in each iteration; one without any keeps its weights until the next average."""


def record(**changes: object) -> RunRecord:
    adamw = OptimizerSpec(learning_rate=1e-2, weight_decay=0.1, gradient_clip=CLIP)
    return run_record(LLAMA, 1, optimizer=adamw, total_iterations=ITERATIONS, **{"replica_sync": EVERY, **changes})


def work(numbers: Iterator[int]) -> tuple[Tensor, Tensor]:
    """Input of a microbatch, and the gradient of its output, drawn from a number."""
    generator = torch.Generator().manual_seed(next(numbers))
    shape = (ROWS, LENGTH, LLAMA["hidden_size"])
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


class Reference:
    """One copy: torch's own AdamW, over plain gradients."""

    def __init__(self, run: RunRecord) -> None:
        self.part = build_stage_part(PartSpec.of(run, 1))
        self.parameters: dict[str, nn.Parameter] = dict(self.part.parameters)
        spec = run.optimizer
        decayed = [p for p in self.parameters.values() if p.dim() >= 2]
        spared = [p for p in self.parameters.values() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)
        self.mean: list[Tensor] = []

    def learn(self, microbatches: Sequence[tuple[Tensor, Tensor]]) -> None:
        parameters = list(self.parameters.values())
        sums = [torch.zeros_like(p) for p in parameters]
        for input_BTD, gradient_BTD in microbatches:
            (output,) = self.part.forward((input_BTD,))
            for total, each in zip(sums, torch.autograd.grad(output, parameters, gradient_BTD), strict=True):
                total += each
        self.mean = [total / max(1, len(microbatches)) for total in sums]

    @property
    def norm(self) -> float:
        return math.sqrt(sum(float(g.double().square().sum()) for g in self.mean))

    def step(self, norm: float, number: int) -> None:
        for parameter, gradient in zip(self.parameters.values(), self.mean, strict=True):
            parameter.grad = gradient * (CLIP / norm if norm > CLIP else 1.0)
            if parameter in self.optimizer.state:
                self.optimizer.state[parameter]["step"].fill_(float(number))  # versions count, also those that it sat out
        self.optimizer.step()

    def tensors(self) -> list[Tensor]:
        """Weights and moments."""
        states = [self.optimizer.state[p] for p in self.parameters.values()]
        return [*self.parameters.values(), *(s["exp_avg"] for s in states), *(s["exp_avg_sq"] for s in states)]


def reference_iteration(copies: Sequence[Reference], shares: Sequence[int], iteration: int) -> None:
    total = sum(shares)
    if (iteration + 1) % EVERY and iteration + 1 != ITERATIONS:
        norm = sum(n * copy.norm for n, copy in zip(shares, copies, strict=True)) / total
        for n, copy in zip(shares, copies, strict=True):
            if n:
                copy.step(norm, iteration)
        return
    means = [sum(n * copy.mean[k] for n, copy in zip(shares, copies, strict=True)) / total for k in range(len(copies[0].mean))]
    with torch.no_grad():
        for theirs in zip(*(copy.tensors() for copy in copies), strict=True):
            mean = sum(n * tensor for n, tensor in zip(shares, theirs, strict=True)) / total
            for tensor in theirs:
                tensor.copy_(mean)
    for copy in copies:
        copy.mean = [mean.clone() for mean in means]  # type: ignore[union-attr]
        copy.step(copy.norm, iteration)


class Member:
    """A peer of the stage as it runs live."""

    def __init__(self, peer: LivePeer, run: RunRecord, averager: Averager | None = None) -> None:
        self.peer = peer
        executor = StageExecutor(build_stage_part(PartSpec.of(run, 1)), ExecutorConfig(), run.loss)
        self.compute = Compute(run, take_turns(executor, run.optimizer))
        self.averager = averager or Averager(peer.rpc)
        self.names = count()

    def learn(self, iteration: int, microbatches: Sequence[tuple[Tensor, Tensor]]) -> None:
        for input_BTD, gradient_BTD in microbatches:
            name = MicrobatchId(PeerId("data"), iteration, next(self.names))
            self.compute.executor.forward(name, (input_BTD,))
            self.compute.executor.backward(name, (gradient_BTD,))

    async def average(self, group: AveragingGroup, iteration: int) -> AverageResult:
        gradient = await self.compute.mean_gradient(iteration)
        return await average_of_copies(self.averager, self.compute, group, self.peer.id, gradient, iteration)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.compute.executor.part.parameters


async def test_it_is_the_same_algorithm_as_in_one_process(start_peer: StartPeer) -> None:
    run = record()
    members = [Member(await start_peer(), run) for _ in range(2)]
    copies = [Reference(run) for _ in range(2)]
    mine, theirs = count(), count()
    for iteration, shares in enumerate(SHARES):
        for member, copy, n in zip(members, copies, shares, strict=True):
            member.learn(iteration, [work(mine) for _ in range(n)])
            copy.learn([work(theirs) for _ in range(n)])
        group = AveragingGroup(f"run.{iteration}", tuple(m.peer.id for m in members), tuple(map(float, shares)))
        found = await asyncio.gather(*(member.average(group, iteration) for member in members))
        assert found[0].digest == found[1].digest and found[0].squared_norm == found[1].squared_norm, "all say the same"
        for member, result in zip(members, found, strict=True):
            squared = result.squared_norm
            if squared is None:
                assert result.gradient is not None and run.sync.averages_copies(iteration)
                squared = squared_norm(result.gradient)
            await member.compute.step(result.gradient, Step(iteration, 1, math.sqrt(squared), ()), result.copies)
        reference_iteration(copies, shares, iteration)
        for member, copy in zip(members, copies, strict=True):
            for name, expected in copy.parameters.items():
                torch.testing.assert_close(member.weights[name].detach(), expected.detach(), rtol=0, atol=2e-6)
        digests = {await state_digest(member.compute) for member in members}
        assert len(digests) == (1 if run.sync.is_whole(iteration + 1) else 2), f"after iteration {iteration}"
    for member in members:
        member.compute.close()


async def test_copies_and_norms_are_averaged_in_rows_too(start_peer: StartPeer) -> None:
    """Four of a stage of which two at most average all with all; the norm is one value, which one lane alone has."""
    run = record()
    members = [Member(await start_peer(), run) for _ in range(4)]
    for number, member in enumerate(members[:3]):
        member.learn(0, [work(count(number))])
    ids, weights = tuple(m.peer.id for m in members), (1.0, 1.0, 1.0, 0.0)
    norms = [math.sqrt(squared_norm(await member.compute.mean_gradient(0))) for member in members]
    for iteration in (0, EVERY - 1):
        group = AveragingGroup(f"run.{iteration}", ids, weights, all_with_all=2)
        found = await asyncio.gather(*(member.average(group, iteration) for member in members))
        assert len({result.digest for result in found}) == 1
        assert {result.squared_norm for result in found} == {found[0].squared_norm}
        if not run.sync.averages_copies(iteration):
            assert found[0].squared_norm == pytest.approx((sum(norms) / 3) ** 2)
            assert found[3].gradient is None, "it had no microbatch"


async def test_what_is_counted_after_an_attempt_is_none_of_its_step(start_peer: StartPeer) -> None:
    run = record()
    members = [Member(await start_peer(), run) for _ in range(2)]
    for member in members:
        member.learn(0, [work(count(1))])
    group = AveragingGroup("run.0", tuple(m.peer.id for m in members), (1.0, 1.0))
    found = await asyncio.gather(*(member.average(group, 0) for member in members))
    assert found[0].gradient is not None
    before = all_of(found[0].gradient)
    members[0].learn(0, [work(count(2))])
    after = all_of(found[0].gradient)
    assert all(torch.equal(before[name], after[name]) for name in before)


async def test_one_copy_alone_has_the_bits_of_a_run_without(start_peer: StartPeer) -> None:
    """Whichever iteration it is: the gradient is its own, and so is the norm by which it is clipped."""
    peer = await start_peer()
    averager, digests = Averager(peer.rpc), []
    for every, iteration in ((0, 0), (EVERY, 0), (EVERY, EVERY - 1)):
        member = Member(peer, record(replica_sync=every), averager)
        member.learn(0, [work(count(1)), work(count(5))])
        gradient = await member.compute.mean_gradient(0)
        norm = math.sqrt(squared_norm(gradient))
        if every:
            result = await member.average(AveragingGroup("run.0", (peer.id,), (2.0,)), iteration)
            assert result.squared_norm in (None, squared_norm(gradient))
            await member.compute.step(result.gradient, Step(iteration, 1, norm, ()), result.copies)
        else:
            await member.compute.step(gradient, Step(iteration, 1, norm, ()))
        digests.append(await state_digest(member.compute))
    assert len(digests) == 3 and len({*digests}) == 1
