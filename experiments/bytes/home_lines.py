"""What do home lines cost? One swarm on loopback and the same swarm over capped lines, in turn, in one run.

    python -m experiments.bytes.home_lines [--wire int8] [--upload_mbps 50] [--download_mbps 100] [--iterations 3] [--json]

A Llama of 100 M parameters (14 layers of 768) in 4 stages, real peers, each line capped in both directions at the edge of its
peer (`--upload_mbps` and `--download_mbps` of `gwtf peer`). Told are tokens a second after the first iteration, their ratio,
and the bytes of an iteration by kind. How fast the devices are decides, too: on slow ones lines matter less, so the ratio goes
with this machine's tokens a second. Nothing is lost or counted twice, or the experiment fails.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.support.live_swarm import SmallRun, StoryFailed, Swarm
from gwtf_p2p.cli.shared.local_run import RunFailed
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.run_parts import WireSpec
from gwtf_p2p.training.model.split import PartSpec, parameter_shapes

MODEL = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 14,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 256,
}
BYTES_PER_S_OF_A_MBPS = 1e6 / 8
WARMUP = 1
"""Iterations before the measured ones: nobody has timed anything yet."""

LINES, LOOPBACK = "lines", "loopback"


@dataclass(frozen=True)
class HomeRun(SmallRun):
    """The run that both swarms train."""

    wire: str = "int8"
    averages: str = "float32"
    subspace: int = 0
    layers: int = MODEL["num_hidden_layers"]  # type: ignore[assignment]

    def plain(self) -> dict[str, Any]:
        """See `SmallRun`."""
        return {
            **super().plain(),
            "run_id": "home-lines",
            "model": {**MODEL, "num_hidden_layers": self.layers},
            "checkpoint_every": self.replica_sync or 10,
            "wire": asdict(WireSpec.named(self.wire, self.averages)),
            "boundary": {"subspace": self.subspace},
        }


def tokens_per_second(run: HomeRun, folder: Path, up_mbps: float, down_mbps: float) -> tuple[float, dict[str, Any]]:
    """Of the iterations after the first, and what was sent in them all. Raises StoryFailed, RunFailed."""
    lines = {"upload_bytes_per_s": up_mbps * BYTES_PER_S_OF_A_MBPS, "download_bytes_per_s": down_mbps * BYTES_PER_S_OF_A_MBPS}
    with Swarm(run, folder, options={"checkpoint_dir": None, "own_folders": False, **lines}) as swarm:
        swarm.until("all steps are done", lambda: swarm.run.finished(run.steps), deadline_s=math.inf)
        swarm.adds_up()
        swarm.run.hear_last_figures()
        seconds = swarm.state.iteration_seconds()[WARMUP:]
        tokens = swarm.state.expected * swarm.state.tokens_per_microbatch
        return tokens / statistics.median(seconds), swarm.state.traffic.plain()


def measured(flags: argparse.Namespace, run: HomeRun) -> dict[str, Any]:
    """Both in turn, as often as asked for; the ratio is of their medians."""
    found: dict[str, list[float]] = {LOOPBACK: [], LINES: []}
    sent: dict[str, Any] = {}
    for number in range(flags.rounds):
        for name in (LOOPBACK, LINES) if number % 2 == 0 else (LINES, LOOPBACK):
            up, down = (flags.upload_mbps, flags.download_mbps) if name == LINES else (0.0, 0.0)
            with tempfile.TemporaryDirectory(prefix="gwtf-home-") as folder:
                rate, sent = tokens_per_second(run, Path(folder), up, down)
            found[name].append(rate)
            print(f"{name}: {rate:.1f} tokens/s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    record = run.record()
    shapes = [parameter_shapes(PartSpec.of(record, stage)).values() for stage in range(record.stages + 1)]
    return {
        "parameters": sum(math.prod(shape) for stage in shapes for shape in stage),
        "stages": record.stages,
        "peers_per_stage": record.peers_per_stage,
        "wire": asdict(record.wire),
        "subspace": record.subspace,
        "replica_sync": record.replica_sync,
        "mbps": [flags.upload_mbps, flags.download_mbps],
        "tokens_per_iteration": record.tokens_per_iteration,
        "tokens_per_second": {name: [round(rate, 2) for rate in rates] for name, rates in found.items()},
        "ratio": round(statistics.median(found[LINES]) / statistics.median(found[LOOPBACK]), 4),
        "bytes_per_iteration": {kind: size // run.steps for kind, size in sent.items() if size and kind != "per_hop"},
        "load": round(os.getloadavg()[0], 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when both swarms have trained to the end, 2 for a setting that is none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--wire", default="int8")
    parser.add_argument("--averages", default="float32", help="of groups, where --peers_per_stage is above 1")
    parser.add_argument("--subspace", type=int, default=0)
    parser.add_argument("--replica_sync", type=int, default=0)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--layers", type=int, default=MODEL["num_hidden_layers"])
    parser.add_argument("--peers_per_stage", type=int, default=1)
    parser.add_argument("--data_peers", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--sequence_length", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=3, help="measured, after one more")
    parser.add_argument("--rounds", type=int, default=1, help="of loopback and lines, in turn")
    parser.add_argument("--upload_mbps", type=float, default=50.0)
    parser.add_argument("--download_mbps", type=float, default=100.0)
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    flags = parser.parse_args(arguments)
    shared = {each.name for each in fields(HomeRun)} & vars(flags).keys()
    run = HomeRun(steps=flags.iterations + WARMUP, **{name: getattr(flags, name) for name in shared})
    try:
        report = measured(flags, run)
    except (InputError, RunFailed, StoryFailed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    if flags.json:
        print(json.dumps(report))
    else:
        rates = report["tokens_per_second"]
        print(f"{report['parameters'] / 1e6:.0f} M parameters, {flags.upload_mbps:g} / {flags.download_mbps:g} Mbit/s:")
        print(f"{rates[LINES]} of {rates[LOOPBACK]} tokens/s on loopback, a ratio of {report['ratio']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
