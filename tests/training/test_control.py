"""The control of the live runs: a split run of several data peers and replicas has the loss curve of the unsplit model."""

from __future__ import annotations

import pytest

from experiments.support.control import control_losses
from gwtf_p2p.protocol.commit.attempt import norm_of
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.compute.gradients import squared_norm
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.compute.values import HeldGradient
from gwtf_p2p.training.data.batches import open_data
from tests.training.swarm import GPT2, LLAMA, Pipeline, microbatch, run_record

ITERATIONS, DATA_PEERS = 5, 2


def swarm_losses(run: RunRecord) -> list[float]:
    """Two replicas of every part; microbatches alternate; each part is averaged by counts and steps by the whole norm."""
    source, _ = open_data(run)
    replicas = [Pipeline(run) for _ in range(2)]
    optimizers = [[PartOptimizer(e.part.parameters, run.optimizer) for e in replica.executors] for replica in replicas]
    curve = []
    for iteration in range(ITERATIONS):
        losses = []
        for shard in range(DATA_PEERS):
            for index in range(run.microbatches_per_data_peer):
                replica = replicas[(shard + index + iteration) % 3 % 2]  # unequal shares
                name = microbatch(index, iteration, f"data_{shard}")
                losses.append(replica.train(name, *source.batch(iteration, index, shard, DATA_PEERS)).loss)
        curve.append(sum(losses) / len(losses))
        averages = []
        for number in range(run.stages + 1):
            sums = [replica.executors[number].gradient_vector() for replica in replicas]
            total = sum(each.count for each in sums)
            means = [each.mean() for each in sums]
            averaged = {
                name: sum(m[name] * each.count for m, each in zip(means, sums, strict=True)) / total for name in means[0]
            }
            averages.append(averaged)
        norm = norm_of({PeerId(str(k)): (Stage(k), squared_norm(HeldGradient(each))) for k, each in enumerate(averages)})
        for replica, parts in zip(replicas, optimizers, strict=True):
            for executor, optimizer, averaged in zip(replica.executors, parts, averages, strict=True):
                optimizer.step(averaged, iteration, norm)
                executor.reset_gradients()
    return curve


@pytest.mark.parametrize("model_config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_swarms_loss_curve_is_the_controls(model_config: dict[str, object]) -> None:
    spec = OptimizerSpec(learning_rate=3e-3, weight_decay=0.1, gradient_clip=0.5, schedule="cosine", total_iterations=8)
    run = run_record(model_config, stages=3, optimizer=spec, dataset=f"text:{__file__}")
    control, swarm = control_losses(run, ITERATIONS, DATA_PEERS), swarm_losses(run)
    assert max(abs(a - b) for a, b in zip(control, swarm, strict=True)) < 1e-5
    assert control[-1] < control[0]


def test_the_control_refuses_a_record_that_cannot_be_trained() -> None:
    with pytest.raises(InputError, match=r"model_config\.vocab_size: expected at least the tokenizer's 257, got 100"):
        control_losses(run_record({**LLAMA, "vocab_size": 100}, dataset=f"text:{__file__}"), 1, 1)
