"""Families that are built otherwise than llama and gpt2: split is unsplit, and what cannot be split is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig

from experiments.families import Row, Swarm, examine, export_is_equal, main, small_run
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.wire.records import BoundaryTensor
from gwtf_p2p.training.codecs.payload import check_payload, decode_payload, encode_payload
from gwtf_p2p.training.codecs.table import codec_of
from gwtf_p2p.training.model.config import load_config
from gwtf_p2p.training.model.preflight import BOUND, Parts, Result, checked_unsplit, compare, preflight, split_result
from gwtf_p2p.training.model.split import PartSpec, boundary_of, build_whole_model
from gwtf_p2p.training.model.structure import LENGTH, ROWS, probe, sample_tokens, whole_model
from tests.training.swarm import GPT2, LLAMA

LATER = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="as transformers 5.23 has this family: older releases lack it, or build it in a way that is refused",
)

QUICK = ("llama", "gpt2", "qwen2_moe", "gemma2", "bloom", "roformer", "openai-gpt", pytest.param("gemma4_text", marks=LATER))
"""Rotary and learned positions, experts, a sliding window with soft-capping, ALiBi, a table that all layers are given,
weights that constructors draw, layers with heads of several sizes."""


@pytest.mark.parametrize("family", QUICK)
def test_split_trains_and_exports_like_unsplit(family: str) -> None:
    with torch.random.fork_rng(devices=[]):  # transformers draws where it loads the export
        row = examine(family, steps=2)
    assert row.equal and row.export_equal, row.reason
    assert (row.loss_difference, row.worst_gradient, row.trained_steps) == (0.0, 0.0, 2)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # Four streams of hidden states, and per-layer embeddings.
        pytest.param("gemma3n_text", [(4, ROWS, LENGTH, 64)] + 4 * [(ROWS, LENGTH, 256)], marks=LATER),
        # Four streams, and the token ids, which its routing needs.
        pytest.param("deepseek_v4", [(ROWS, LENGTH, 4, 64), (ROWS, LENGTH)], marks=LATER),
    ],
)
def test_what_crosses_a_boundary_comes_from_the_model(family: str, expected: list[tuple[int, ...]]) -> None:
    run = small_run(family)
    boundary = boundary_of(PartSpec.of(run, 0))
    assert [tensor.shape for tensor in boundary] == expected
    swarm = Swarm(run)
    config = load_config(run.model_config)
    loss = swarm.microbatch(0, sample_tokens(config, 0), sample_tokens(config, 1))
    unsplit = checked_unsplit(build_whole_model(run.model_config, run.seed))
    difference = compare(unsplit, Result(loss, swarm.gradients()))
    assert (difference.loss, difference.worst[1]) == (0.0, 0.0)


def test_weights_that_only_a_constructor_draws_are_as_it_draws_them_and_the_same_in_every_part() -> None:
    with torch.random.fork_rng(devices=[]):  # its default config has dropout, which a run leaves out
        run = small_run("openai-gpt")
    whole = dict(build_whole_model(run.model_config, run.seed).named_parameters())
    drawn = [parameter for name, parameter in whole.items() if name.endswith("c_attn.weight")]
    assert drawn and all(abs(parameter.std().item() - 0.02) < 0.002 for parameter in drawn)
    assert not torch.equal(drawn[0], drawn[1]), "each from a stream of its own"
    for executor in Swarm(run).executors:
        for name, parameter in executor.part.parameters.items():
            assert torch.equal(parameter, whole[name]), name


def test_a_moved_weight_is_seen() -> None:
    """The control: the comparison can fail, and says where."""
    structure, small = probe(load_config(LLAMA))
    unsplit = checked_unsplit(whole_model(small, 0))
    assert compare(unsplit, split_result(Parts(small, structure))).worst[1] <= BOUND
    parts = Parts(small, structure)
    name = next(name for name in parts.stages[1].parameters if name.endswith("mlp.up_proj.weight"))
    with torch.no_grad():
        parts.stages[1].parameters[name][0, 0] += 0.5
    difference = compare(unsplit, split_result(parts))
    assert difference.gradients[name] > 100 * BOUND
    assert difference.loss > BOUND


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        pytest.param("hrm_text", "hrm_text cannot be split: its layers are called .* a looped model", marks=LATER),
        pytest.param("zaya", "zaya cannot be split: its layers hand on more than a hidden state", marks=LATER),
    ],
)
def test_a_family_that_cannot_be_split_is_named_with_its_reason(family: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        small_run(family)


def test_a_model_that_shares_keys_between_layers_is_refused_by_the_argument() -> None:
    config = AutoConfig.for_model("gemma3n_text")
    with pytest.raises(InputError, match=r"cannot be split: argument .*shared_kv_states.* an earlier layer has computed"):
        probe(config)


def test_an_encoder_is_no_language_model() -> None:
    config: Mapping[str, Any] = {
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"model_config\.is_decoder: expected a causal model"):
        preflight(config)
    assert preflight({**config, "is_decoder": True}).numbers


def test_a_dropout_in_the_config_changes_nothing() -> None:
    assert preflight({**GPT2, "resid_pdrop": 0.3}).numbers == preflight(GPT2).numbers


def test_payloads_of_several_tensors_travel_as_one_byte_string() -> None:
    boundary = (BoundaryTensor("hidden_state", (2, 3)), BoundaryTensor("input_ids.0", (2,), is_integer=True))
    payload = (torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 300_000]))
    for name in ("float32", "bfloat16"):
        codec = codec_of(name)
        encoded = encode_payload(payload, boundary, codec)
        assert encoded.nbytes == sum(tensor.encoded_bytes(codec.form) for tensor in boundary)
        check_payload(encoded, boundary, codec)
        hidden, tokens = decode_payload(encoded, boundary, codec)
        assert torch.equal(hidden.float(), payload[0].to(hidden.dtype).float())
        assert torch.equal(tokens, payload[1])
        for read in (check_payload, decode_payload):
            with pytest.raises(RemoteProtocolError, match=f"expected {encoded.nbytes} bytes"):
                read(encoded[1:], boundary, codec)


@LATER
def test_an_export_has_the_tensors_that_no_step_changes(tmp_path: Path) -> None:
    """deepseek_v3's routing biases are buffers: not trained, but part of what `transformers` loads."""
    run = small_run("deepseek_v3")
    swarm = Swarm(run)
    assert export_is_equal(swarm, sample_tokens(load_config(run.model_config), 0))


def _file_of(folder: Path, *rows: Row) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(asdict(row))}\n" for row in rows))
    return path


def test_what_a_file_says_of_a_family_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file_of(tmp_path, Row("llama"), Row("llama", equal=True, trained_steps=7), Row("cpmant", reason="not causal"))
    before = path.read_text()
    assert main(["--families", "llama,cpmant", "--out", str(path), "--json"]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["family"], first["trained_steps"]) == ("llama", 7), "the newest line counts"
    assert second["reason"] == "not causal"
    assert path.read_text() == before


def test_a_new_family_is_added_to_the_file(tmp_path: Path) -> None:
    path = _file_of(tmp_path, Row("llama", equal=True))
    assert main(["--families", "llama,no_such_family", "--out", str(path), "--json"]) == 1
    added = json.loads(path.read_text().splitlines()[-1])
    assert added["family"] == "no_such_family" and added["reason"]
    assert len(path.read_text().splitlines()) == 2


def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"family": "llama"}\n{"a": 1}\n')
    assert main(["--families", "llama", "--out", str(path)]) == 2
    assert "line 2" in capsys.readouterr().out
