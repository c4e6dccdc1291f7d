"""What of a config is published, how it is spelled, and what another installation is told."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import transformers

from experiments.families import Swarm, export_is_equal
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.live.peer.assembly import check_model
from gwtf_p2p.live.peer.config import RunMismatch
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import decode_run, encode
from gwtf_p2p.training.model.config import load_config, published_config
from gwtf_p2p.training.model.preflight import mismatch, preflight, versions
from gwtf_p2p.training.model.split import PartSpec, build_stage_part
from gwtf_p2p.training.model.structure import sample_tokens
from tests.training.swarm import LLAMA

PLAIN = {
    "run_id": "r", "seed": 0, "stages": 2, "model": LLAMA, "sequence_length": 8, "microbatch_size": 1,
    "microbatches_per_data_peer": 1,
}  # fmt: skip


def test_rotary_settings_are_published_in_the_spelling_of_all_releases() -> None:
    nested = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    published = published_config(nested)
    assert published["rope_theta"] == 100.0
    assert not {"rope_parameters", "rope_scaling"} & published.keys()
    assert load_config(published).rope_parameters["rope_theta"] == 100.0

    scaled = {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}
    published = published_config(scaled)
    assert (published["rope_theta"], published["rope_scaling"]) == (5e5, {"rope_type": "linear", "factor": 4.0})
    assert load_config(published).rope_parameters == load_config(scaled).rope_parameters


def test_what_is_not_about_the_model_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    stated = {**LLAMA, "quantization_config": {"load_in_4bit": True}, "temperature": 0.5, "torch_dtype": "bfloat16"}
    with caplog.at_level(logging.WARNING):
        assert published_config(stated) == LLAMA
    assert "model_config.quantization_config is left out" in caplog.text
    assert "model_config.temperature is left out" in caplog.text


def test_a_field_that_transformers_does_not_know_is_refused() -> None:
    with pytest.raises(
        InputError, match=rf"model_config\.quantum_gates: unknown field of llama in transformers {transformers.__version__}"
    ):
        load_config({**LLAMA, "quantum_gates": 3})


def test_a_record_carries_boundary_and_fingerprint() -> None:
    run = run_from_plain(PLAIN, "test")
    assert [tensor.shape for tensor in run.boundary] == [(1, 8, LLAMA["hidden_size"])]
    assert run.activation_bytes == 4 * 8 * LLAMA["hidden_size"]
    assert run.fingerprint.versions == versions()
    assert decode_run(encode(run)) == run
    check_model(run)


def test_a_peer_that_computes_something_else_is_refused_with_both_versions() -> None:
    run = run_from_plain({**PLAIN, "model": {**LLAMA, "rope_theta": 1e6}}, "test")
    other = dataclasses.replace(run.fingerprint, versions={"transformers": "4.57.0", "torch": "2.4.0"})
    # As if this installation read another rotary base from the same record.
    misread = dataclasses.replace(run, fingerprint=other, model_config={**LLAMA, "rope_theta": 1e4})
    with pytest.raises(RunMismatch, match=r"(rotary|proj).*transformers 4\.57\.0 there and .* here") as caught:
        check_model(misread)
    assert caught.value.exit_code == 5


def test_the_smallest_rotary_frequency_counts_like_the_largest() -> None:
    """A base that long sequences alone would show: the small copy's gradients do not."""
    scaling = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
    config = {**LLAMA, "max_position_embeddings": 131072, "rope_theta": 5e5}
    one = {**config, "rope_scaling": {**scaling, "original_max_position_embeddings": 8192}}
    other = {**config, "rope_scaling": {**scaling, "factor": 8.0, "original_max_position_embeddings": 8192}}
    assert mismatch(one, preflight(one)) == ""
    assert "inv_freq" in mismatch(other, preflight(one))


def test_an_unknown_field_in_a_record_of_another_release_is_a_mismatch() -> None:
    run = run_from_plain(PLAIN, "test")
    newer = dataclasses.replace(
        run,
        model_config={**LLAMA, "quantum_gates": 3},
        fingerprint=dataclasses.replace(run.fingerprint, versions={"transformers": "9.0.0"}),
    )
    with pytest.raises(RunMismatch, match=r"quantum_gates: unknown field .*transformers 9\.0\.0 there and"):
        check_model(newer)


@pytest.mark.parametrize(
    ("stated", "theta"),
    [
        ({"rope_theta": 500_000.0, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, 500_000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "transformers_version": "5.23.0"}, 100.0),
    ],
    ids=["quantised", "written by transformers 5"],
)
def test_configs_as_in_public_bug_reports_are_published_right(stated: dict[str, Any], theta: float) -> None:
    published = published_config({**LLAMA, **stated})
    assert "quantization_config" not in published and "rope_parameters" not in published
    assert load_config(published).rope_parameters["rope_theta"] == theta


def test_a_config_that_says_it_is_quantised_is_exported_as_what_was_trained() -> None:
    model = {**LLAMA, "quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}
    run = run_from_plain({**PLAIN, "model": model}, "test")
    assert export_is_equal(Swarm(run), sample_tokens(load_config(run.model_config), 0))


def test_a_stage_computes_with_the_rotary_table_that_release_5_has_written() -> None:
    sizes = {**LLAMA, "head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    part = build_stage_part(PartSpec.of(run_from_plain({**PLAIN, "model": sizes}, "test"), 1))
    table = next(buffer for name, buffer in part.model.named_buffers() if name.endswith("inv_freq"))
    assert table[-1].item() == pytest.approx(100.0 ** (-30 / 32), rel=1e-6)


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "llama"])
def test_a_rotary_table_of_part_of_the_head_is_published_so_that_it_means_the_same(family: str) -> None:
    """Families differ in how they spell it, and one drops what it does not know in silence."""
    table = {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.5}
    sizes = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads" or family != "gpt_neox"}
    published = published_config({**sizes, "model_type": family, "rope_parameters": dict(table)})
    assert load_config(published).rope_parameters == table
