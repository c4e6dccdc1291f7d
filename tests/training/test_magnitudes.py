"""No tensor of honest training is refused for its size, however training goes; one that is multiplied is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.magnitudes import FACTOR, Magnitudes
from gwtf_p2p.protocol.wire.records import OptimizerSpec
from gwtf_p2p.training.codecs.payload import check_payload, encode_payload
from gwtf_p2p.training.codecs.table import CODECS, codec_of
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from tests.training.swarm import GPT2, LLAMA, Pipeline, Trace, batch, microbatch, run_record

STEPS, MICROBATCHES = 24, 4
SENDER = PeerId("before")

TRAINING = {
    "warm-up": OptimizerSpec(learning_rate=1e-2, warmup_iterations=10),
    "a learning rate far too high": OptimizerSpec(learning_rate=0.3),
    "clipped to almost nothing": OptimizerSpec(learning_rate=3e-2, gradient_clip=1e-3),
}


def trained(pipeline: Pipeline, optimizer: OptimizerSpec, spikes: bool) -> Iterator[Trace]:
    """Every microbatch of a run on few batches; with `spikes`, now and then one of other data than all the others."""
    optimizers = [PartOptimizer(each.part.parameters, optimizer) for each in pipeline.executors]
    for step in range(STEPS):
        for index in range(MICROBATCHES):
            number = 1000 + step if spikes and step % 8 == 7 else index
            yield pipeline.train(microbatch(index, step), *batch(number))
        for each, own in zip(pipeline.executors, optimizers, strict=True):
            own.step(each.gradient_vector().mean(), step)
            each.reset_gradients()


def ratios(magnitudes: Magnitudes, tensors: Iterator[tuple[Slot, float]]) -> Iterator[float]:
    for slot, size in tensors:
        usual = magnitudes.usual(slot)
        assert not magnitudes.refusal(slot, SENDER, size)
        if usual is not None:
            yield size / usual


@pytest.mark.parametrize(("how", "begins_at_zero"), [*((how, False) for how in TRAINING), ("warm-up", True)])
def test_honest_training_is_never_refused(how: str, begins_at_zero: bool) -> None:
    pipeline = Pipeline(run_record(GPT2 if begins_at_zero else LLAMA))
    if begins_at_zero:
        with torch.no_grad():
            for name, parameter in pipeline.data.part.parameters.items():
                if name.endswith(("wte.weight", "lm_head.weight")):
                    parameter.mul_(1e-3)
    codec, boundary = codec_of("float32"), pipeline.stages[0].part.boundaries.input
    places = len(pipeline.stages) + 1
    seen: list[list[tuple[Slot, float]]] = [[] for _ in range(places)]
    for trace in trained(pipeline, TRAINING[how], spikes=True):
        for place in range(places):
            for slot, payload in ((Slot.INPUT, trace.activations[place]), (Slot.OUTPUT_GRADIENT, trace.gradients[place])):
                seen[place].append((slot, check_payload(encode_payload(payload, boundary, codec), boundary, codec)))
    most = max(max(ratios(Magnitudes(), iter(each))) for each in seen)
    assert 1.0 < most < FACTOR / 10, "there is room above what training does"


@pytest.mark.parametrize("name", CODECS)
def test_the_size_of_a_tensor_grows_as_its_values_do_in_every_format(name: str) -> None:
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    codec = codec_of(name)
    small, large = (codec.check(codec.encode(values * scale), values.numel()) for scale in (1.0, 64.0))
    assert large / small == pytest.approx(64.0, rel=0.05)
    assert codec.check(codec.encode(torch.zeros(4, 64)), 256) == 0.0
