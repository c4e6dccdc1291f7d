"""The control of a swarm's loss curve: the unsplit model, trained in one process on the same batches with the same optimizer.

Same seed, data, batch, optimizer and clipping rule as a live run of the same record, so the loss of every iteration has to
agree with the swarm's to float tolerance (float32 on the wire). What differs is only the order of a few float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.loss import loss_of
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.data.batches import DataSource, open_data
from gwtf_p2p.training.model.config import load_config
from gwtf_p2p.training.model.parts.layer_split import free_from
from gwtf_p2p.training.model.run_check import check_run
from gwtf_p2p.training.model.split import build_whole_model
from gwtf_p2p.training.model.subspace.whole import WholeInSubspace


def control_losses(run: RunRecord, iterations: int, shards: int, device: str = "cpu") -> list[float]:
    """Loss of each iteration: the mean over all microbatches of `shards` data peers, before the iteration's step.

    Raises InputError for a record that cannot be trained.
    """
    return list(control_steps(run, iterations, shards, device))


def control_steps(run: RunRecord, iterations: int, shards: int, device: str = "cpu") -> Iterator[float]:
    """The same, each when its step is taken. Raises InputError."""
    if run.weights.source:
        raise InputError("run record", "weights.source", "expected a run from scratch: this control knows no other")
    source, tokenizer = open_data(run)
    check_run(run, tokenizer.vocabulary)
    yield from _train(run, source, (iterations, shards), torch.device(device))


def _train(run: RunRecord, source: DataSource, sizes: tuple[int, int], device: torch.device) -> Iterator[float]:
    iterations, shards = sizes
    logits_of, named = _model(run, device)
    older = _model(run, device) if run.delay_optimizer_step else None
    optimizer = PartOptimizer(named, run.optimizer, older[1] if older is not None else None)
    newer = logits_of, named
    count = shards * run.microbatches_per_data_peer
    for iteration in range(iterations):
        logits_of, named = newer if older is None else older  # with a delay, the weights before the newest
        for parameter in named.values():
            parameter.grad = None
        losses = []
        for shard in range(shards):
            for index in range(run.share_of(shard)):
                tokens_BT, labels_BT = (tensor.to(device) for tensor in source.batch(iteration, index, shard, shards))
                loss = loss_of(logits_of(tokens_BT), labels_BT, run.loss)
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.item())
        optimizer.step({name: _gradient(parameter) / count for name, parameter in named.items()}, iteration)
        if older is not None:
            newer, older = older, newer
        yield sum(losses) / count


def _model(run: RunRecord, device: torch.device) -> tuple[Callable[[Tensor], Tensor], dict[str, nn.Parameter]]:
    """What gives logits_BTV of tokens_BT, and what is trained, by name."""
    if run.subspace:
        free = free_from(run.layer_split, run.thin_data_peers)
        whole = WholeInSubspace(load_config(run.built_config), run.subspace, run.seed, free_from=free)
        whole.to(device)
        return whole.logits, whole.parameters
    model = build_whole_model(run.built_config, run.seed)
    model.to(device)  # type: ignore[arg-type]

    def logits_of(tokens_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = model(tokens_BT, use_cache=False).logits
        return logits_BTV

    return logits_of, dict(model.named_parameters())


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
