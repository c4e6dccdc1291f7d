"""A live swarm fine-tunes adapters of a pre-trained model with clipping and evaluates itself, all as one process does."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.loss import loss_of, summed_loss
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.data.batches import open_data
from gwtf_p2p.training.data.held_out import evaluation_batches
from gwtf_p2p.training.model.split import PartSpec, build_stage_part
from gwtf_p2p.training.state.export import export_hf

pytestmark = pytest.mark.live

STEPS, DEADLINE_S = 2, 240.0
SMALL: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 256,
}  # fmt: skip


def pretrained(folder: Path) -> Path:
    """A small model as a hub folder, made here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)
    return folder


def record(tmp_path: Path) -> RunRecord:
    plain = {
        "run_id": "evaluated",
        "weights": str(pretrained(tmp_path / "hub")),
        "tokenizer": "byte",
        "adapters": {"rank": 2, "targets": ["q_proj", "down_proj"]},
        "dataset": f"text:{__file__}",
        "stages": 2,
        "seed": 1,
        "sequence_length": 32,
        "microbatch_size": 2,
        "microbatches_per_data_peer": 2,
        "total_iterations": STEPS,
        "checkpoint_every": 1,
        "optimizer": {"learning_rate": 0.05, "gradient_clip": 1e-3},
        "loss": {"z": 1e-4},
        "evaluation": {"every": 1, "held_out": 0.1, "microbatches": 2},
    }
    return run_from_plain(plain, "test")


def in_one_process(run: RunRecord) -> tuple[list[float], list[float]]:
    """(training loss of each step, evaluation loss before each step and at the end) of peft's own model."""
    import peft

    source, tokenizer = open_data(run)
    held = evaluation_batches(run, source, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(run.weights.source, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alpha: Any = run.adapters.alpha
        targets = list(run.adapters.targets)
        whole = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM"))
    named = {name.removeprefix("base_model.model."): p for name, p in whole.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for stage in (1, 2):
            for name, value in build_stage_part(PartSpec.of(run, stage)).parameters.items():
                named[name].copy_(value)
    optimizer = PartOptimizer(named, run.optimizer)
    losses, evaluated = [], []
    for iteration in range(STEPS + 1):
        with torch.no_grad():
            sums = [summed_loss(whole(input_ids=t, use_cache=False).logits, labels) for t, labels in held]
        evaluated.append(sum(total for total, _ in sums) / sum(count for _, count in sums))
        if iteration == STEPS:
            return losses, evaluated
        each = []
        for index in range(2):
            tokens_BT, labels_BT = source.batch(iteration, index, 0, 1)
            each.append(loss_of(whole(input_ids=tokens_BT, use_cache=False).logits, labels_BT, run.loss))
        (sum(each) / 2).backward()  # type: ignore[union-attr]
        losses.append(sum(loss.item() for loss in each) / 2)
        optimizer.step({name: p.grad for name, p in named.items() if p.grad is not None}, iteration)
        whole.zero_grad()
    raise AssertionError("not reached")


def lived(run: RunRecord, folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """All reports of a live run, up to the last evaluation."""
    config = LocalRunConfig(1, 1, checkpoint_dir=folder / "checkpoints")
    local = LocalRun(config, run, folder)
    heard: list[tuple[str, Mapping[str, Any]]] = []
    end = time.monotonic() + DEADLINE_S
    try:
        local.begin()
        while not (local.finished(STEPS) and [r for _, r in heard if r["name"] == "evaluated"][STEPS:]):
            heard += local.poll(0.2)
            assert time.monotonic() < end, [local.tail(name) for name in local.lines]
    finally:
        local.stop()
    return heard


@pytest.mark.slow  # half a minute on a free machine
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21 asks transformers 5.23
def test_a_live_run_of_adapters_is_evaluated_as_in_one_process_and_its_adapter_loads(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    run = record(tmp_path)
    heard = lived(run, tmp_path)
    found = {report["iteration"]: report for _, report in heard if report["name"] == "evaluated"}
    steps = {report["iteration"]: report for who, report in heard if report["name"] == "optimizer_step" and who == "stage1.0"}
    trained = {report["iteration"]: report["loss"] for who, report in heard if report["name"] == "stepped" and who == "data0"}
    losses, evaluated = in_one_process(run)
    assert [found[i]["loss"] for i in range(STEPS + 1)] == pytest.approx(evaluated, abs=1e-4)
    assert [trained[i] for i in range(STEPS)] == pytest.approx(losses, abs=1e-4)
    assert found[0]["perplexity"] == pytest.approx(math.exp(evaluated[0]), rel=1e-3)
    norms = {report["gradient_norm"] for _, report in heard if report["name"] == "optimizer_step" and report["iteration"] == 0}
    assert norms == {steps[0]["gradient_norm"]}, "every stage is told one norm"
    assert steps[0]["gradient_norm"] > run.optimizer.gradient_clip
    export_hf(tmp_path / "checkpoints", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == run.weights.source
    fresh = AutoModelForCausalLM.from_pretrained(run.weights.source, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "out")
    held = evaluation_batches(run, *open_data(run))
    with torch.no_grad():
        sums = [summed_loss(loaded(input_ids=t, use_cache=False).logits, labels) for t, labels in held]
    assert sum(s for s, _ in sums) / sum(c for _, c in sums) == pytest.approx(evaluated[-1], abs=1e-4)


WAITS = {"every": 1, "held_out": 0.1, "microbatches": 2, "patience": 2, "keep_best": True}


def until_complete(run: RunRecord, folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """All reports of a live run with checkpoints until it is complete at every peer."""
    folder.mkdir(exist_ok=True)
    local = LocalRun(LocalRunConfig(1, 1, checkpoint_dir=folder / "checkpoints"), run, folder)
    heard: list[tuple[str, Mapping[str, Any]]] = []
    end = time.monotonic() + DEADLINE_S
    try:
        local.begin()
        while len({who for who, report in heard if report["name"] == "run_complete_everywhere"}) < 3:
            heard += local.poll(0.2)
            assert time.monotonic() < end, [local.tail(name) for name in local.lines]
    finally:
        local.stop()
    return heard


@pytest.mark.slow  # half a minute on a free machine
def test_a_run_without_better_evaluations_ends_and_its_best_weights_are_exported(tmp_path: Path) -> None:
    """Its steps grow until they do harm. What it knows lies on its disks: started again, it is still over."""
    plain = {
        "run_id": "waits",
        "model": {"model_type": "llama", **SMALL},
        "dataset": f"text:{Path(__file__).parents[3] / 'LICENSE'}",
        "stages": 2,
        "seed": 1,
        "sequence_length": 32,
        "microbatch_size": 2,
        "microbatches_per_data_peer": 2,
        "checkpoint_every": 100,
        "keep_checkpoints": 1,
        "optimizer": {"learning_rate": 100.0, "warmup_iterations": 1000},
        "evaluation": WAITS,
    }
    run = run_from_plain(plain, "test")
    heard = until_complete(run, tmp_path)
    losses = {r["iteration"]: r["loss"] for _, r in heard if r["name"] == "evaluated"}
    best = min(losses, key=lambda version: losses[version])
    over = {r["iterations"] for _, r in heard if r["name"] == "run_complete"}
    assert best > 0 and over == {best + 3}, "two evaluations after the best one, and the step of the second"
    reasons = {r["early"] for _, r in heard if r["name"] == "run_complete"}
    assert reasons == {f"2 evaluations in a row were not better than the one after {best} iterations (loss {losses[best]:.4f})"}
    for stage in range(3):
        kept = {int(each.name.removeprefix("step_")) for each in (tmp_path / f"checkpoints/stage_{stage:05d}").glob("step_*")}
        assert {best, best + 3} <= kept, "no newer checkpoint has pushed out the best one"
    assert export_hf(tmp_path / "checkpoints", tmp_path / "best", best=True) == best
    assert export_hf(tmp_path / "checkpoints", tmp_path / "newest") == best + 3
    held = evaluation_batches(run, *open_data(run))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "best", dtype=torch.float32)
    with torch.no_grad():
        sums = [summed_loss(loaded(input_ids=t, use_cache=False).logits, labels) for t, labels in held]
    assert sum(total for total, _ in sums) / sum(count for _, count in sums) == pytest.approx(losses[best], abs=1e-4)
    again = until_complete(run, tmp_path)
    assert not [r for _, r in again if r["name"] == "stepped"]
    assert {r["early"] for _, r in again if r["name"] == "run_complete"} == reasons
