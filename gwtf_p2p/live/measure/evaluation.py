"""Evaluates the run on text that it is not trained on: forward only, through the swarm's stage peers; then samples its prompts.

The data peer of shard 0 does it when an iteration begins whose weights are due. Its own microbatches wait meanwhile, so the
iteration cannot be committed, and every stage keeps the weights that are evaluated. What cannot be evaluated, because a stage
has nobody who answers, is said and given up; training goes on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gwtf_p2p.live.compute.forward_only import NotAnswered
from gwtf_p2p.live.text.sampling import Sampler, Sampling
from gwtf_p2p.live.text.through_stages import ThroughStages
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.data.held_out import prompt_ids
from gwtf_p2p.training.data.tokenizer import Tokenizer

Batch = tuple[Tensor, Tensor]
Tell = Callable[[dict[str, Any]], None]


class Evaluation:
    """Of one data peer; without batches nothing is ever due. `evaluated_on` also has the tokenizer of the run's prompts."""

    def __init__(
        self, run: RunRecord, stages: ThroughStages, evaluated_on: tuple[Sequence[Batch], Tokenizer | None], tell: Tell
    ) -> None:
        self._run, self._stages, self._tell = run, stages, tell
        self._batches, self._tokenizer = evaluated_on
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
                nats, learnt = await self._stages.loss(*batch, version)
                total, tokens = total + nats, tokens + learnt
        except NotAnswered as error:
            self._tell({"name": "evaluation_failed", "iteration": version, "reason": str(error)})
            return
        self._done.add(version)
        loss = total / max(tokens, 1)
        told = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens}
        self._tell({"name": "evaluated", "iteration": version, **told, "seconds": time.monotonic() - began})
        await self._sample(version)

    async def _sample(self, version: int) -> None:
        """The texts of the run's prompts."""
        run, tokenizer = self._run, self._tokenizer
        how = Sampling(most=run.evaluation.text_tokens)
        for prompt in run.evaluation.prompts if tokenizer is not None else ():
            assert tokenizer is not None
            try:
                found = await Sampler(run, tokenizer, self._stages).sample(prompt_ids(run, tokenizer, prompt), how, version)
            except NotAnswered as error:
                self._tell({"name": "evaluation_failed", "iteration": version, "reason": f"{prompt!r:.40}: {error}"})
                return
            self._tell({"name": "sampled", "iteration": version, "prompt": prompt, "text": found.text})
