"""The control of a swarm's loss curve: the unsplit model, trained in one process on the same batches with the same optimizer.

Same seed, data, batch, optimizer and clipping rule as a live run of the same record, so the loss of every iteration has to
agree with the swarm's to float tolerance (float32 on the wire). What differs is only the order of a few float32 sums.

    python -m experiments.control --iterations 20 --model llama --stages 3 --data_peers 2 --seed 0
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.data import DataSource, open_data
from gwtf_p2p.training.families import check_run, default_layer_split
from gwtf_p2p.training.model_split import PartSpec, build_whole_model, parameter_shapes
from gwtf_p2p.training.optimizer import PartOptimizer

TINY_MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "vocab_size": 264,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 6, "n_head": 4, "n_positions": 128, "vocab_size": 264},
}


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
    assert parameter.grad is not None
    return parameter.grad


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line per iteration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--model", choices=sorted(TINY_MODELS), default="llama")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--data_peers", type=int, default=2)
    parser.add_argument("--microbatches", type=int, default=4, help="per data peer and iteration")
    parser.add_argument("--dataset", default="stdlib")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="a tiny model's threads spin: more are slower here")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(arguments)
    torch.set_num_threads(flags.threads)
    model_config = TINY_MODELS[flags.model]
    layers = int(model_config.get("num_hidden_layers") or model_config["n_layer"])
    run = RunRecord(
        run_id=RunId("control"),
        model_config=model_config,
        layer_split=default_layer_split(layers, flags.stages, "--stages"),
        seed=flags.seed,
        sequence_length=64,
        microbatch_size=4,
        microbatches_per_data_peer=flags.microbatches,
        dataset=flags.dataset,
        optimizer=OptimizerSpec(learning_rate=3e-3),
    )
    for iteration, loss in enumerate(control_losses(run, flags.iterations, flags.data_peers, flags.device)):
        print(json.dumps({"iteration": iteration, "loss": loss}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
