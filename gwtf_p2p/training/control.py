"""The control of a swarm's loss curve: the unsplit model, trained in one process on the same batches with the same optimizer.

Same seed, data, batch, optimizer and clipping rule as a live run of the same record, so the loss of every iteration has to
agree with the swarm's to float tolerance (float32 on the wire). What differs is only the order of a few float32 sums.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.data.batches import DataSource, open_data
from gwtf_p2p.training.model.run_check import check_run
from gwtf_p2p.training.model.split import PartSpec, build_whole_model, parameter_shapes


def control_losses(run: RunRecord, iterations: int, shards: int, device: str = "cpu") -> list[float]:
    """Loss of each iteration: the mean over all microbatches of `shards` data peers, before the iteration's step.

    Raises InputError for a record that cannot be trained.
    """
    source, tokenizer = open_data(run)
    check_run(run, tokenizer.vocabulary)
    return list(_train(run, source, (iterations, shards), torch.device(device)))


def _train(run: RunRecord, source: DataSource, sizes: tuple[int, int], device: torch.device) -> Iterator[float]:
    iterations, shards = sizes
    model = build_whole_model(run.model_config, run.seed)
    model.to(device)  # type: ignore[arg-type]
    named = dict(model.named_parameters())
    # One optimizer per part: gradient clipping goes by the part's own norm, here as in the swarm.
    parts = [list(parameter_shapes(PartSpec.of(run, stage))) for stage in range(run.stages + 1)]
    optimizers = [PartOptimizer({name: named[name] for name in names}, run.optimizer) for names in parts]
    count = shards * run.microbatches_per_data_peer
    for iteration in range(iterations):
        model.zero_grad(set_to_none=True)
        losses = []
        for shard in range(shards):
            for index in range(run.microbatches_per_data_peer):
                tokens_BT, labels_BT = (tensor.to(device) for tensor in source.batch(iteration, index, shard, shards))
                logits_BTV = model(tokens_BT, use_cache=False).logits
                loss = functional.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten())
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.item())
        for names, optimizer in zip(parts, optimizers, strict=True):
            optimizer.step({name: _gradient(named[name]) / count for name in names}, iteration)
        yield sum(losses) / count


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
