"""A microbatch forwards through all stages of the swarm, for its result alone: hop by hop, by whoever answers.

In each stage the peers that can take it are asked, the fastest first. A stage in which nobody answers is asked again for a
while: its peers may be at the step to the weights that are meant, or not have seen the record of who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.forward_only import Boundary, ForwardOnly, NotAnswered, Wanted, logits_boundary
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.forward_route import candidates
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.loss import NO_LABEL
from gwtf_p2p.training.model.config import vocabulary_of

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

    async def logits(self, tokens_BT: Tensor, at: int, version: int | None = None) -> Tensor:
        """logits_V at a place of the first row of a batch of the run's shape; `version` None: of the weights that each stage
        has now. Raises NotAnswered.
        """
        executor, run = self._executor, self.compute.run
        labels_BT = torch.full_like(tokens_BT, NO_LABEL)
        labels_BT[:, at] = 0  # marks the place
        if not run.thin_data_peers:
            payload = await self._output((tokens_BT, labels_BT), version)
            output = await self.compute.in_thread(lambda: executor.evaluate_logits(tokens_BT, self.forward.decode(payload)))
            return output[0, at]
        logits = logits_boundary((run.microbatch_size, vocabulary_of(run.model_config)))
        payload = await self._output((tokens_BT, labels_BT), version, logits)
        return self.forward.decode(payload, logits)[0][0]

    async def loss(self, tokens_BT: Tensor, labels_BT: Tensor, version: int | None = None) -> tuple[float, int]:
        """(sum of the cross entropy, tokens with a label) of one microbatch. Raises NotAnswered."""
        executor = self._executor
        payload = await self._output((tokens_BT, labels_BT), version)
        try:
            return await self.compute.in_thread(
                lambda: executor.evaluate_loss(tokens_BT, self.forward.decode(payload), labels_BT)
            )
        except RemoteProtocolError as error:
            raise NotAnswered(str(error)) from error

    @property
    def _executor(self) -> DataExecutor:
        executor = self.compute.executor
        assert isinstance(executor, DataExecutor)
        return executor

    async def _output(self, batch: tuple[Tensor, Tensor], version: int | None, logits: Boundary | None = None) -> memoryview:
        """What the last stage makes of tokens and labels; `logits`: these instead."""
        executor, run = self._executor, self.compute.run
        payload = self.forward.encode(await self.compute.in_thread(lambda: executor.evaluate_embedding(*batch)))
        for stage in range(1, run.stages + 1):
            wanted = Wanted(executor.part.boundaries.input if stage == run.stages else run.boundary_after(stage))
            if logits is not None and stage == run.stages:
                wanted = Wanted(logits, logits=True)
            payload = await self._through(Stage(stage), version, payload, wanted)
        return payload

    async def _through(self, stage: Stage, version: int | None, payload: memoryview, wanted: Wanted) -> memoryview:
        reason = f"stage {stage} has nobody online"
        for _ in range(self.swarm.tries):
            view = self.swarm.view()
            for peer in candidates(view, stage, self.swarm.excluded()) if view is not None else ():
                try:
                    answer = await self.forward.ask(peer, version, payload, wanted)
                except NotAnswered as error:
                    reason = str(error)
                    continue
                self.versions.add(answer.version)
                return answer.payload
            await asyncio.sleep(RETRY_S)
        raise NotAnswered(f"stage {stage}: {reason}")
