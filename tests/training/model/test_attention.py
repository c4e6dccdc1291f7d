"""Kernels of attention and recomputed activations are the run's: every peer computes as it says, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from experiments.families import Swarm, small_run
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.live.peer.assembly import Place, make_compute
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.model.config import load_config
from gwtf_p2p.training.model.preflight import Result, checked_unsplit, compare, mismatch, preflight
from gwtf_p2p.training.model.run_check import check_run
from gwtf_p2p.training.model.split import build_whole_model
from gwtf_p2p.training.model.structure import sample_tokens
from tests.training.swarm import LLAMA

KERNELS = ("eager", "sdpa")
M = MicrobatchId(PeerId("data"), 0, 0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma2"])
def test_the_split_model_computes_with_the_kernel_that_the_run_names(family: str, kernel: str) -> None:
    run: RunRecord = replace(small_run(family), attention_implementation=kernel)  # type: ignore[arg-type]
    if (family, kernel) == ("gemma2", "sdpa"):
        with pytest.raises(InputError, match="attention_implementation: expected auto, gemma2 has no sdpa"):
            check_run(run)
        return
    check_run(run)
    whole = build_whole_model(run.built_config, run.seed)
    config = load_config(run.model_config)
    batch = sample_tokens(config, 0), sample_tokens(config, 1)
    unsplit = checked_unsplit(whole)
    swarm = Swarm(run)
    kernels = {each.part.model.config._attn_implementation for each in swarm.executors}
    assert kernels == {kernel} == {whole.config._attn_implementation}
    compared = compare(unsplit, Result(swarm.microbatch(0, *batch), swarm.gradients()))
    assert compared.loss <= 1e-6 and compared.worst[1] <= 1e-6


def test_both_kernels_are_one_model_within_rounding_and_not_the_same_bits() -> None:
    """So a peer that takes the other one would be convicted of nothing, and still be another."""
    tokens_BT = sample_tokens(load_config(LLAMA), 0)
    one, other = (build_whole_model({**LLAMA, "attn_implementation": k}, 0)(tokens_BT, use_cache=False).logits for k in KERNELS)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_fingerprint_is_of_the_kernel_that_the_run_names() -> None:
    plain = {"run_id": "r", "model": LLAMA, "seed": 0, "sequence_length": 16, "microbatch_size": 1}
    plain |= {"microbatches_per_data_peer": 1, "stages": 2}
    run = run_from_plain({**plain, "attention_implementation": "eager"}, "test")
    assert run.fingerprint == preflight(run.built_config) and mismatch(run.built_config, run.fingerprint) == ""
    assert "attn_implementation" not in run.model_config
    with pytest.raises(InputError, match=r"test: attention_implementation: expected one of auto, eager, sdpa"):
        run_from_plain({**plain, "attention_implementation": "flash_attention_2"}, "test")


@pytest.mark.parametrize("kernel", ["flash_attention_2", "somebody/kernels", 3])
def test_a_record_cannot_have_the_library_fetch_code(kernel: Any) -> None:
    with pytest.raises(InputError, match="attention_implementation: expected eager or sdpa"):
        load_config({**LLAMA, "attn_implementation": kernel})


def test_a_run_that_recomputes_keeps_no_activations_at_its_stage_peers() -> None:
    run = small_run("llama")
    tokens_BT = sample_tokens(load_config(run.model_config), 0)
    found = []
    for recompute in (False, True):
        data = Swarm(run).data
        computing = make_compute(PeerConfig("peer"), replace(run, recompute=recompute), Place(Stage(1)))
        executor = computing.executor
        assert isinstance(executor, StageExecutor)
        payload = data.embed(M, tokens_BT)
        output = executor.forward(M, payload)
        assert (executor._held[M].computed is None) == recompute
        gradient = executor.backward(M, tuple(torch.ones_like(each) for each in output))
        found.append((output, gradient, executor.gradient_vector().tensors))
    (one, one_back, one_sum), (other, other_back, other_sum) = found
    assert all(torch.equal(a, b) for a, b in zip((*one, *one_back), (*other, *other_back), strict=True))
    assert all(torch.equal(one_sum[name], other_sum[name]) for name in one_sum)
