"""The compute thread of one peer, and the tensors that it holds.

Tensors live here under (microbatch, slot) as they travel, encoded by the codec of their direction (`boundary`): so what is kept
takes as little memory as it takes of a line, and what is sent again has the same bytes. What each kind of work is, is said in
`works`. The event loop only hands buffers over, and
checks those that come. One thread does all the computing, so torch work is never concurrent with itself and the event loop
never waits for it. Every method whose result is awaited runs in that thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from gwtf_p2p.live.compute.boundary import BoundaryCodecs, BoundaryTensors
from gwtf_p2p.live.compute.memory_errors import memory_errors
from gwtf_p2p.live.compute.process_memory import give_back
from gwtf_p2p.live.compute.readings import Reading, Readings
from gwtf_p2p.live.compute.tensor_store import NO_LIMIT, MemoryLimit, TensorStore
from gwtf_p2p.live.compute.works import DataWorks, StageWorks, Works
from gwtf_p2p.protocol.effects import Step
from gwtf_p2p.protocol.errors import LocalProtocolError, RemoteProtocolError
from gwtf_p2p.protocol.events import Slot, Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.view.contributions import Contributions
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.compute.gradients import squared_norm
from gwtf_p2p.training.compute.optimizer import StepReport
from gwtf_p2p.training.compute.values import Gradient
from gwtf_p2p.training.data.batches import DataSource
from gwtf_p2p.training.data.tokenizer import Tokenizer
from gwtf_p2p.training.state.replicas import Copy, copy_of, take_over
from gwtf_p2p.training.state.tensors import (
    live_state,
    load_moments,
    load_state,
    load_weights,
    state_hash,
    take_contributions,
    with_contributions,
)
from gwtf_p2p.training.turns import Turns

T = TypeVar("T")


class Device(Protocol):
    """Another device than this one, imposed in the compute thread around every computation (`emulation_client.Stretch`)."""

    def begin(self, work: Work, microbatch: MicrobatchId) -> Any: ...

    def end(self, work: Work, microbatch: MicrobatchId, marks: Any, keeps: bool) -> float:
        """Return when this device would be done, with the seconds of a forward that it computes again."""
        ...

    def measured(self, seconds: Mapping[Work, float]) -> dict[Work, float]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Worked:
    """`seconds` of computing, of which `again_s` for a forward that was computed a second time; see `works.Outcome`."""

    seconds: float
    loss: float | None = None
    again_s: float = 0.0
    finite: bool = True


class Compute:
    """Executors, optimizer and tensors of one peer. `data` is a data peer's dataset and which shard of it is its own.
    `evaluated_on`: the microbatches of an evaluation, where this peer does it, and the tokenizer of its prompts.
    `contributions`: of a data peer, what all peers have contributed to its weights."""

    def __init__(
        self,
        run: RunRecord,
        turns: Turns[Any],
        data: tuple[DataSource, int] | None = None,
        limit: MemoryLimit = NO_LIMIT,
    ) -> None:
        self.run, self.turns, self.optimizer = run, turns, turns.optimizer
        self.device: Device | None = None
        self.contributions = Contributions()
        self.evaluated_on: tuple[Sequence[tuple[Tensor, Tensor]], Tokenizer | None] = ((), None)
        self.codecs = BoundaryCodecs.of(run)
        self.store = TensorStore(limit)
        executor = turns.newest
        self._tensors = BoundaryTensors(executor.part.boundaries, self.codecs, self.store, executor.device)
        self._works = _works(turns, self._tensors, data, run)
        self._at_work: set[MicrobatchId] = set()
        self._void: set[MicrobatchId] = set()
        self._readings = Readings()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")

    @property
    def executor(self) -> StageExecutor | DataExecutor:
        """The one with the newest weights."""
        newest: StageExecutor | DataExecutor = self.turns.newest
        return newest

    def payload_bytes(self, slot: Slot) -> int:
        """What a transfer into this slot carries."""
        return self._tensors.slot_bytes(slot)

    def put(self, microbatch: MicrobatchId, slot: Slot, payload: memoryview, sender: PeerId | None = None) -> None:
        """A tensor has arrived, from this sender. Raises RemoteProtocolError, and takes nothing, when the bytes are no tensor,
        or one far too large."""
        self._tensors.take_in(microbatch, slot, payload, sender)

    def payload(self, microbatch: MicrobatchId, slot: Slot) -> memoryview:
        """Wire bytes for a push. Raises KeyError when the slot is empty: our bug."""
        return self.store.get(microbatch, slot)

    def discard(self, microbatch: MicrobatchId) -> None:
        """Free everything of a microbatch; an abandoned forward leaves no trace in the gradient.

        Work on it that waits in the thread, or runs, comes to nothing and takes no time.
        """
        if microbatch in self._at_work:
            self._void.add(microbatch)
        self.store.discard(microbatch)
        self._thread.submit(self.turns.discard, microbatch)

    async def work(self, work: Work, microbatch: MicrobatchId, keeps: bool = True) -> Worked:
        """Do it. Without `keeps` a forward keeps no activations, and a backward computes its forward again first."""
        self._at_work.add(microbatch)
        try:
            return await self.in_thread(lambda: self._timed(work, microbatch, keeps))
        except KeyError:
            if microbatch not in self._void:
                raise  # nobody has thrown away what is missing: our bug
            return Worked(0.0)
        finally:
            self._at_work.discard(microbatch)
            self._void.discard(microbatch)

    def drop_activations(self, microbatch: MicrobatchId) -> None:
        """Free what the forward of this microbatch has kept; its backward is then asked for without `keeps`."""
        self._thread.submit(self._works.drop_activations, microbatch)

    async def measure(self) -> dict[Work, float]:
        """Seconds of one real microbatch of this stage peer's stage, per kind of work; nothing of it is counted.

        Empty for a data peer.
        """
        seconds = await self.in_thread(self._works.measure)
        return seconds if self.device is None else self.device.measured(seconds)

    async def mean_gradient(self, iteration: int) -> Gradient:
        """Mean gradient over the counted microbatches of an iteration, by parameter name, for as long as none of them is
        counted or taken out."""

        def do() -> Gradient:
            give_back()
            executor: StageExecutor | DataExecutor = self.turns.of(iteration)
            return executor.gradient_vector().in_pieces()

        return await self.in_thread(do)

    async def can_apply(self, gradient: Gradient, iteration: int) -> bool:
        """This gradient is finite, its square too, and no step of this iteration could leave weights that are not."""
        return await self.in_thread(lambda: squared_norm(gradient) >= 0 and self.optimizer.stays_finite(iteration))

    async def skip(self, step: Step) -> StepReport:
        """A step that changes nothing but the version, and an empty gradient for the next iteration."""

        def do() -> StepReport:
            self._readings.wait()
            report = self.optimizer.skip(step.iteration, step.gradient_norm)
            self.turns.stepped()
            return report

        return await self.in_thread(do)

    async def step(self, averaged: Gradient | None, step: Step, copies: Gradient | None = None) -> StepReport:
        """Optimizer step, clipped by the whole model's norm, and an empty gradient for the next iteration. The receipts of the
        iteration enter the state with it. `averaged` None: the weights stay. `copies`: an average of them takes their place
        before (`training/state/replicas`)."""

        def do() -> StepReport:
            self._readings.wait()
            if copies is not None:
                take_over(copies, self.executor.part.parameters, self.optimizer)
            if averaged is None:
                report = replace(self.optimizer.skip(step.iteration, step.gradient_norm), skipped=False)
            else:
                report = self.optimizer.step(averaged, step.iteration, step.gradient_norm)
            self.contributions = self.contributions.plus(step.receipts)
            self.turns.stepped()
            give_back()
            return report

        return await self.in_thread(do)

    async def reset(self) -> None:
        """Forget every gradient and graph."""
        await self.in_thread(self.turns.reset_gradients)

    async def load(self, state: Mapping[str, Tensor], only: Literal["", "weights", "moments"] = "") -> None:
        """Take over weights, moments, step count and contributions, one tensor at a time, and forget every gradient; or the
        weights alone, and later what the optimizer keeps with them, while microbatches are computed. Raises
        RemoteProtocolError, and changes nothing, if they do not fit; also when they cannot be read to the end."""

        def do() -> None:
            self._readings.wait()
            parameters = self.executor.part.parameters
            try:
                contributions, rest = take_contributions(state)
                if only == "moments":
                    load_moments(parameters, self.optimizer, rest)
                    return
                if only == "weights":
                    load_weights(parameters, rest, self.optimizer)
                else:
                    load_state(parameters, self.optimizer, rest)
            except OSError as error:
                raise RemoteProtocolError(f"state: {error}") from error
            self.contributions = contributions
            self.turns.reset_gradients()

        await self.in_thread(do)

    async def note_rebuilt(self, stages: Iterable[Stage], version: int) -> None:
        """The state says from now on that these stages have begun anew at this version."""

        def do() -> None:
            self.contributions = self.contributions.with_rebuilt(stages, version)

        await self.in_thread(do)

    async def read(self) -> Reading:
        """The state as it is now, without a copy: the next step waits until the reading is ended."""

        def do() -> Reading:
            state = live_state(self.executor.part.parameters, self.optimizer)
            return self._readings.begin(self.optimizer.steps, with_contributions(state, self.contributions))

        return await self.in_thread(do)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run a function in the compute thread, after what is queued there already. Raises OutOfMemory."""

        def do() -> T:
            with memory_errors("compute"):
                return function()

        return await asyncio.get_running_loop().run_in_executor(self._thread, do)

    def close(self) -> None:
        """Let the running computation end; drop what is queued, and what was spilled."""
        if self.device is not None:
            self.device.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.store.close()

    # ---- in the thread

    def _timed(self, work: Work, microbatch: MicrobatchId, keeps: bool) -> Worked:
        began = time.perf_counter()
        device = self.device
        marks = device.begin(work, microbatch) if device is not None else None
        outcome = self._works.do(work, microbatch, keeps)
        again_s = outcome.again_s
        if work in (Work.BACKWARD, Work.FINISH):
            self.store.done(microbatch)
        if device is not None:
            again_s = max(again_s, device.end(work, microbatch, marks, keeps))
        return Worked(time.perf_counter() - began, outcome.loss, again_s, outcome.finite)


def _works(turns: Turns[Any], tensors: BoundaryTensors, data: tuple[DataSource, int] | None, run: RunRecord) -> Works:
    if isinstance(turns.newest, StageExecutor):
        return StageWorks(turns, tensors, keeps_counted=run.recovery == "exact")
    if data is None:
        return DataWorks(turns, tensors, _no_data)
    source, shard = data
    return DataWorks(turns, tensors, lambda m: source.batch(m.iteration, m.index, shard, run.data_peers))


def _no_data(microbatch: MicrobatchId) -> tuple[Tensor, Tensor]:
    raise LocalProtocolError(f"{microbatch}: this data part has no dataset")


async def state_digest(compute: Compute) -> str:
    """Of weights and moments as they are: equal for peers of a stage whose states are equal to the bit. In a thread of its own,
    as nothing changes them between a download, or an average, and the step that follows."""
    parameters, optimizer = compute.executor.part.parameters, compute.optimizer
    return await asyncio.to_thread(lambda: state_hash(live_state(parameters, optimizer)))


def copy_with(compute: Compute, gradient: Gradient) -> Copy:
    """A peer's copy of its stage with that gradient, for as long as neither changes: until the next step."""
    return copy_of(gradient, compute.executor.part.parameters, compute.optimizer)
