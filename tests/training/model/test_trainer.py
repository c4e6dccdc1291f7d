"""Fine-tuning in two stages is what `transformers.Trainer` does: the same losses, norms and weights at equal data."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord, WeightsSpec
from gwtf_p2p.training.compute.optimizer import PartOptimizer, learning_rate
from gwtf_p2p.training.data.batches import open_data
from gwtf_p2p.training.model.config import published_config
from gwtf_p2p.training.model.split import weight_hashes
from gwtf_p2p.training.state.checkpoint import save_checkpoint
from gwtf_p2p.training.state.export import export_hf
from gwtf_p2p.training.state.tensors import export_state
from tests.training.swarm import LLAMA, Pipeline, microbatch, run_record

LENGTH, ROWS, MICROBATCHES, STEPS = 32, 2, 4, 12
DEADLINE_S = 300.0
RECIPE = OptimizerSpec(
    learning_rate=2e-3, weight_decay=0.1, gradient_clip=0.1, schedule="cosine", warmup_iterations=3, total_iterations=STEPS
)
"""Steps are clipped; the rate rises, and falls to nothing."""


def run_on_text(config: Any, **changes: Any) -> RunRecord:
    """Two stages, on this file as bytes."""
    sizes = {"sequence_length": LENGTH, "microbatch_size": ROWS, "microbatches_per_data_peer": MICROBATCHES}
    return run_record(config, stages=2, dataset=f"text:{__file__}", tokenizer="byte", **{**sizes, **changes})


@dataclasses.dataclass(frozen=True)
class Trained:
    """Loss and gradient norm (before clipping) of each step, and the weights at the end."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def split(run: RunRecord, steps: int, checkpoints: Path) -> Trained:
    """Through the executors of two stages and a data peer, as a swarm does it; checkpoints of the end are written."""
    source, _ = open_data(run)
    pipeline = Pipeline(run)
    optimizers = [PartOptimizer(executor.part.parameters, run.optimizer) for executor in pipeline.executors]
    losses, norms = [], []
    for number in range(steps):
        batches = [(microbatch(i, number), *source.batch(number, i, 0, 1)) for i in range(MICROBATCHES)]
        losses.append(sum(pipeline.train(*each).loss for each in batches) / MICROBATCHES)
        means = [executor.gradient_vector().mean() for executor in pipeline.executors]
        norms.append(sum(float(g.double().square().sum()) for mean in means for g in mean.values()) ** 0.5)
        for executor, optimizer, mean in zip(pipeline.executors, optimizers, means, strict=True):
            optimizer.step(mean, number, norms[-1])
            executor.reset_gradients()
    for stage, (executor, optimizer) in enumerate(zip(pipeline.executors, optimizers, strict=True)):
        save_checkpoint(checkpoints, run, stage, export_state(executor.part.parameters, optimizer))
    weights = {name: p.detach() for executor in pipeline.executors for name, p in executor.part.parameters.items()}
    return Trained(losses, norms, weights)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that the project has trained itself, exported as a folder of the hub."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = {**LLAMA, "tie_word_embeddings": True, "eos_token_id": 256, "bos_token_id": None}
    trained = split(run_on_text(config, optimizer=OptimizerSpec(learning_rate=1e-2)), 24, folder / "checkpoints")
    assert trained.losses[-1] < trained.losses[0] - 1, "it is pre-trained, not random"
    with torch.random.fork_rng(devices=[]):
        export_hf(folder / "checkpoints", folder / "hub")
    return folder / "hub"


class Windows(Dataset[dict[str, Tensor]]):
    """The windows of the run in the order in which its microbatches have them."""

    def __init__(self, run: RunRecord) -> None:
        source, _ = open_data(run)
        batches = [source.batch(number, index, 0, 1) for number in range(STEPS) for index in range(MICROBATCHES)]
        self.rows = [torch.cat([t, y[-1:]]) for tokens, labels in batches for t, y in zip(tokens, labels, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


class InOrder(Trainer):
    """Only the order of the data and the learning rates are the run's; the first warm-up step of `transformers` has rate 0."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        rates = [learning_rate(RECIPE, number) / RECIPE.learning_rate for number in range(STEPS)] + [0.0]
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, lambda number: rates[number])
        return self.lr_scheduler


def by_trainer(run: RunRecord, folder: Path) -> Trained:
    """The same steps by `transformers.Trainer`: its own loss, accumulation, clipping, optimizer and groups of weight decay."""
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=ROWS, gradient_accumulation_steps=MICROBATCHES, max_steps=STEPS,
        learning_rate=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay, max_grad_norm=RECIPE.gradient_clip,
        adam_beta1=RECIPE.beta1, adam_beta2=RECIPE.beta2, adam_epsilon=RECIPE.epsilon, optim="adamw_torch",
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
        dataloader_pin_memory=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(run.weights.source, dtype=torch.float32)
    trainer = InOrder(model=model, args=arguments, train_dataset=Windows(run))
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return Trained([step["loss"] for step in steps], [step["grad_norm"] for step in steps], weights)


def test_fine_tuning_in_two_stages_is_what_the_librarys_trainer_does(hub_folder: Path, tmp_path: Path) -> None:
    config = published_config(json.loads((hub_folder / "config.json").read_text()))
    run = run_on_text(config, weights=WeightsSpec(str(hub_folder)), optimizer=RECIPE)
    run = dataclasses.replace(run, weight_hashes=weight_hashes(run))
    ours = split(run, STEPS, tmp_path / "checkpoints")
    with torch.random.fork_rng(devices=[]):
        theirs = by_trainer(run, tmp_path / "trainer")
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-4)
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-4)
    assert sum(norm > RECIPE.gradient_clip for norm in ours.norms) == STEPS, "every step is clipped"
    assert ours.weights.keys() == theirs.weights.keys()
    assert max(float((ours.weights[name] - theirs.weights[name]).abs().max()) for name in ours.weights) < 1e-4
    start = AutoModelForCausalLM.from_pretrained(hub_folder, dtype=torch.float32).named_parameters()
    assert max(float((ours.weights[name] - p.detach()).abs().max()) for name, p in start) > 1e-3, "they have learned"


def lived(run: RunRecord, folder: Path) -> list[tuple[str, Any]]:
    """All reports of a live run: two stages and a data peer, each a process, to the last checkpoint."""
    local = LocalRun(LocalRunConfig(1, 1, checkpoint_dir=folder / "checkpoints"), run, folder)
    heard: list[tuple[str, Any]] = []
    end = time.monotonic() + DEADLINE_S
    try:
        local.begin()
        while not local.finished(STEPS):
            heard += local.poll(0.2)
            assert time.monotonic() < end, [local.tail(name) for name in local.lines]
    finally:
        local.stop()
    return heard


@pytest.mark.live
@pytest.mark.slow  # half a minute on a free machine
def test_a_live_swarm_fine_tunes_a_model_as_the_librarys_trainer_does(hub_folder: Path, tmp_path: Path) -> None:
    """From the hub folder to the exported one, over the wire: losses, norms and weights of every step's end."""
    recipe = {name: value for name, value in dataclasses.asdict(RECIPE).items() if name != "no_decay"}
    sizes = {"sequence_length": LENGTH, "microbatch_size": ROWS, "microbatches_per_data_peer": MICROBATCHES}
    plain = {"run_id": "tuned", "seed": 11, "stages": 2, "total_iterations": STEPS, "optimizer": recipe, **sizes}
    run = run_from_plain({**plain, "weights": str(hub_folder), "tokenizer": "byte", "dataset": f"text:{__file__}"}, "test")
    heard = lived(run, tmp_path)
    with torch.random.fork_rng(devices=[]):
        theirs = by_trainer(run, tmp_path / "trainer")
    losses = {report["iteration"]: report["loss"] for who, report in heard if report["name"] == "stepped" and who == "data0"}
    steps = [report for who, report in heard if report["name"] == "optimizer_step" and who == "stage2.0"]
    norms = {report["iteration"]: report["gradient_norm"] for report in steps}
    assert [losses[number] for number in range(STEPS)] == pytest.approx(theirs.losses, abs=1e-4)
    assert [norms[number] for number in range(STEPS)] == pytest.approx(theirs.norms, rel=1e-4)
    assert export_hf(tmp_path / "checkpoints", tmp_path / "out") == STEPS
    with torch.random.fork_rng(devices=[]):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = {name: p.detach() for name, p in loaded.named_parameters()}
    assert ours.keys() == theirs.weights.keys()
    assert max(float((ours[name] - theirs.weights[name]).abs().max()) for name in ours) < 1e-4
