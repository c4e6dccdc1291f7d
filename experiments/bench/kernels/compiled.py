"""Would `torch.compile` pay for a stage? Its decoder layers as they are, and compiled, in turn, forward and backward.

    python -m experiments.bench.kernels.compiled [--model demo|large] [--passes 60] [--threads 1]

One line of JSON: seconds of the first pass of both (compiling is in it), median milliseconds of a later one, their ratio, after
how many microbatches the first pass is paid for, and by how much outputs and gradients differ. It takes a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
import torch._inductor.config as inductor
from torch import nn

from gwtf_p2p.cli.shared.run_file import MODELS
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, RunId
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.skeleton import decoder_layers
from gwtf_p2p.training.model.split import PartSpec, build_stage_part

LARGE = {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 1024,
    "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
SIZES: dict[str, tuple[dict[str, Any], int, int]] = {"demo": (MODELS["tiny-llama"], 4, 64), "large": (LARGE, 2, 256)}
"""Config, sequences in a microbatch, tokens in a sequence."""

WARM_UP = 3


def executor(run: RunRecord, is_compiled: bool) -> StageExecutor:
    """One stage that has all layers. The doors stay as they are: what is compiled is the library's forward behind each."""
    part = build_stage_part(PartSpec.of(run, 1))
    for layer in decoder_layers(part.model)[1] if is_compiled else ():
        door: Any = layer.forward
        behind = dict(zip(door.__code__.co_freevars, door.__closure__, strict=True))["original"]
        behind.cell_contents = torch.compile(behind.cell_contents)
    return StageExecutor(part, ExecutorConfig())


class Timed:
    """One of the two, and how long its passes took."""

    def __init__(self, run: RunRecord, is_compiled: bool) -> None:
        self.executor = executor(run, is_compiled)
        self.seconds: list[float] = []

    def one(self, number: int, payload: Payload) -> tuple[Payload, Payload]:
        """A forward and its backward."""
        microbatch, began = MicrobatchId(PeerId("bench"), 0, number), time.perf_counter()
        output = self.executor.forward(microbatch, payload)
        gradient = self.executor.backward(microbatch, tuple(torch.ones_like(tensor) for tensor in output))
        self.seconds.append(time.perf_counter() - began)
        self.executor.reset_gradients()
        return output, gradient

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="demo")
    parser.add_argument("--passes", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    inductor.force_disable_caches = True  # a peer that starts for the first time has none
    config, rows, length = SIZES[args.model]
    run = RunRecord(RunId("bench"), config, ((0, config["num_hidden_layers"]),), 0, length, rows, 1)
    plain, compiled = Timed(run, False), Timed(run, True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        payload = tuple(nn.Parameter(torch.randn(each.shape)).detach() for each in plain.executor.part.boundary)
    differs = 0.0
    for number in range(args.passes + WARM_UP):
        one, other = plain.one(number, payload), compiled.one(number, payload)
        pairs = zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True)
        differs = max(differs, *(float((a - b).abs().max()) for a, b in pairs))
    saved_s, cost_s = plain.median_s - compiled.median_s, compiled.seconds[0] - plain.seconds[0]
    told = {
        "model": args.model,
        "first_s": [round(each.seconds[0], 2) for each in (plain, compiled)],
        "median_ms": [round(1e3 * each.median_s, 1) for each in (plain, compiled)],
        "ratio": round(compiled.median_s / plain.median_s, 3),
        "paid_for_after": round(cost_s / saved_s) if saved_s > 0 else None,
        "differs": differs,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
