"""A run that starts from a pre-trained model goes on as `transformers` does, whole or with adapters; so does its export."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import AdapterSpec, OptimizerSpec, RunRecord, WeightsSpec, decode_run, encode
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.model.adapters import peft_name
from gwtf_p2p.training.model.config import published_config
from gwtf_p2p.training.model.pretrained import PretrainedFiles
from gwtf_p2p.training.model.split import PartSpec, build_data_part, build_stage_part, parameter_shapes, weight_hashes
from gwtf_p2p.training.state.checkpoint import save_checkpoint
from gwtf_p2p.training.state.export import export_hf
from gwtf_p2p.training.state.tensors import export_state
from tests.training.swarm import LLAMA, VOCABULARY, Pipeline, batch, microbatch, run_record

OPTIMIZER = OptimizerSpec(learning_rate=1e-3, weight_decay=0.1)
ADAPTERS = AdapterSpec(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))
STEPS = 4


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with tied embeddings, trained for some steps, as its trainer would have put it on the hub: several shards."""
    folder = tmp_path_factory.mktemp("hub")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fields = {name: value for name, value in LLAMA.items() if name != "model_type"}
        model = LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=True, eos_token_id=256, bos_token_id=None))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for number in range(5):
        step_whole(model, optimizer, number)
    model.generation_config = GenerationConfig(eos_token_id=256, do_sample=True, temperature=0.7)
    model.save_pretrained(folder, max_shard_size="12KB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


def step_whole(model: Any, optimizer: torch.optim.Optimizer, number: int) -> float:
    """One step of an ordinary loop on two microbatches."""
    losses = []
    for index in range(2):
        tokens_BT, labels_BT = batch(100 * number + index)
        logits = model(input_ids=tokens_BT, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), labels_BT.flatten())
        (loss / 2).backward()
        losses.append(loss.item())
    optimizer.step()
    optimizer.zero_grad()
    return sum(losses) / 2


def run_from(folder: Path, **changes: Any) -> RunRecord:
    """A run in two stages that starts from a folder."""
    config = published_config(json.loads((folder / "config.json").read_text()))
    run = run_record(config, stages=2, weights=WeightsSpec(str(folder)), optimizer=OPTIMIZER, **changes)
    return dataclasses.replace(run, weight_hashes=weight_hashes(run))


def train(run: RunRecord, checkpoints: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights of a split run, whose checkpoints are written."""
    pipeline = Pipeline(run)
    optimizers = [PartOptimizer(executor.part.parameters, run.optimizer) for executor in pipeline.executors]
    losses = []
    for number in range(STEPS):
        losses.append(sum(pipeline.train(microbatch(i, number), *batch(100 * (number + 10) + i)).loss for i in range(2)) / 2)
        for executor, optimizer in zip(pipeline.executors, optimizers, strict=True):
            optimizer.step(executor.gradient_vector().mean(), number)
            executor.reset_gradients()
    for stage, (executor, optimizer) in enumerate(zip(pipeline.executors, optimizers, strict=True)):
        save_checkpoint(checkpoints, run, stage, export_state(executor.part.parameters, optimizer))
    return losses, {n: p.detach() for executor in pipeline.executors for n, p in executor.part.parameters.items()}


def continued_whole(model: Any, learns: Callable[[str, torch.Tensor], bool]) -> list[float]:
    """The same steps by transformers and torch alone."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and learns(name, p)]
    groups = [
        {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": OPTIMIZER.weight_decay},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], OPTIMIZER.learning_rate, betas, OPTIMIZER.epsilon)
    model.train()
    return [step_whole(model, optimizer, number + 10) for number in range(STEPS)]


def test_a_continued_run_is_transformers_own_loop_and_its_export_loads(hub_folder: Path, tmp_path: Path) -> None:
    losses, weights = train(run_from(hub_folder), tmp_path / "checkpoints")
    whole = AutoModelForCausalLM.from_pretrained(hub_folder, dtype=torch.float32)
    assert losses == pytest.approx(continued_whole(whole, lambda name, p: True), abs=1e-4)
    expected = dict(whole.named_parameters())
    assert weights.keys() == expected.keys()
    assert all((weights[name] - expected[name]).abs().max() < 1e-4 for name in expected)
    out = tmp_path / "out"
    export_hf(tmp_path / "checkpoints", out)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert all(torch.equal(weights[name], parameter) for name, parameter in loaded.named_parameters())
    assert loaded.generation_config.temperature == 0.7
    assert loaded.generation_config.eos_token_id == 256
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in out.iterdir() if path.is_file()} == {plain.stat().st_mode}


def test_a_part_opens_only_the_files_that_it_needs(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[set[str]] = []
    monkeypatch.setattr(PretrainedFiles, "__init__", spying(PretrainedFiles.__init__, opened))
    run = run_from(hub_folder)
    index = json.loads((hub_folder / "model.safetensors.index.json").read_text())["weight_map"]
    opened.clear()
    build_stage_part(PartSpec.of(run, 2))
    (found,) = opened
    assert found == {
        name for key, name in index.items() if key.startswith(("model.layers.3.", "model.layers.4.", "model.layers.5."))
    }
    assert len(found) < len(set(index.values()))


def spying(original: Callable[..., None], opened: list[set[str]]) -> Callable[..., None]:
    def init(self: PretrainedFiles, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        opened.append(self.opened)

    return init


def copy_of(folder: Path, into: Path, change: Callable[[dict[str, torch.Tensor]], object], only: str) -> Path:
    """A copy of a hub folder in which the file with a tensor is changed."""
    into.mkdir()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for path in folder.iterdir():
        (into / path.name).write_bytes(path.read_bytes())
    path = into / index["weight_map"][only]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return into


NAME = "model.layers.5.mlp.down_proj.weight"


def test_other_weights_than_the_runs_are_refused_before_training(hub_folder: Path, tmp_path: Path) -> None:
    run = run_from(hub_folder)
    other = copy_of(hub_folder, tmp_path / "other", lambda tensors: tensors[NAME][0, 0].add_(1e-3), NAME)
    there = dataclasses.replace(run, weights=WeightsSpec(str(other)))
    build_stage_part(PartSpec.of(there, 1))  # its own tensors are right
    with pytest.raises(InputError, match=r"weights\.source: expected weights of stage 2 that hash to"):
        build_stage_part(PartSpec.of(there, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update({NAME: tensors[NAME][:1].clone()}), r"down_proj\.weight: expected shape \(16, 40\)"),
        (lambda tensors: tensors[NAME].fill_(float("nan")), r"down_proj\.weight: expected finite numbers"),
        (lambda tensors: tensors.pop(NAME), r"expected readable safetensors"),
    ],
)
def test_files_that_are_not_the_models_are_refused_by_the_tensors_name(
    hub_folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    folder = copy_of(hub_folder, tmp_path / "other", change, NAME)
    run = dataclasses.replace(run_from(hub_folder), weights=WeightsSpec(str(folder)))
    with pytest.raises(InputError, match=message):
        build_stage_part(PartSpec.of(run, 2))


def test_a_tensor_that_the_index_does_not_have_is_named(hub_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(hub_folder, tmp_path / "other", lambda tensors: None, NAME)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][NAME]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    run = dataclasses.replace(run_from(hub_folder), weights=WeightsSpec(str(folder)))
    with pytest.raises(
        InputError, match=r"expected a tensor for model\.layers\.5\.mlp\.down_proj\.weight, the files have none"
    ):
        build_stage_part(PartSpec.of(run, 2))
    index["weight_map"][NAME] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"expected names of safetensors files beside it, got '\.\./elsewhere"):
        build_stage_part(PartSpec.of(run, 2))


def test_weights_that_the_library_converts_are_its_own(tmp_path: Path) -> None:
    """Experts are saved one by one and held together."""
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        num_local_experts=3, vocab_size=VOCABULARY, max_position_embeddings=64, bos_token_id=None, eos_token_id=256,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path)
    run = run_from(tmp_path)
    parts = [build_data_part(PartSpec.of(run, 0)), *(build_stage_part(PartSpec.of(run, k)) for k in (1, 2))]
    found = {name: parameter for part in parts for name, parameter in part.parameters.items()}
    expected = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21 asks transformers 5.23
def test_adapters_are_trained_as_by_peft_and_alone(hub_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    run = run_from(hub_folder, adapters=ADAPTERS)
    start = {n: p.detach().clone() for k in (1, 2) for n, p in build_stage_part(PartSpec.of(run, k)).parameters.items()}
    losses, weights = train(run, tmp_path / "checkpoints")
    assert weights.keys() == start.keys()
    assert all("lora_" in name for name in weights)
    assert {name: tuple(p.shape) for name, p in weights.items()} == {
        name: shape for stage in range(3) for name, shape in parameter_shapes(PartSpec.of(run, stage)).items()
    }
    base = AutoModelForCausalLM.from_pretrained(hub_folder, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        config = peft.LoraConfig(r=4, lora_alpha=8.0, target_modules=list(ADAPTERS.targets), task_type="CAUSAL_LM")
        whole = peft.get_peft_model(base, config)
    named = dict(whole.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            named[f"base_model.model.{name}"].copy_(value)
    assert losses == pytest.approx(continued_whole(whole, lambda name, p: True), abs=1e-4)
    assert losses[-1] != losses[0]
    for name, value in weights.items():
        assert (value - named[f"base_model.model.{name}"]).abs().max() < 1e-4
    export_hf(tmp_path / "checkpoints", tmp_path / "out")
    fresh = AutoModelForCausalLM.from_pretrained(hub_folder, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "out")
    tokens_BT, _ = batch(0)
    with torch.no_grad():
        both = [model.eval()(input_ids=tokens_BT, use_cache=False).logits for model in (loaded, whole)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-4)
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == {peft_name(name) for name in weights}


def test_a_target_that_the_model_does_not_have_is_refused_with_those_it_has(hub_folder: Path) -> None:
    pytest.importorskip("peft")
    run = run_from(hub_folder, adapters=dataclasses.replace(ADAPTERS, targets=("query",)))
    with pytest.raises(InputError, match=r"adapters\.targets: 'query' is no module of the model; linear ones are .*q_proj"):
        build_stage_part(PartSpec.of(run, 1))


def test_weights_and_adapters_are_in_the_record_and_its_hash(hub_folder: Path) -> None:
    run = run_from(hub_folder, adapters=ADAPTERS)
    assert decode_run(encode(run)) == run
    others = [
        dataclasses.replace(run, adapters=dataclasses.replace(ADAPTERS, alpha=9.0)),
        dataclasses.replace(run, adapters=AdapterSpec()),
        dataclasses.replace(run, weight_hashes=("0" * 32,) * 3),
    ]
    assert len({each.model_hash for each in (run, *others)}) == 4
    with pytest.raises(InputError, match=r"adapters\.rank: expected weights, too"):
        dataclasses.replace(run, weights=WeightsSpec(), weight_hashes=()).validate()
