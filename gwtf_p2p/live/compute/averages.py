"""The averages that one peer takes part in, from its gradient to the optimizer step that takes the result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any

from gwtf_p2p.live.compute.compute import Compute, state_digest
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.messages import Prepare
from gwtf_p2p.training.compute.gradients import squared_norm
from gwtf_p2p.training.compute.optimizer import StepReport
from gwtf_p2p.training.compute.values import Gradient


@dataclass(frozen=True, slots=True)
class AverageResult:
    """Mean gradient, a digest that is equal for all members, and the seconds that it took.

    `taken` is called when the optimizer step takes this average, which others may have got as well or not.
    """

    gradient: Gradient
    digest: str
    seconds: float
    taken: Callable[[], None] = lambda: None


class AverageFailureError(Exception):
    """An all-reduce attempt failed, perhaps because of `suspect`; the inputs are untouched. `refused`: what the suspect has
    sent is not taken."""

    def __init__(self, reason: str, suspect: PeerId | None, *, refused: bool = False) -> None:
        self.reason, self.suspect, self.refused = reason, suspect, refused
        super().__init__(reason)


Averager = Callable[[Prepare, Gradient], Coroutine[Any, Any, AverageResult]]
"""Averages this member's mean gradient with its group. Raises AverageFailureError."""


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
        state = asyncio.create_task(state_digest(self._compute))  # while the others' parts are on their way
        try:
            self._done[key] = done = await self._mean_of_all(prepare, gradient)
        except AverageFailureError as error:
            self._feed(ev.AverageFailed(*key, error.reason, error.suspect, refused=error.refused))
            return
        finally:
            self._running.pop(key, None)
        digest = await state
        squared = await self._compute.in_thread(lambda: squared_norm(done.gradient))
        if key in self._done:
            self._feed(ev.AverageDone(*key, done.digest, done.seconds, squared, digest))

    def cancel(self, key: tuple[int, int]) -> None:
        """Nobody waits for this average any more, running or done."""
        self._done.pop(key, None)
        task = self._running.pop(key, None)
        if task is not None:
            task.cancel()

    async def _step(self, step: ef.Step, result: AverageResult) -> None:
        report = await self._compute.step(result.gradient, step)
        result.taken()
        self._stepped(step, report)

    async def _skip(self, step: ef.Step) -> None:
        self._stepped(step, await self._compute.skip(step))

    def _stepped(self, step: ef.Step, report: StepReport) -> None:
        self._report(ef.Report("optimizer_step", {"iteration": step.iteration, **asdict(report)}))
        self._feed(ev.Stepped(step.iteration))
