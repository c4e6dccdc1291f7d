"""How a text goes on: one token after the other, each from the model's logits behind the last one.

Rules.
- The whole text so far goes through the model for every token (a stage keeps nothing of a text), as the first row of a batch of
  the run's shape; what stands behind it does not matter to a causal model. So prompt and text together have at most
  `sequence_length` tokens.
- Temperature 0 takes the likeliest token, the first of equals. Else tokens are drawn from softmax(logits / temperature), of the
  fewest likeliest ones that together have `top_p` of it (nucleus sampling, arXiv 1904.09751), by a seed: equal logits give
  equal texts.
- An end-of-text token, the tokenizer's or one of the model's config, ends the text and is no part of it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwtf_p2p.live.text.through_stages import ThroughStages
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.data.tokenizer import Tokenizer
from gwtf_p2p.training.model.config import load_config


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; `most` None: as many as there is room for."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """What was sampled. `ended`: with an end-of-text token, rather than for want of room."""

    text: str
    tokens: tuple[int, ...]
    ended: bool
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Of sampled tokens, the one that ended the text among them."""
        return (len(self.tokens) + self.ended) / max(self.seconds, 1e-9)


class Sampler:
    """Of one run. `ends` are the ids that end a text."""

    def __init__(self, run: RunRecord, tokenizer: Tokenizer, stages: ThroughStages) -> None:
        self._run, self._tokenizer, self._stages = run, tokenizer, stages
        stated = load_config(run.model_config).get_text_config(decoder=True).eos_token_id
        of_model = stated if isinstance(stated, (list, tuple)) else () if stated is None else (stated,)
        self.ends = frozenset((tokenizer.end_id, *of_model))

    async def sample(
        self,
        prompt: tuple[int, ...],
        how: Sampling,
        version: int | None = None,
        on_text: Callable[[str], object] = lambda text: None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> Text:
        """What follows the prompt; `on_text` hears of it with every token, and `before` is awaited before each. Raises
        NotAnswered."""
        began, ids, ended = time.monotonic(), list(prompt), False
        generator = torch.Generator().manual_seed(how.seed)
        room = self._run.sequence_length - len(prompt)
        for _ in range(room if how.most is None else min(room, how.most)):
            if before is not None:
                await before()
            logits_V = await self._stages.logits(self._batch(ids), len(ids) - 1, version)
            token = choose(logits_V.cpu(), how, generator)
            if token in self.ends:
                ended = True
                break
            ids.append(token)
            on_text(self._text(ids[len(prompt) :]))
        found = tuple(ids[len(prompt) :])
        return Text(self._text(found), found, ended, time.monotonic() - began)

    def _batch(self, ids: list[int]) -> Tensor:
        tokens_BT = torch.full((self._run.microbatch_size, self._run.sequence_length), self._tokenizer.end_id)
        tokens_BT[0, : len(ids)] = torch.tensor(ids)
        return tokens_BT

    def _text(self, ids: list[int] | tuple[int, ...]) -> str:
        return self._tokenizer.decode(np.asarray(ids, np.uint32))


def choose(logits_V: Tensor, how: Sampling, generator: torch.Generator) -> int:
    """The next token."""
    if how.temperature <= 0:
        return int(logits_V.argmax())
    order = logits_V.argsort(descending=True, stable=True)
    shares = torch.softmax(logits_V[order].double() / how.temperature, dim=-1)
    kept = int((shares.cumsum(0) - shares < how.top_p).sum())
    return int(order[torch.multinomial(shares[: max(kept, 1)], 1, generator=generator)])
