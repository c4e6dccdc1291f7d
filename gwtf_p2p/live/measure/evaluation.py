"""Evaluates the run on text that it is not trained on: forward only, through the swarm's stage peers; then samples its prompts.

The data peer of shard 0 does it when an iteration begins whose weights are due. Its own microbatches wait meanwhile, so the
iteration cannot be committed, and every stage keeps the weights that are evaluated. What cannot be evaluated, because a stage
has nobody who answers, or a slow one has not answered in time, is said and given up; training goes on.

Training does not wait for texts: what a prompt is gone on with is by the weights that each stage has by then.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from torch import Tensor

from gwtf_p2p.live.compute.forward_only import NotAnswered
from gwtf_p2p.live.text.sampling import Sampler, Sampling
from gwtf_p2p.live.text.through_stages import ThroughStages
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.data.held_out import prompt_ids
from gwtf_p2p.training.data.tokenizer import Tokenizer

Batch = tuple[Tensor, Tensor]

LIMIT_S, FORWARD_LIMIT_S = 120.0, 10.0
"""How long an evaluation, or the texts after it, may take: a bound, and so much more for each forward through all stages."""
LARGEST_LOSS = 1e30
"""What commits can tell of; a larger one is as good as none."""

Tell = Callable[[dict[str, Any]], None]


class Evaluation:
    """Of one data peer; without batches nothing is ever due. `evaluated_on` also has the tokenizer of the run's prompts.
    `found` hears the loss of each version, None where it is not finite, before work that has waited for it begins."""

    def __init__(
        self,
        run: RunRecord,
        stages: ThroughStages,
        evaluated_on: tuple[Sequence[Batch], Tokenizer | None],
        tell: Tell,
        found: Callable[[int, float | None], object],
    ) -> None:
        self._run, self._stages, self._tell, self._found = run, stages, tell, found
        self._batches, self._tokenizer = evaluated_on
        self._under_way: asyncio.Task[None] | None = None
        self._judged = asyncio.Event()  # the loss of what is under way is known, or will not be
        self._judged.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: set[int] = set()

    def begins(self, version: int) -> None:
        """An iteration begins with these weights, or the run is complete with them."""
        if self._batches and self._run.evaluation.is_due(version) and version not in self._done:
            before, judged = self._under_way, asyncio.Event()
            if before is not None and not self._judged.is_set():
                before.cancel()
            self._judged = judged
            self._under_way = asyncio.get_running_loop().create_task(self._evaluate(version, judged, before))
            self._tasks.add(self._under_way)
            self._under_way.add_done_callback(self._tasks.discard)
            self._under_way.add_done_callback(lambda _: judged.set())

    async def before(self, work: Work) -> None:
        """Return when this work may begin."""
        if work is Work.EMBED:
            await self._judged.wait()

    def after(self, then: Callable[[], object]) -> None:
        """Call `then` when nothing is under way (any more)."""
        if self._under_way is None or self._under_way.done():
            then()
        else:
            self._under_way.add_done_callback(lambda _: then())

    def stop(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()

    async def _evaluate(self, version: int, judged: asyncio.Event, before: asyncio.Task[None] | None) -> None:
        """The loss, and the texts when those of the evaluation `before` are done."""
        texts = self._run.evaluation.prompts if self._tokenizer is not None else ()
        if not await self._within(len(self._batches), version, self._loss(version)):
            return
        judged.set()
        if before is not None:
            await asyncio.wait([before])
        for prompt in texts:
            if not await self._within(self._run.evaluation.text_tokens, version, self._sample(version, prompt)):
                return

    async def _within(self, forwards: int, version: int, work: Coroutine[Any, Any, None]) -> bool:
        """Whether it is done; why not is told."""
        limit_s = LIMIT_S + FORWARD_LIMIT_S * forwards
        try:
            async with asyncio.timeout(limit_s):
                await work
            return True
        except (NotAnswered, InputError) as error:
            reason = str(error)
        except TimeoutError:
            reason = f"not done in {limit_s:.0f} s"
        self._tell({"name": "evaluation_failed", "iteration": version, "reason": reason})
        return False

    async def _loss(self, version: int) -> None:
        began, total, tokens = time.monotonic(), 0.0, 0
        for batch in self._batches:
            nats, learnt = await self._stages.loss(*batch, version)
            total, tokens = total + nats, tokens + learnt
        self._done.add(version)
        loss = total / max(tokens, 1)
        self._found(version, loss if abs(loss) <= LARGEST_LOSS else None)
        told = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens}
        self._tell({"name": "evaluated", "iteration": version, **told, "seconds": time.monotonic() - began})

    async def _sample(self, version: int, prompt: str) -> None:
        """What the swarm goes on with. Raises NotAnswered, and InputError for a prompt without room for a token."""
        run, tokenizer = self._run, self._tokenizer
        assert tokenizer is not None
        how, ids = Sampling(most=run.evaluation.text_tokens), prompt_ids(run, tokenizer, prompt)
        try:
            found = await Sampler(run, tokenizer, self._stages).sample(ids, how)
        except NotAnswered as error:
            raise NotAnswered(f"{prompt!r:.40}: {error}") from error
        self._tell({"name": "sampled", "iteration": version, "prompt": prompt, "text": found.text})
