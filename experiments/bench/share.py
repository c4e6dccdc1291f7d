"""Share of the limit: tokens per second of a swarm on this machine, against one process that trains the same model alone.

    python -m experiments.bench.share --steps 20                     # the demo's model
    python -m experiments.bench.share --steps 6 --model medium       # 60 million parameters, 256 tokens

Both are timed on the same cores, one after the other, and both from the second step on; the ratio is what counts, as seconds
say nothing on a shared machine. The one process has the machine's cores as torch threads (`--threads`). Where the rest goes: of
the swarm's cores, the share that computed the model, that was other CPU of the peers (runtime, averages, data), p2pd's, and
idle (the pipeline's bubble, averages on the line).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gwtf_p2p.ab.live.cpu import CpuBooks
from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.control import control_steps

MEDIUM: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 257, "hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 12,
    "num_attention_heads": 10, "num_key_value_heads": 10, "max_position_embeddings": 1024, "bos_token_id": None,
    "eos_token_id": 256,
}  # fmt: skip
MODELS: dict[str, tuple[str | dict[str, Any], int]] = {"demo": ("tiny-llama", 128), "medium": (MEDIUM, 256)}
"""Model and sequence length by name."""

POLL_S = 0.02
DEADLINE_S = 1800.0


@dataclass(frozen=True, slots=True)
class Swarm:
    """What a swarm did from its first committed step to its last; seconds, over all peers but the first two on the clock."""

    wall_s: float
    tokens: int
    computing_s: float
    cpu_s: float
    p2pd_s: float


def record_of(args: argparse.Namespace) -> RunRecord:
    """The run that both train."""
    model, length = MODELS[args.model]
    plain = {
        "run_id": "share", "seed": 0, "model": model, "stages": args.stages, "sequence_length": length,
        "peers_per_stage": args.peers_per_stage, "microbatch_size": args.microbatch_size,
        "microbatches_per_data_peer": args.microbatches, "total_iterations": args.steps, "checkpoint_every": 1 << 20,
        "optimizer": {"learning_rate": 1e-3}, "thin_data_peers": args.thin_data_peers,
    }  # fmt: skip
    return run_from_plain(plain, "share")


def in_a_swarm(run: RunRecord, folder: Path) -> Swarm:
    """Train it live. Raises RunFailed, and TimeoutError when it does not get on."""
    config = LocalRunConfig(run.data_peers, run.peers_per_stage, capacity=run.microbatches_per_data_peer)
    local, books = LocalRun(config, run, folder), CpuBooks()
    end, computed = time.monotonic() + DEADLINE_S, dict[str, float]()
    before: dict[str, float] | None = None
    try:
        local.begin()
        while local.state.iterations < run.total_iterations:
            for name, report in local.poll(POLL_S):
                if report["name"] == "figures":
                    computed[name] = float(report["computed_s"])
            if before is None and local.state.iterations:
                before = dict(computed)
                for name, pid in local.p2pd.items():
                    books.know(name, pid)
                books.begin(local.swarm)
            if time.monotonic() > end:
                raise TimeoutError(f"{local.state.iterations} steps in {DEADLINE_S:.0f} s")
        books.end(local.swarm)
    finally:
        local.stop()
    at = local.state.ended_at
    steps = len(at) - 1
    cpu = books.told(0.0, 0.0, 0.0)
    spent = sum(computed.values()) - sum((before or {}).values())
    wall_s = at[max(at)] - at[min(at)]
    return Swarm(wall_s, steps * run.tokens_per_iteration, spent, cpu["peers_s"], cpu["p2pd_s"])


def alone(run: RunRecord, threads: int) -> float:
    """Tokens per second of one process, the first step left out."""
    torch.set_num_threads(threads)
    steps = control_steps(run, run.total_iterations, run.data_peers)
    next(steps)
    began = time.monotonic()
    count = sum(1 for _ in steps)
    return count * run.tokens_per_iteration / (time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line each, or JSON."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps, at least 2")
    parser.add_argument("--model", choices=sorted(MODELS), default="demo")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--peers_per_stage", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=16, help="in an iteration: the more, the fuller the pipeline")
    parser.add_argument("--microbatch_size", type=int, default=4)
    parser.add_argument("--thin_data_peers", action="store_true", help="the stages compute embedding and head, too")
    parser.add_argument("--threads", type=int, default=cores, help="of the one process (default: this machine's cores)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    if args.steps < 2:
        parser.error("--steps: expected at least 2, as the first is not timed")
    run = record_of(args)
    with tempfile.TemporaryDirectory(prefix="gwtf-share-") as folder:
        swarm = in_a_swarm(run, Path(folder))
    one = alone(run, args.threads)
    rate, budget_s = swarm.tokens / swarm.wall_s, swarm.wall_s * cores
    found = {
        "model": args.model, "steps": args.steps, "stages": args.stages, "peers_per_stage": args.peers_per_stage,
        "microbatches": args.microbatches, "swarm_tokens_per_s": rate, "alone_tokens_per_s": one, "share": rate / one,
        "computing": swarm.computing_s / budget_s, "other_cpu": (swarm.cpu_s - swarm.computing_s) / budget_s,
        "p2pd": swarm.p2pd_s / budget_s, "idle": 1 - (swarm.cpu_s + swarm.p2pd_s) / budget_s,
    }  # fmt: skip
    if args.json:
        print(json.dumps(found))
        return 0
    print(f"{args.model}: swarm {rate:.0f} tokens/s, one process with {args.threads} threads {one:.0f}: share {rate / one:.3f}")
    parts = ", ".join(f"{name.replace('_', ' ')} {found[name]:.1%}" for name in ("computing", "other_cpu", "p2pd", "idle"))
    print(f"of the swarm's {cores} cores: {parts}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
