"""A hop that is done again: an honest peer's is the same, a cheat's is not, whatever the format in which it has travelled."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from experiments.audits.tolerance import Pair, a_run
from gwtf_p2p.live.compute.audit_work import differences
from gwtf_p2p.live.compute.boundary import BoundaryCodecs, BoundaryTensors
from gwtf_p2p.live.compute.tensor_store import NO_LIMIT, TensorStore
from gwtf_p2p.live.emulation.cheats import CHEATS, STALE_STEPS
from gwtf_p2p.protocol.audit.judge import agrees, difference
from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.wire.run_parts import LOSS_GRADIENT, ToleranceSpec
from gwtf_p2p.training.codecs.table import CODECS, codec_of
from gwtf_p2p.training.compute.difference import relative_difference
from gwtf_p2p.training.compute.loss import NO_LABEL
from tests.training.swarm import LLAMA, VOCABULARY, Pipeline, microbatch, run_record

FLOAT32 = ("float32", "float32")


def judged(pair: Pair, wire: str) -> bool:
    output, gradient = pair.audit(0, (codec_of(wire), codec_of(wire)), other_kernels=False)
    return agrees(difference(output), difference(gradient), pair.precisions, ToleranceSpec())


@pytest.mark.parametrize("precisions", [FLOAT32, ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("wire", CODECS)
def test_honest_peers_agree_in_every_format_and_precision(precisions: tuple[str, str], wire: str) -> None:
    assert judged(Pair(a_run(), precisions), wire)


@pytest.mark.parametrize("wire", ["float32", "int8"])
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_is_told_apart(cheat: str, wire: str) -> None:
    pair = Pair(a_run(), FLOAT32, cheat)
    for step in range(STALE_STEPS + 1):
        pair.step(step)
    assert not judged(pair, wire)


def test_what_is_done_again_counts_nothing_and_holds_nothing() -> None:
    pair = Pair(a_run(), FLOAT32)
    before = {name: tensor.clone() for name, tensor in pair.auditor.gradient_vector().tensors.items()}
    pair.audit(0, (codec_of("float32"), codec_of("float32")), other_kernels=False)
    assert not pair.auditor.counted and not pair.auditor.held
    assert all(torch.equal(before[name], tensor) for name, tensor in pair.auditor.gradient_vector().tensors.items())


def test_two_sides_of_a_step_of_the_format_are_no_difference_and_a_step_too_far_is() -> None:
    own, before = torch.tensor([0.499, 2.0]), torch.zeros(2)
    rounded, other_side, far = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0])
    assert relative_difference([rounded], [own], [rounded], [before]) == 0.0
    assert relative_difference([other_side], [own], [rounded], [before]) < 0.03
    assert relative_difference([far], [own], [rounded], [before]) > 0.5


def test_ids_that_differ_differ_altogether_and_nothing_changed_has_no_share() -> None:
    ids, others = torch.tensor([1, 2]), torch.tensor([1, 3])
    assert relative_difference([others], [ids], [ids], [ids]) == math.inf
    same, other = torch.ones(2), torch.zeros(2)
    assert relative_difference([same], [same], [same], [same]) == 0.0
    assert relative_difference([other], [same], [same], [same]) == math.inf


class LastStage:
    """That of a run with thin data peers, one of its microbatches, and what an auditor finds of what it has said."""

    def __init__(self, *, labelled: bool = True) -> None:
        self.run = replace(run_record({**LLAMA, "tie_word_embeddings": False}), thin_data_peers=True)
        self.stage = Pipeline(self.run).stages[-1]
        self.codecs = BoundaryCodecs.of(self.run)
        hidden, labels_BT = (each.shape for each in self.stage.part.boundaries.input)
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, VOCABULARY, labels_BT, generator=generator) if labelled else torch.full(labels_BT, NO_LABEL)
        self.given = (torch.randn(hidden, generator=generator), labels)
        self.got = (torch.tensor(LOSS_GRADIENT),)

    def found(self, *, lie: float) -> tuple[float, float]:
        tensors = BoundaryTensors(self.stage.part.boundaries, self.codecs, TensorStore(NO_LIMIT), self.stage.device)
        output, gradient = self.stage.repeat(self.given, self.got)
        said = {Slot.INPUT: self.given, Slot.INPUT_GRADIENT: gradient, Slot.OUTPUT_GRADIENT: self.got}
        said[Slot.OUTPUT] = (output[0] + torch.tensor([lie, 0.0, 0.0]),)
        for slot, payload in said.items():
            tensors.keep(microbatch(0), slot, payload)
        sent = {slot: tensors.store.get(microbatch(0), slot) for slot in said}
        before, after = (sent[Slot.INPUT], sent[Slot.INPUT_GRADIENT]), (sent[Slot.OUTPUT], sent[Slot.OUTPUT_GRADIENT])
        return differences(self.stage, self.codecs, before, after)


def test_a_last_stage_that_says_another_loss_is_told_apart_though_the_sum_is_right() -> None:
    last = LastStage()
    assert agrees(*last.found(lie=0.0), FLOAT32, ToleranceSpec())
    for lie in (-0.1, 0.1):
        assert not agrees(*last.found(lie=lie), FLOAT32, ToleranceSpec())


def test_an_honest_peer_whose_own_result_is_not_finite_is_not_told_apart() -> None:
    assert LastStage(labelled=False).found(lie=0.0) == (0.0, 0.0)
