"""What training waits for: the loss of an evaluation, for so long; never a text, and never a prompt that is none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.live.measure import evaluation as module
from gwtf_p2p.live.measure.evaluation import Evaluation
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.wire.records import EvaluationSpec, RunRecord
from gwtf_p2p.training.data.tokenizer import ByteTokenizer
from tests.live.conftest import DEADLINE_S

BATCH = torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.int64)


def record(prompt: str) -> RunRecord:
    spec = EvaluationSpec(every=1, held_out=0.1, prompts=(prompt,), text_tokens=2)
    return replace(SmallRun(sequence_length=16).record(), evaluation=spec)


class Stages:
    """They answer when they are let."""

    def __init__(self) -> None:
        self.losses, self.texts = asyncio.Event(), asyncio.Event()

    async def loss(self, tokens_BT: Tensor, labels_BT: Tensor, version: int) -> tuple[float, int]:
        await self.losses.wait()
        return 1.0, 1

    async def logits(self, tokens_BT: Tensor, at: int, version: int | None) -> Tensor:
        await self.texts.wait()
        return torch.eye(257)[ord("a")]


def evaluation(prompt: str, stages: Any) -> tuple[Evaluation, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    return Evaluation(record(prompt), stages, ([BATCH], ByteTokenizer()), told.append, lambda version, loss: None), told


async def finished(of: Evaluation) -> None:
    done = asyncio.Event()
    of.after(done.set)
    async with asyncio.timeout(DEADLINE_S):
        await done.wait()


async def test_training_waits_for_the_loss_and_for_no_text() -> None:
    """Nor does the next evaluation; no text is lost for it."""
    stages = Stages()
    here, told = evaluation("x = ", stages)
    for version in (0, 1):
        stages.losses.clear()
        here.begins(version)
        waiting = asyncio.ensure_future(here.before(Work.EMBED))
        await asyncio.sleep(0)
        assert not waiting.done()
        stages.losses.set()
        async with asyncio.timeout(DEADLINE_S):
            await waiting
    assert [said["name"] for said in told] == ["evaluated", "evaluated"]
    stages.texts.set()
    await finished(here)
    assert [(said["iteration"], said["text"]) for said in told[2:]] == [(0, "aa"), (1, "aa")]


async def test_a_stage_that_never_answers_holds_training_up_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_S", 0.01)
    monkeypatch.setattr(module, "FORWARD_LIMIT_S", 0.01)
    here, told = evaluation("x = ", Stages())
    here.begins(3)
    async with asyncio.timeout(DEADLINE_S):
        await here.before(Work.EMBED)
    await finished(here)
    assert [(said["name"], said["iteration"], said["reason"]) for said in told] == [("evaluation_failed", 3, "not done in 0 s")]


async def test_a_prompt_of_a_strangers_record_that_fits_no_window_is_told() -> None:
    stages = Stages()
    stages.losses.set()
    here, told = evaluation("far longer than a window", stages)
    here.begins(0)
    await finished(here)
    assert [said["name"] for said in told] == ["evaluated", "evaluation_failed"]
    assert "expected at most 15 tokens" in told[1]["reason"]


def test_a_record_whose_prompts_are_longer_than_its_windows_is_none() -> None:
    record("x" * 15).validate("here")
    with pytest.raises(InputError, match=r"here: evaluation\.prompts: expected texts of at most 15 tokens"):
        record("ü" * 8).validate("here")
    replace(record("x" * 200), tokenizer="gpt2").validate("here")  # whose tokens nobody counts here
