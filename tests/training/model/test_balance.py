"""The experts' balance loss: each layer's own, at home; the library's where there is one layer with a router."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import LossSpec, RunRecord
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.model.preflight import preflight
from gwtf_p2p.training.model.split import build_whole_model
from tests.training.swarm import LLAMA, Pipeline, assert_close, batch, microbatch, run_record

WEIGHT = 0.5
EXPERTS, CHOSEN = 4, 2
MIXTRAL: dict[str, Any] = {**LLAMA, "model_type": "mixtral", "num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
QWEN: dict[str, Any] = {
    **LLAMA, "model_type": "qwen2_moe", "num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8, "mlp_only_layers": [0, 1, 2, 4, 5],
}  # fmt: skip
"""Of its six layers the fourth alone has experts."""


def mean_of_layers(router_logits: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([load_balancing_loss_func((each,), EXPERTS, CHOSEN) for each in router_logits]).mean()  # type: ignore[misc]


def unsplit(run: RunRecord, balance_of: Any) -> tuple[float, dict[str, Tensor | None]]:
    """Cross entropy, and the gradients of it and the balance loss together."""
    whole: PreTrainedModel = build_whole_model(run.model_config, run.seed)
    tokens_BT, labels_BT = batch(0)
    output = whole(tokens_BT, use_cache=False, output_router_logits=True)
    loss = functional.cross_entropy(output.logits.flatten(0, 1), labels_BT.flatten())
    (loss + WEIGHT * balance_of(output)).backward()
    return loss.item(), {name: p.grad for name, p in whole.named_parameters()}


@pytest.mark.parametrize(
    ("config", "balance_of"),
    [(QWEN, lambda output: output.aux_loss), (MIXTRAL, lambda output: mean_of_layers(output.router_logits))],
    ids=["the library's, of one layer", "the mean of six layers in three stages"],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_split_run_has_the_gradients_of_the_whole_models_balance_loss(
    config: dict[str, Any], balance_of: Any, recompute: bool
) -> None:
    run = run_record(config, loss=LossSpec(balance=WEIGHT))
    loss, gradients = unsplit(run, balance_of)
    pipeline = Pipeline(run, ExecutorConfig(recompute=recompute))
    assert pipeline.train(microbatch(0), *batch(0)).loss == pytest.approx(loss, rel=1e-6), "what is reported is without it"
    assert_close(pipeline.sums(), gradients, relative=2e-6)
    without = Pipeline(run_record(config))
    without.train(microbatch(0), *batch(0))
    router = next(name for name in gradients if name.endswith(("mlp.gate.weight", "block_sparse_moe.gate.weight")))
    assert not torch.allclose(without.sums()[router], pipeline.sums()[router], rtol=1e-2), "it is not nothing"


def test_a_microbatch_that_is_taken_out_again_takes_its_balance_loss_with_it() -> None:
    pipeline = Pipeline(run_record(MIXTRAL, loss=LossSpec(balance=WEIGHT)))
    pipeline.train(microbatch(0), *batch(0))
    alone = {name: tensor.clone() for name, tensor in pipeline.sums().items()}
    way = pipeline.train(microbatch(1), *batch(1))
    for at, stage in enumerate(pipeline.stages):
        stage.uncount(microbatch(1), way.activations[at], way.gradients[at + 1])
    for stage in pipeline.stages:
        for name, tensor in stage.gradient_vector().tensors.items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-6)


def test_a_preflight_compares_with_it() -> None:
    assert preflight(MIXTRAL, balance=WEIGHT).numbers == preflight(MIXTRAL).numbers


def test_a_model_without_one_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"loss\.balance: expected 0: transformers has no balance loss, per layer, for llama"):
        preflight(LLAMA, balance=WEIGHT)
