"""A microbatch forwards through all stages of the swarm, for its result alone: hop by hop, by whoever answers.

In each stage the peers that can take it are asked, the fastest first. A stage in which nobody answers is asked again for a
while: its peers may be at the step to the weights that are meant, or not have seen the record of who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.forward_only import ForwardOnly, NotAnswered
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.forward_route import candidates
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.training.compute.executor import DataExecutor

RETRY_S = 0.25


@dataclass(frozen=True, slots=True)
class Swarm:
    """Whom a data part can ask: the view at hand, who is not answering, and how often a stage is asked again."""

    view: Callable[[], NetworkView | None]
    excluded: Callable[[], frozenset[PeerId]] = frozenset
    tries: int = 20


@dataclass(slots=True)
class ThroughStages:
    """Of one data part. `versions` are those of the weights that have answered so far."""

    compute: Compute
    forward: ForwardOnly
    swarm: Swarm
    versions: set[int] = field(default_factory=set)

    async def logits(self, tokens_BT: Tensor, version: int | None = None) -> Tensor:
        """logits_BTV of a batch of the run's shape; `version` None: of the weights that each stage has now.

        Raises NotAnswered.
        """
        executor = self._executor
        payload = await self._output(tokens_BT, version)
        return await self.compute.in_thread(lambda: executor.evaluate_logits(tokens_BT, self.forward.decode(payload)))

    async def loss(self, tokens_BT: Tensor, labels_BT: Tensor, version: int | None = None) -> tuple[float, int]:
        """(sum of the cross entropy, tokens with a label) of one microbatch. Raises NotAnswered."""
        executor = self._executor
        payload = await self._output(tokens_BT, version)
        return await self.compute.in_thread(lambda: executor.evaluate_loss(tokens_BT, self.forward.decode(payload), labels_BT))

    @property
    def _executor(self) -> DataExecutor:
        executor = self.compute.executor
        assert isinstance(executor, DataExecutor)
        return executor

    async def _output(self, tokens_BT: Tensor, version: int | None) -> memoryview:
        executor = self._executor
        payload = self.forward.encode(await self.compute.in_thread(lambda: executor.evaluate_embedding(tokens_BT)))
        for stage in range(1, self.compute.run.stages + 1):
            payload = await self._through(Stage(stage), version, payload)
        return payload

    async def _through(self, stage: Stage, version: int | None, payload: memoryview) -> memoryview:
        reason = f"stage {stage} has nobody online"
        for _ in range(self.swarm.tries):
            view = self.swarm.view()
            for peer in candidates(view, stage, self.swarm.excluded()) if view is not None else ():
                try:
                    answer = await self.forward.ask(peer, version, payload)
                except NotAnswered as error:
                    reason = str(error)
                    continue
                self.versions.add(answer.version)
                return answer.payload
            await asyncio.sleep(RETRY_S)
        raise NotAnswered(f"stage {stage}: {reason}")
