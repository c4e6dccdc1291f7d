"""Evaluates the run on text that it is not trained on: forward only, through the swarm's stage peers.

The data peer of shard 0 does it when an iteration begins whose weights are due. Its own microbatches wait meanwhile, so the
iteration cannot be committed, and every stage keeps the weights that are evaluated. What cannot be evaluated, because a stage
has nobody who answers, is said and given up; training goes on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.forward_only import ForwardOnly, NotAnswered
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.forward_route import candidates
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.executor import DataExecutor

Batch = tuple[Tensor, Tensor]
Tell = Callable[[dict[str, Any]], None]
TRIES = 20
RETRY_S = 0.25
"""A stage peer may still be at the step to these weights when it is asked first."""


@dataclass(frozen=True, slots=True)
class Swarm:
    """Whom the evaluation can ask: the view at hand, and who is not answering."""

    view: Callable[[], NetworkView | None]
    excluded: Callable[[], frozenset[PeerId]]


class Evaluation:
    """Of one data peer; without batches nothing is ever due."""

    def __init__(
        self, run: RunRecord, parts: tuple[Compute, ForwardOnly], batches: Sequence[Batch], swarm: Swarm, tell: Tell
    ) -> None:
        self._run, self._batches, self._swarm, self._tell = run, batches, swarm, tell
        self._compute, self._forward = parts
        self._under_way: asyncio.Task[None] | None = None
        self._done: set[int] = set()

    def begins(self, version: int) -> None:
        """An iteration begins with these weights, or the run is complete with them."""
        if self._batches and self._run.evaluation.is_due(version) and version not in self._done:
            self.stop()
            self._under_way = asyncio.get_running_loop().create_task(self._evaluate(version))

    async def before(self, work: Work) -> None:
        """Return when this work may begin."""
        if work is Work.EMBED and self._under_way is not None:
            await asyncio.wait([self._under_way])

    def after(self, then: Callable[[], object]) -> None:
        """Call `then` when nothing is under way (any more)."""
        if self._under_way is None or self._under_way.done():
            then()
        else:
            self._under_way.add_done_callback(lambda _: then())

    def stop(self) -> None:
        """Give up what is under way."""
        if self._under_way is not None:
            self._under_way.cancel()

    async def _evaluate(self, version: int) -> None:
        began, total, tokens = time.monotonic(), 0.0, 0
        try:
            for batch in self._batches:
                nats, learnt = await self._one(version, batch)
                total, tokens = total + nats, tokens + learnt
        except NotAnswered as error:
            self._tell({"name": "evaluation_failed", "iteration": version, "reason": str(error)})
            return
        self._done.add(version)
        loss = total / max(tokens, 1)
        told = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens}
        self._tell({"name": "evaluated", "iteration": version, **told, "seconds": time.monotonic() - began})

    async def _one(self, version: int, batch: Batch) -> tuple[float, int]:
        """(sum of the cross entropy, tokens with a label) of one microbatch. Raises NotAnswered."""
        executor, (tokens_BT, labels_BT) = self._compute.executor, batch
        assert isinstance(executor, DataExecutor)
        embedded = await self._compute.in_thread(lambda: executor.evaluate_embedding(tokens_BT))
        payload = self._forward.encode(embedded)
        for stage in range(1, self._run.stages + 1):
            payload = await self._through(Stage(stage), version, payload)
        return await self._compute.in_thread(
            lambda: executor.evaluate_loss(tokens_BT, self._forward.decode(payload), labels_BT)
        )

    async def _through(self, stage: Stage, version: int, payload: memoryview) -> memoryview:
        reason = f"stage {stage} has nobody online"
        for _ in range(TRIES):
            view = self._swarm.view()
            for peer in candidates(view, stage, self._swarm.excluded()) if view is not None else ():
                try:
                    return await self._forward.ask(peer, version, payload)
                except NotAnswered as error:
                    reason = str(error)
            await asyncio.sleep(RETRY_S)
        raise NotAnswered(f"stage {stage}: {reason}")
