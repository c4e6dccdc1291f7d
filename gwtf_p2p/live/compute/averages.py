"""The averages that one peer takes part in, from its gradient to the optimizer step that takes the result.

Where copies of a stage are averaged now and then (`protocol/replica_sync`), a group averages one number in a local iteration:
the mean of its members' norms, by microbatches. So all of a stage say the same to the coordinator, and clip alike.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from gwtf_p2p.live.compute.all_reduce import Averager as GroupAverager
from gwtf_p2p.live.compute.averaging_group import AveragingGroup
from gwtf_p2p.live.compute.compute import Compute, copy_with, state_digest
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.messages import Prepare
from gwtf_p2p.training.compute.gradients import squared_norm
from gwtf_p2p.training.compute.optimizer import NO_STATE, StepReport
from gwtf_p2p.training.compute.values import Gradient, HeldGradient, whole
from gwtf_p2p.training.state.replicas import GradientOf

AVERAGE_BOUND_S = 600.0
"""Only a bound on a leaked attempt: the coordinator's deadlines, from measured times, end an attempt long before."""

COPIES, NORM = "copies", "norm"
"""What else is averaged than gradients."""


@dataclass(frozen=True, slots=True)
class AverageResult:
    """Mean gradient, a digest that is equal for all members, and the seconds that it took.

    `taken` is called when the optimizer step takes this average, which others may have got as well or not. Where copies of a
    stage may differ: `gradient` is the peer's own in a local iteration (None: it had no microbatch), `squared_norm` is by what
    all clip there (None: by the gradient's), and `copies` is the average of them.
    """

    gradient: Gradient | None
    digest: str
    seconds: float
    taken: Callable[[], None] = lambda: None
    squared_norm: float | None = None
    copies: Gradient | None = None


class AverageFailureError(Exception):
    """An all-reduce attempt failed, perhaps because of `suspect`; the inputs are untouched. `refused`: what the suspect has
    sent is not taken."""

    def __init__(self, reason: str, suspect: PeerId | None, *, refused: bool = False) -> None:
        self.reason, self.suspect, self.refused = reason, suspect, refused
        super().__init__(reason)


Averager = Callable[[Prepare, Gradient], Coroutine[Any, Any, AverageResult]]
"""Averages this member's mean gradient with its group. Raises AverageFailureError."""


async def average_of_copies(
    averager: GroupAverager, compute: Compute, group: AveragingGroup, me: PeerId, gradient: Gradient, iteration: int
) -> AverageResult:
    """Of this group, where copies of a stage may differ. Raises AveragingFailed."""
    if compute.run.sync.averages_copies(iteration):
        done = await averager.average(replace(group, of=COPIES), copy_with(compute, gradient), AVERAGE_BOUND_S)
        return AverageResult(GradientOf(done.gradient), done.digest, done.seconds, copies=done.gradient)
    squared = await compute.in_thread(lambda: squared_norm(gradient))
    has_share = group.weights[group.members.index(me)] > 0
    own = await averager.kept(gradient) if has_share else None  # what is counted after this attempt is none of its step's
    norm = HeldGradient({NORM: torch.tensor([math.sqrt(squared)])})
    done = await averager.average(replace(group, of=NORM), norm, AVERAGE_BOUND_S)
    if len(group.members) > 1:
        squared = float(whole(done.gradient, NORM)[0]) ** 2
    return AverageResult(own, done.digest, done.seconds, squared_norm=squared)


class Averages:
    """The averages of a peer, running or done, by (iteration, attempt), and the steps that take them."""

    def __init__(
        self,
        compute: Compute,
        average: Averager,
        feed: Callable[[ev.Event], object],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        report: Callable[[ef.Report], None],
    ) -> None:
        self._compute, self._mean_of_all, self._feed, self._spawn, self._report = compute, average, feed, spawn, report
        self._running: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._done: dict[tuple[int, int], AverageResult] = {}

    def start(self, prepare: Prepare) -> None:
        self._running[prepare.iteration, prepare.attempt] = self._spawn(self._average(prepare))

    def step(self, step: ef.Step) -> None:
        """Taken at once: a download that follows drops what is kept, and this step is then of weights that it replaces. Of a
        step that is skipped there may be no average."""
        kept = self._done.pop((step.iteration, step.attempt), None)
        if step.gradient_norm < 0:
            self._spawn(self._skip(step))
        else:
            assert kept is not None, f"no average of iteration {step.iteration}, attempt {step.attempt} is kept"
            self._spawn(self._step(step, kept))

    def drop_before(self, version: int) -> None:
        """Those of iterations whose weights are replaced."""
        for key in [key for key in {*self._done, *self._running} if key[0] < version]:
            self.cancel(key)

    async def _average(self, prepare: Prepare) -> None:
        key = (prepare.iteration, prepare.attempt)
        if not any(prepare.weights):  # no honest coordinator asks for it, and there is nothing to divide by
            self._running.pop(key, None)
            self._feed(ev.AverageFailed(*key, "no microbatch is in this average"))
            return
        gradient = await self._compute.mean_gradient(prepare.iteration)
        if not await self._compute.can_apply(gradient, prepare.iteration):
            self._running.pop(key, None)
            self._feed(ev.AverageFailed(*key, "its gradient is not finite", finite=False))
            return
        state = asyncio.create_task(self._state_before(prepare.iteration))  # while the others' parts are on their way
        try:
            self._done[key] = done = await self._mean_of_all(prepare, gradient)
        except AverageFailureError as error:
            self._feed(ev.AverageFailed(*key, error.reason, error.suspect, refused=error.refused))
            return
        finally:
            self._running.pop(key, None)
        digest = await state
        squared, mean = done.squared_norm, done.gradient
        if squared is None and mean is not None:
            squared = await self._compute.in_thread(lambda: squared_norm(mean))
        if key in self._done:
            self._feed(ev.AverageDone(*key, done.digest, done.seconds, squared or 0.0, digest))

    async def _state_before(self, iteration: int) -> str:
        """The digest of the state that the average is for; '' where it is not all here, or others of the stage have another."""
        is_here = self._compute.optimizer.steps != NO_STATE and self._compute.run.sync.is_whole(iteration)
        return await state_digest(self._compute) if is_here else ""

    def cancel(self, key: tuple[int, int]) -> None:
        """Nobody waits for this average any more, running or done."""
        self._done.pop(key, None)
        task = self._running.pop(key, None)
        if task is not None:
            task.cancel()

    async def _step(self, step: ef.Step, result: AverageResult) -> None:
        report = await self._compute.step(result.gradient, step, result.copies)
        result.taken()
        self._stepped(step, report)

    async def _skip(self, step: ef.Step) -> None:
        self._stepped(step, await self._compute.skip(step))

    def _stepped(self, step: ef.Step, report: StepReport) -> None:
        self._report(ef.Report("optimizer_step", {"iteration": step.iteration, **asdict(report)}))
        self._feed(ev.Stepped(step.iteration))
