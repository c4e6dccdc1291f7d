"""Data peers without weights: embedding in the first stage, head and loss in the last. The model is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.families import small_run
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.live.compute.boundary import BoundaryCodecs, BoundaryTensors
from gwtf_p2p.live.compute.tensor_store import NO_LIMIT, TensorStore
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.records import AdapterSpec, RunRecord
from gwtf_p2p.training.codecs.payload import (
    check_payload,
    decode_gradient,
    decode_payload,
    encode_gradient,
    encode_payload,
)
from gwtf_p2p.training.codecs.table import codec_of
from gwtf_p2p.training.compute.loss import NO_LABEL
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.preflight import BOUND, Parts, Thin, checked_unsplit, compare, preflight, split_result
from gwtf_p2p.training.model.run_check import check_run
from gwtf_p2p.training.model.split import PartSpec, build_data_part, build_stage_part, parameter_shapes
from gwtf_p2p.training.model.structure import embedding_weights, small_config, structure_of, whole_model
from tests.training.swarm import Pipeline, assert_close, microbatch

MODEL: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "bos_token_id": None,
    "eos_token_id": 256, "tie_word_embeddings": False,
}  # fmt: skip
THIN = {"thin_data_peers": True}


def record(**more: Any) -> RunRecord:
    plain = {"run_id": "thin", "seed": 3, "model": MODEL, "stages": 3, "sequence_length": 16, "microbatch_size": 2}
    return run_from_plain({"microbatches_per_data_peer": 2, "dataset": "stdlib", **plain, **more}, "thin")


def batch(seed: int, run: RunRecord) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    window = torch.randint(0, 256, (run.microbatch_size, run.sequence_length + 1), generator=generator)
    tokens_BT, labels_BT = window[:, :-1].contiguous(), window[:, 1:].clone()
    labels_BT[0, :5] = NO_LABEL
    return tokens_BT, labels_BT


def sums_and_losses(run: RunRecord) -> tuple[dict[str, Tensor], list[float]]:
    pipeline = Pipeline(run)
    losses = [pipeline.train(microbatch(n), *batch(n, run)).loss for n in range(2)]
    return pipeline.sums(), losses


@pytest.mark.parametrize("more", [{}, {"stages": 1}, {"loss": {"z": 1e-3, "label_smoothing": 0.1}}, {"attention": "document"}])
def test_losses_and_gradients_are_those_of_full_data_peers(more: dict[str, Any]) -> None:
    full, expected = sums_and_losses(record(**more))
    thin, losses = sums_and_losses(record(**more, **THIN))
    assert losses == pytest.approx(expected, rel=1e-6)
    assert_close(thin, full, 1e-5)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3_text", "opt"])
def test_other_families_are_cut_there_as_well(family: str) -> None:
    with torch.random.fork_rng(devices=[]):  # some constructors draw
        config = {**small_run(family).model_config, "tie_word_embeddings": False}
        structure, small = structure_of(config), small_config(config)
        parts = Parts(small, structure, thin=Thin.STAGES)
        compared = compare(checked_unsplit(whole_model(small, 0)), split_result(parts))
    assert compared.loss <= BOUND and compared.worst[1] <= BOUND


def test_a_thin_data_peer_holds_nothing_and_all_weights_are_in_the_stages() -> None:
    full, thin = record(), record(**THIN)
    assert parameter_shapes(PartSpec.of(thin, 0)) == {}
    held = [parameter_shapes(PartSpec.of(thin, stage)) for stage in (1, 2, 3)]
    whole = [parameter_shapes(PartSpec.of(full, stage)) for stage in (0, 1, 2, 3)]
    assert {n: s for part in held for n, s in part.items()} == {n: s for part in whole for n, s in part.items()}
    assert "model.embed_tokens.weight" in held[0] and {"model.norm.weight", "lm_head.weight"} <= held[2].keys()
    assert embedding_weights(whole_model(small_config(MODEL), 0).config) == {"model.embed_tokens.weight"}


def test_what_crosses_is_ids_and_labels_out_and_a_loss_back() -> None:
    run = record(**THIN, wire={"activations": "int8", "gradients": "int8"})
    assert [each.name for each in run.boundary_after(0)] == ["tokens", "labels"]
    assert [each.name for each in run.boundary_after(1)] == ["hidden_state", "labels"]
    assert [each.name for each in run.boundary_after(3)] == ["loss"]
    assert run.end_bytes == 2 * 4 * 2 * 16 and record().end_bytes is None
    assert run.model_hash != record().model_hash


def test_a_loss_is_not_rounded_by_a_codec() -> None:
    run = record(**THIN)
    boundary, codec = run.boundary_after(3), codec_of("int4")
    loss = torch.tensor([2.1234567, 67.9, 32.0])
    sent = encode_payload((loss,), boundary, codec)
    assert check_payload(sent, boundary, codec) > 0
    assert torch.equal(decode_payload(sent, boundary, codec)[0], loss)


@pytest.mark.parametrize(("name", "value"), [("tokens", -1), ("tokens", 257), ("labels", 257), ("labels", -99)])
def test_ids_that_no_table_has_are_refused_where_they_come_in(name: str, value: int) -> None:
    run = record(**THIN)
    part, codec = build_stage_part(PartSpec.of(run, 1)), codec_of("float32")
    payload = dict(zip(("tokens", "labels"), batch(0, run), strict=True))
    check_payload(
        encode_payload(tuple(payload.values()), part.boundaries.input, codec),
        part.boundaries.input,
        codec,
        part.boundaries.below,
    )
    payload[name][0, 3] = value
    sent = encode_payload(tuple(payload.values()), part.boundaries.input, codec)
    with pytest.raises(RemoteProtocolError, match=f"{name}: expected whole numbers from 0 to 256, got {value}"):
        check_payload(sent, part.boundaries.input, codec, part.boundaries.below)


def test_tied_embeddings_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"thin_data_peers: expected false, or a single stage: .* are one weight"):
        record(model={**MODEL, "tie_word_embeddings": True}, **THIN)
    assert record(model={**MODEL, "tie_word_embeddings": True}, stages=1, **THIN).thin_data_peers


def test_a_record_with_tied_embeddings_is_refused_before_anything_is_built() -> None:
    run = record(**THIN)
    with pytest.raises(InputError, match="thin_data_peers: expected false, or a single stage"):
        check_run(replace(run, model_config={**run.model_config, "tie_word_embeddings": True}, boundary=()))


def test_in_a_subspace_the_stage_of_the_head_is_free() -> None:
    wide = {**MODEL, "hidden_size": 64}
    run = record(model=wide, boundary={"subspace": 8}, **THIN)
    shapes = parameter_shapes(PartSpec.of(run, 2)) | parameter_shapes(PartSpec.of(run, 3))
    name = "model.layers.{}.self_attn.o_proj.weight"
    assert shapes[name.format(1)] == (8, 64) and shapes[name.format(2)] == (64, 64)
    preflight(wide, subspace=True, thin=Thin.STAGES)
    pipeline = Pipeline(run)
    trace = pipeline.train(microbatch(0), *batch(0, run))
    assert trace.activations[1][0].shape == (2, 16, 8) and trace.activations[-1][0].shape == (3,)


def test_evaluations_and_logits_come_from_the_last_stage() -> None:
    full, thin = Pipeline(record()), Pipeline(record(**THIN))
    tokens_BT, labels_BT = batch(0, record())
    expected = full.data.evaluate_loss(tokens_BT, evaluated(full, tokens_BT, labels_BT), labels_BT)
    assert thin.data.evaluate_loss(tokens_BT, evaluated(thin, tokens_BT, labels_BT), labels_BT) == pytest.approx(expected)
    logits_BTV = full.data.evaluate_logits(tokens_BT, evaluated(full, tokens_BT, labels_BT))
    marked = torch.full_like(labels_BT, NO_LABEL)
    marked[:, 7] = 0
    payload = thin.data.evaluate_embedding(tokens_BT, marked)
    for stage in thin.stages[:-1]:
        payload = stage.evaluate(payload)
    assert torch.allclose(thin.stages[-1].evaluate_logits(payload), logits_BTV[:, 7], atol=1e-5)


def evaluated(pipeline: Pipeline, tokens_BT: Tensor, labels_BT: Tensor) -> tuple[Tensor, ...]:
    payload = pipeline.data.evaluate_embedding(tokens_BT, labels_BT)
    for stage in pipeline.stages:
        payload = stage.evaluate(payload)
    return payload


@pytest.mark.parametrize("said", [(0.0, -1.0, 27.0), (0.0, 1.0, 28.0), (0.0, 0.0, 0.0), (0.0, 1.0, 26.5)])
def test_what_no_loss_of_these_labels_can_be_is_refused(said: tuple[float, ...]) -> None:
    pipeline = Pipeline(record(**THIN))
    tokens_BT, labels_BT = batch(0, record())
    with pytest.raises(RemoteProtocolError, match="expected the loss of 27 tokens"):
        pipeline.data.evaluate_loss(tokens_BT, (torch.tensor(said),), labels_BT)


def test_a_counted_microbatch_is_taken_out_again() -> None:
    run = record(**THIN)
    pipeline, alone = Pipeline(run), Pipeline(run)
    first, second = batch(0, run), batch(1, run)
    pipeline.train(microbatch(0), *first)
    trace = pipeline.train(microbatch(1), *second)
    alone.train(microbatch(0), *first)
    pipeline.data.uncount(microbatch(1), second, trace.activations[-1], trace.gradients[0])
    for number, stage in enumerate(pipeline.stages):
        stage.uncount(microbatch(1), trace.activations[number], trace.gradients[number + 1])
    assert_close(pipeline.sums(), alone.sums(), 1e-4)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_first_stage_without_anything_to_train_has_nothing_to_do_backwards(keeps: bool) -> None:
    run = replace(record(**THIN), adapters=AdapterSpec(rank=2, alpha=4.0, targets=("2.self_attn.q_proj",)))
    pipeline, (tokens_BT, labels_BT) = Pipeline(run), batch(0, run)
    first = pipeline.stages[0]
    assert not first.part.parameters and pipeline.stages[2].part.parameters
    if keeps:
        counted: dict[MicrobatchId, tuple[Payload, Payload]] = {}
        first.kept = counted.__getitem__
    trace = pipeline.train(microbatch(0), tokens_BT, labels_BT)
    assert first.counted == {microbatch(0)} and not any(tensor.any() for tensor in trace.gradients[0])
    first.uncount(microbatch(0), trace.activations[0], trace.gradients[1])
    assert not first.counted


def taken_in(run: RunRecord, stage: int, slot: Slot, values: tuple[float, ...]) -> None:
    """By the data peer (0), or a stage."""
    spec = PartSpec.of(run, stage)
    boundaries = (build_stage_part(spec) if stage else build_data_part(spec)).boundaries
    tensors = BoundaryTensors(boundaries, BoundaryCodecs.of(run), TensorStore(NO_LIMIT), torch.device("cpu"))
    payload = encode_payload((torch.tensor(values),), tensors.of_slot(slot), codec_of("float32"))
    tensors.take_in(microbatch(0), slot, payload, PeerId("sender"))


@pytest.mark.parametrize("values", [(-1.0, 4.0, 3.0), (1.0, -4.0, 3.0), (1.0, 4.0, 33.0), (1.0, 4.0, 0.5), (1.0, 4.0, 1e30)])
def test_what_no_loss_can_be_is_refused_where_it_comes_in(values: tuple[float, ...]) -> None:
    run = record(**THIN)
    taken_in(run, 0, Slot.INPUT, (5.5, 176.0, 32.0))
    taken_in(run, 0, Slot.INPUT, (0.0, 0.0, 0.0))  # of a stage whose own result is not finite
    with pytest.raises(RemoteProtocolError, match="loss: expected one of at most 32 tokens"):
        taken_in(run, 0, Slot.INPUT, values)


def test_a_loss_itself_says_how_large_it_is() -> None:
    run = record(**THIN)
    boundary, codec = run.boundary_after(3), codec_of("float32")
    below = PartSpec.of(run, 0).boundaries((), 257).below
    assert check_payload(encode_payload((torch.tensor([5.5, 176.0, 32.0]),), boundary, codec), boundary, codec, below) == 5.5


@pytest.mark.parametrize(("stage", "slot"), [(1, Slot.INPUT_GRADIENT), (0, Slot.OUTPUT_GRADIENT)])
def test_nothing_of_integers_comes_back(stage: int, slot: Slot) -> None:
    """To a thin data peer, whose stage 1 got ids and labels alone, that is nothing at all."""
    run = record(**THIN)
    spec = PartSpec.of(run, stage)
    boundaries = (build_stage_part(spec) if stage else build_data_part(spec)).boundaries
    tensors = BoundaryTensors(boundaries, BoundaryCodecs.of(run), TensorStore(NO_LIMIT), torch.device("cpu"))
    boundary, codec = tensors.of_slot(slot), codec_of("float32")
    assert all(each.is_integer for each in boundary) and tensors.slot_bytes(slot) == 0
    sent = encode_gradient(batch(0, run), boundary, codec)
    assert sent.nbytes == 0
    tensors.take_in(microbatch(0), slot, sent, PeerId("sender"))
    for gradient in (tensors.read(microbatch(0), slot), decode_gradient(sent, boundary, codec)):
        assert [(tuple(tensor.shape), bool(tensor.any())) for tensor in gradient] == [(each.shape, False) for each in boundary]
    with pytest.raises(RemoteProtocolError, match="expected 0 bytes"):
        tensors.take_in(microbatch(1), slot, memoryview(b"1234"), PeerId("sender"))


@pytest.mark.parametrize("values", [(1000.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 0.0)])
def test_the_gradient_of_a_loss_is_one(values: tuple[float, ...]) -> None:
    run = record(**THIN)
    taken_in(run, 3, Slot.OUTPUT_GRADIENT, (1.0, 0.0, 0.0))
    with pytest.raises(RemoteProtocolError, match=r"gradient of a loss: expected \[1.0, 0.0, 0.0\]"):
        taken_in(run, 3, Slot.OUTPUT_GRADIENT, values)
