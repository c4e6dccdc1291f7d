"""A swarm's computation in one process: a data executor, one executor per stage, and a microbatch's way through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, RunId
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.compute.thin_executor import data_executor
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.split import PartSpec, build_data_part, build_stage_part, default_layer_split
from gwtf_p2p.training.model.structure import layer_count

VOCABULARY = 257
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 6,
    "n_head": 2,
    "n_positions": 64,
    "vocab_size": VOCABULARY,
}
MODELS = {
    "llama": LLAMA,
    "llama_tied": {**LLAMA, "tie_word_embeddings": True},
    "gpt2_tied": GPT2,
    "gpt2_untied": {**GPT2, "tie_word_embeddings": False},
}
LENGTH, ROWS = 12, 2


def run_record(model_config: Mapping[str, Any], stages: int = 3, **changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "run_id": RunId("test"),
        "model_config": model_config,
        "layer_split": default_layer_split(layer_count(model_config), stages),
        "seed": 7,
        "sequence_length": LENGTH,
        "microbatch_size": ROWS,
        "microbatches_per_data_peer": 2,
        "optimizer": OptimizerSpec(learning_rate=1e-2),
    }
    return RunRecord(**{**fields, **changes})


def microbatch(index: int, iteration: int = 0, data_peer: str = "data_0") -> MicrobatchId:
    return MicrobatchId(PeerId(data_peer), iteration, index)


def batch(number: int) -> tuple[Tensor, Tensor]:
    """tokens_BT, labels_BT drawn from a number."""
    generator = torch.Generator().manual_seed(number)
    window = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


@dataclass(frozen=True)
class Trace:
    """What crossed the wire: the input of stages 1..S and of the head, and the gradients of the same tensors."""

    loss: float
    activations: tuple[Payload, ...]
    gradients: tuple[Payload, ...]


class Pipeline:
    """One executor per part."""

    def __init__(self, run: RunRecord, config: ExecutorConfig | None = None) -> None:
        config = config or ExecutorConfig()
        self.data = data_executor(build_data_part(PartSpec.of(run, 0)), config, run.loss)
        parts = [build_stage_part(PartSpec.of(run, k)) for k in range(1, run.stages + 1)]
        self.stages = [StageExecutor(part, config, run.loss) for part in parts]

    @property
    def executors(self) -> list[DataExecutor | StageExecutor]:
        return [self.data, *self.stages]

    def forward(self, name: MicrobatchId, tokens_BT: Tensor, labels_BT: Tensor | None = None) -> tuple[Payload, ...]:
        """Labels are for thin data peers alone."""
        activations = [self.data.embed(name, tokens_BT, labels_BT)]
        for stage in self.stages:
            activations.append(stage.forward(name, activations[-1]))
        return tuple(activations)

    def train(self, name: MicrobatchId, tokens_BT: Tensor, labels_BT: Tensor) -> Trace:
        """Forward, loss, backward: counted in every part."""
        activations = self.forward(name, tokens_BT, labels_BT)
        loss, gradient = self.data.loss_and_gradient(name, activations[-1], labels_BT)
        gradients = [gradient]
        for stage in reversed(self.stages):
            gradients.insert(0, stage.backward(name, gradients[0]))
        self.data.finish(name, gradients[0])
        return Trace(loss, activations, tuple(gradients))

    def sums(self) -> dict[str, Tensor]:
        """A copy of all parts' gradient sums, by the whole model's names."""
        return {name: t.clone() for e in self.executors for name, t in e.gradient_vector().tensors.items()}


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], relative: float) -> None:
    """Every tensor differs from its counterpart by at most `relative` times that one's largest value."""
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (got[name] - tensor).abs().max().item()
        assert error <= relative * max(tensor.abs().max().item(), 1e-12), f"{name}: error {error}"
