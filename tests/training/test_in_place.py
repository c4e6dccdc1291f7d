"""Gradients that go into the sum at once: the same bits as those computed aside, and no trace of what fails in the middle."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.model.doors import Payload
from tests.training.swarm import GPT2, LLAMA, Pipeline, Trace, batch, microbatch, run_record

Pair = tuple[Payload, Payload]
"""What a stage is given of a microbatch, and the gradient of what it puts out."""


def pairs_of(config: dict[str, Any], count: int = 3) -> list[Pair]:
    """Of the first stage."""
    pipeline = Pipeline(run_record(config))
    traces: list[Trace] = [pipeline.train(microbatch(index), *batch(index)) for index in range(count)]
    return [(trace.activations[0], trace.gradients[1]) for trace in traces]


def stage_of(config: dict[str, Any], pairs: list[Pair] | None) -> StageExecutor:
    """One that adds in place where it is told what is kept."""
    stage = Pipeline(run_record(config)).stages[0]
    if pairs is not None:
        kept = {microbatch(index): pair for index, pair in enumerate(pairs)}
        stage.kept = kept.__getitem__
    return stage


def counts(stage: StageExecutor, name: MicrobatchId, pair: Pair) -> Payload:
    stage.forward(name, pair[0])
    return stage.backward(name, pair[1])


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def sums(stage: StageExecutor) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stage.gradient_vector().tensors.items()}


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_the_bits_are_those_of_gradients_computed_aside(config: dict[str, Any]) -> None:
    pairs = pairs_of(config)
    aside, in_place = stage_of(config, None), stage_of(config, pairs)
    for index, pair in enumerate(pairs):
        ours, theirs = (counts(stage, microbatch(index), pair) for stage in (in_place, aside))
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert_equal(sums(in_place), sums(aside))
    for stage in (in_place, aside):
        stage.uncount(microbatch(1), *pairs[1])
    assert_equal(sums(in_place), sums(aside))
    assert in_place.counted == aside.counted == {microbatch(0), microbatch(2)}
    assert all(parameter.grad is None for parameter in in_place.part.parameters.values())


def test_one_that_is_not_finite_is_refused_and_the_others_stay_to_the_bit() -> None:
    pairs = pairs_of(LLAMA)
    stage, expected = stage_of(LLAMA, pairs), stage_of(LLAMA, None)
    for index in (2, 0):
        for each in (stage, expected):
            counts(each, microbatch(index), pairs[index])
    # Finite itself; what comes of it in the middle of a layer is not.
    huge = tuple(torch.full_like(tensor, 1e38) for tensor in pairs[1][1])
    stage.kept = {microbatch(0): pairs[0], microbatch(1): (pairs[1][0], huge), microbatch(2): pairs[2]}.__getitem__
    counts(stage, microbatch(1), (pairs[1][0], huge))
    assert stage.refused == {microbatch(1)} and stage.counted == {microbatch(k) for k in range(3)}
    assert_equal(sums(stage), sums(expected))
    stage.uncount(microbatch(1), pairs[1][0], huge)
    assert stage.refused == frozenset() and stage.counted == {microbatch(0), microbatch(2)}
    assert_equal(sums(stage), sums(expected))


def test_one_that_fails_in_the_middle_leaves_no_trace_and_can_be_repeated() -> None:
    pairs = pairs_of(LLAMA)
    stage, expected = stage_of(LLAMA, pairs), stage_of(LLAMA, None)
    for each in (stage, expected):
        counts(each, microbatch(0), pairs[0])
    before, seen = sums(stage), []

    def out_of_memory(_: Tensor) -> None:
        if seen:
            return  # it is a moment's lack: the sum is made again
        seen.append(not torch.equal(next(iter(reversed(sums(stage).values()))), next(iter(reversed(before.values())))))
        raise torch.OutOfMemoryError("no memory for this gradient")

    hook = next(iter(stage.part.parameters.values())).register_hook(out_of_memory)
    stage.forward(microbatch(1), pairs[1][0])
    with pytest.raises(torch.OutOfMemoryError):
        stage.backward(microbatch(1), pairs[1][1])
    hook.remove()
    assert seen == [True], "later layers' gradients were in the sum already"
    assert_equal(sums(stage), before)
    assert stage.counted == {microbatch(0)}
    stage.backward(microbatch(1), pairs[1][1])
    counts(expected, microbatch(1), pairs[1])
    assert_equal(sums(stage), sums(expected))


def test_a_second_set_of_gradients_is_never_there() -> None:
    """What a parameter's gradient is added to is the sum itself."""
    pairs = pairs_of(LLAMA, 1)
    stage = stage_of(LLAMA, pairs)
    totals = {name: tensor.data_ptr() for name, tensor in stage.gradient_vector().tensors.items()}
    found: dict[str, int] = {}

    def look(parameter: Tensor, name: str) -> None:
        assert parameter.grad is not None
        found[name] = parameter.grad.data_ptr()

    for name, parameter in stage.part.parameters.items():
        parameter.register_post_accumulate_grad_hook(partial(look, name=name))
    counts(stage, microbatch(0), pairs[0])
    assert found == totals
