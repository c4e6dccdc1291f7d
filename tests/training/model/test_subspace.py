"""Boundaries in a subspace: the split model is the unsplit one of the same weights; what crosses is small; what is exported."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from experiments.families import Swarm, small_run
from experiments.wire_loss import Settings
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.cli.shared.run_report import report_of, told
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.wire.records import RunRecord, WeightsSpec, WireSpec
from gwtf_p2p.protocol.wire.tensor_formats import INT8
from gwtf_p2p.training.codecs.payload import check_payload, encode_payload
from gwtf_p2p.training.codecs.table import codec_of
from gwtf_p2p.training.control import control_losses
from gwtf_p2p.training.data.batches import open_data
from gwtf_p2p.training.model.config import load_config
from gwtf_p2p.training.model.memory import full_hop_bytes
from gwtf_p2p.training.model.preflight import Result, compare, preflight
from gwtf_p2p.training.model.run_check import check_run
from gwtf_p2p.training.model.split import PartSpec, boundary_of, build_whole_model, parameter_shapes
from gwtf_p2p.training.model.subspace.basis import basis, outside
from gwtf_p2p.training.model.subspace.whole import WholeInSubspace
from gwtf_p2p.training.model.subspace.writers import writers_of
from gwtf_p2p.training.state.checkpoint import save_checkpoint
from gwtf_p2p.training.state.export import export_hf
from gwtf_p2p.training.state.tensors import export_state
from tests.training.swarm import GPT2, LLAMA, batch, microbatch, run_record

UNTIED = {**GPT2, "tie_word_embeddings": False}
MIXTRAL: dict[str, Any] = {
    **LLAMA, "model_type": "mixtral", "num_hidden_layers": 3, "num_local_experts": 3, "num_experts_per_tok": 2,
}  # fmt: skip
FACTOR = 4
BOUND = 1e-6


def record(model_config: dict[str, Any], **changes: Any) -> RunRecord:
    run = run_record(model_config, subspace=FACTOR, **changes)
    return run_record(model_config, subspace=FACTOR, boundary=boundary_of(PartSpec.of(run, 0)), **changes)


def unsplit(run: RunRecord) -> tuple[WholeInSubspace, Result]:
    whole = WholeInSubspace(load_config(run.model_config), run.subspace, run.seed)
    tokens_BT, labels_BT = batch(0)
    loss = functional.cross_entropy(whole.logits(tokens_BT).flatten(0, 1), labels_BT.flatten())
    loss.backward()
    return whole, Result(loss.item(), {name: p.grad for name, p in whole.parameters.items() if p.grad is not None})


@pytest.mark.parametrize("model", [LLAMA, UNTIED, MIXTRAL], ids=["llama", "gpt2", "mixtral"])
def test_the_split_model_is_the_unsplit_one_of_the_same_weights(model: dict[str, Any]) -> None:
    run = record(model)
    swarm = Swarm(run)
    loss = swarm.microbatch(0, *batch(0))
    whole, expected = unsplit(run)
    compared = compare(expected, Result(loss, swarm.gradients()))
    assert compared.loss <= BOUND and compared.worst[1] <= BOUND, compared.worst
    trained = {name: p.shape for part in swarm.executors for name, p in part.part.parameters.items()}
    assert trained == {name: p.shape for name, p in whole.parameters.items()}


def test_what_crosses_minus_what_all_know_of_the_tokens_is_in_the_subspace_and_nothing_else_is_kept() -> None:
    """Moved at random, the unsplit model's residual stream stays in the span behind every layer, to 1e-5 of its norm."""
    run = record(LLAMA)
    whole = WholeInSubspace(load_config(run.model_config), run.subspace, run.seed)
    tokens_BT = batch(0)[0]
    table = whole.parameters["model.embed_tokens.weight"]
    drawn = build_whole_model(run.model_config, run.seed).get_parameter("model.embed_tokens.weight").detach()[tokens_BT]
    with torch.no_grad():
        for name, parameter in whole.parameters.items():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        whole.products.multiply()
        hidden = whole.model(tokens_BT, output_hidden_states=True, use_cache=False).hidden_states[:-1]
    assert table.shape == (257, 4) and len(hidden) == 6
    for each in hidden:
        assert (each - drawn).abs().max() > 1e-2
        assert outside(each - drawn, whole.products.basis_dk) <= 1e-5 * each.norm()


def test_peers_draw_the_same_basis_and_it_is_orthonormal() -> None:
    one, other = basis(48, 6, 3), basis(48, 6, 3)
    assert torch.equal(one, other) and not torch.equal(one, basis(48, 6, 4))
    assert torch.allclose(one.T @ one, torch.eye(6), atol=1e-6)


def test_documents_in_one_window_keep_apart_in_a_subspace() -> None:
    for model in (LLAMA, UNTIED):
        preflight(model, by_document=True, subspace=True)


def test_a_moved_product_is_seen_by_the_comparison() -> None:
    """The control: what is compared can differ."""
    run = record(LLAMA)
    swarm, (_, expected) = Swarm(run), unsplit(run)
    with torch.no_grad():
        swarm.stages[1].part.parameters["model.layers.2.mlp.down_proj.weight"][0, 0] += 0.5
    loss = swarm.microbatch(0, *batch(0))
    assert compare(expected, Result(loss, swarm.gradients())).worst[1] > 1e-3


def test_ids_that_no_table_has_are_refused() -> None:
    swarm, codec = Swarm(record(UNTIED)), codec_of("float32")
    payload, boundaries = swarm.data.embed(microbatch(0), *batch(0)), swarm.stages[0].part.boundaries
    check_payload(encode_payload(payload, boundaries.input, codec), boundaries.input, codec, boundaries.below)
    strange = torch.full_like(payload[1], 2**31 - 1)
    sent = encode_payload((payload[0], strange), boundaries.input, codec)
    with pytest.raises(RemoteProtocolError, match="tokens: expected whole numbers"):
        check_payload(sent, boundaries.input, codec, boundaries.below)


@pytest.mark.parametrize("factor", [8, 50])
def test_a_hop_carries_a_small_part_of_the_bytes(factor: int) -> None:
    """With int8, subspace 50 is at most 0.008 of float32 forwards, ids included; ids do not come back."""
    wide = {**LLAMA, "hidden_size": 512, "num_hidden_layers": 2}
    run = run_record(wide, 2, subspace=factor, sequence_length=64, wire=WireSpec("int8", "int8"))
    run = dataclasses.replace(run, boundary=boundary_of(PartSpec.of(run, 0)))
    full = full_hop_bytes(run)
    assert full == 4 * 2 * 64 * 512
    assert run.activation_bytes == sum(each.encoded_bytes(INT8) for each in run.boundary)
    assert run.activation_bytes <= full * (0.008 if factor == 50 else 0.036)
    assert run.gradient_bytes == run.activation_bytes - 4 * 2 * 64


@pytest.mark.parametrize("model", [LLAMA, UNTIED, MIXTRAL], ids=["llama", "gpt2", "mixtral"])
def test_a_trained_run_is_exported_as_an_ordinary_model_of_equal_logits(model: dict[str, Any], tmp_path: Path) -> None:
    run = record(model)
    swarm = Swarm(run)
    for iteration in range(2):
        swarm.microbatch(iteration, *batch(iteration))
        swarm.step(iteration)
    for stage, (executor, optimizer) in enumerate(zip(swarm.executors, swarm.optimizers, strict=True)):
        save_checkpoint(tmp_path / "checkpoints", run, stage, export_state(executor.part.parameters, optimizer))
    export_hf(tmp_path / "checkpoints", tmp_path / "out")
    with torch.random.fork_rng(devices=[]):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    whole = WholeInSubspace(load_config(model), run.subspace, run.seed)
    with torch.no_grad():
        for executor in swarm.executors:
            for name, parameter in executor.part.parameters.items():
                whole.parameters[name].copy_(parameter)
        expected, found = whole.logits(batch(0)[0]), loaded(batch(0)[0], use_cache=False).logits
    assert (found - expected).abs().max() <= BOUND * expected.abs().max()
    assert loaded.num_parameters() > sum(p.numel() for p in whole.parameters.values())


def test_the_control_in_one_process_is_what_a_swarm_in_a_subspace_learns() -> None:
    run = record(LLAMA)
    expected = control_losses(run, 2, 1)
    source = open_data(run)[0]
    swarm = Swarm(run)
    for iteration in range(2):
        losses = [swarm.microbatch(10 * iteration + n, *source.batch(iteration, n, 0, 1)) for n in range(2)]
        swarm.step(iteration)
        assert sum(losses) / 2 == pytest.approx(expected[iteration], rel=1e-5)


def test_peers_that_have_another_subspace_have_another_model() -> None:
    run = run_record(LLAMA)
    assert len({dataclasses.replace(run, subspace=each).model_hash for each in (0, 2, 4)}) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights": WeightsSpec("owner/name")}, r"boundary\.subspace: expected a run from scratch: pre-trained weights"),
        ({"subspace": 1}, r"boundary\.subspace: expected 0 or at least 2"),
    ],
)
def test_what_cannot_go_with_a_subspace_is_refused_with_the_reason(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        check_run(run_record(LLAMA, **{"subspace": 4, **changes}))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("gemma2", r"boundary\.subspace: expected none: the layers of gemma2 write to .* does not stay in a subspace"),
        ("bloom", r"boundary\.subspace: expected none: the layers of bloom get from their embedding what does not stay"),
        ("deepseek_v4", r"boundary\.subspace: expected none: the layers of deepseek_v4 take input_ids beside the hidden state"),
    ],
)
def test_a_family_that_a_subspace_cannot_hold_is_refused_by_name(config: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        writers_of(load_config(small_run(config).model_config))


def test_an_embedding_that_is_the_head_too_is_refused() -> None:
    with pytest.raises(InputError, match=r"model_config\.tie_word_embeddings: expected false with boundary\.subspace"):
        preflight(GPT2, subspace=True)


def test_a_subspace_of_less_than_a_dimension_is_refused() -> None:
    with pytest.raises(InputError, match=r"boundary\.subspace: expected at most the model's width of 16, got 50"):
        boundary_of(PartSpec.of(run_record(LLAMA, subspace=50), 0))


def test_a_run_file_asks_for_a_subspace_and_the_record_says_what_crosses() -> None:
    plain: dict[str, Any] = {
        "run_id": "small", "seed": 0, "model": {**LLAMA, "num_hidden_layers": 2}, "sequence_length": 12, "microbatch_size": 2,
        "microbatches_per_data_peer": 1, "boundary": {"subspace": 4},
    }  # fmt: skip
    run = run_from_plain(plain, "my.toml")
    assert run.subspace == 4
    assert [(each.name, each.shape, each.is_integer) for each in run.boundary] == [
        ("coefficients", (2, 12, 4), False),
        ("tokens", (2, 12), True),
    ]
    lines = "\n".join(told(report_of(run, "my.toml")))
    assert "a hop carries 480 B forward (float32) and 384 B backward (float32): 0.281 of all values in float32" in lines
    assert "boundaries are in a subspace of 1/4 of the width" in lines


def test_an_ordinary_model_of_as_many_weights_is_at_hand_for_comparison() -> None:
    plain = {"model": {**LLAMA, "intermediate_size": 400}, "sequence_length": 8, "microbatch_size": 1}
    plain["microbatches_per_data_peer"] = 1
    subspace, narrow = (Settings(wire, 0, 1, 1, plain).record() for wire in ("float32/4", "float32~4"))

    def weights(run: RunRecord) -> int:
        shapes = [parameter_shapes(PartSpec.of(run, stage)) for stage in range(run.stages + 1)]
        return sum(math.prod(shape) for each in shapes for shape in each.values())

    assert (subspace.subspace, narrow.subspace) == (4, 0)
    assert weights(narrow) == pytest.approx(weights(subspace), rel=0.02)
    assert narrow.model_config["intermediate_size"] < 400 and narrow.boundary_values == 8 * 16
