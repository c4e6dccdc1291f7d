"""The control of a swarm's loss curve (`gwtf_p2p/training/control`) as a command.

python -m experiments.support.control --iterations 20 --model llama --stages 3 --data_peers 2 --seed 0
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch

from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.records import OptimizerSpec, RunRecord
from gwtf_p2p.training.control import control_losses
from gwtf_p2p.training.model.split import default_layer_split

__all__ = ["TINY_MODELS", "control_losses"]

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
