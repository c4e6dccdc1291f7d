"""What do home lines cost, by device and wire setting? The same swarm in virtual time, with and without lines.

    python -m experiments.bytes.home_lines_simulated [--tflops 0.05 1 10] [--arms gwtf gwtf/int8 gwtf/int8-subspace50] [--json]

A model of 100 M parameters of width 768 in 4 stages, microbatches of 2,048 tokens; a stage peer computes at so many TFLOPS (2
operations a parameter and token forwards, 4 backwards). Told is tokens a second over lines (one speed both ways, the slower
one: 50 Mbit/s; 20 ms of latency) as a share of the same swarm's without any limit of lines and latency. With more than one peer
a stage averages are in it, too. No computer's load can be seen in these figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gwtf_p2p.ab.trials.arms import parse_arm
from gwtf_p2p.simulation.lines.links import LinkSpec
from gwtf_p2p.simulation.run import simulate
from gwtf_p2p.simulation.scenario.scenario import (
    MEGABIT,
    ChurnSpec,
    LinksSpec,
    LinkTable,
    ModelSpec,
    PeerGroup,
    Scenario,
)

PARAMETERS, WIDTH, STAGES, TOKENS = 100e6, 768, 4, 2048
ARMS = ("gwtf", "gwtf/bfloat16", "gwtf/int8", "gwtf/int8-subspace8", "gwtf/int8-subspace50")
FLOAT_BYTES, COPIES = 4, 3
LATENCY_S, FAST_BYTES_PER_S, WARMUP = 0.02, 1e12, 1
CAPACITY = 8


@dataclass(frozen=True)
class Home:
    """`mbps` 0: no line limits."""

    tflops: float
    mbps: float
    peers_per_stage: int
    microbatches: int
    iterations: int

    def scenario(self) -> Scenario:
        stage_bytes = int(FLOAT_BYTES * PARAMETERS / STAGES)
        model = ModelSpec(STAGES, FLOAT_BYTES * TOKENS * WIDTH, self.microbatches, stage_bytes, COPIES * stage_bytes)
        link = LinkSpec(LATENCY_S if self.mbps else 0.0, FAST_BYTES_PER_S)
        lines = (self.mbps * MEGABIT,) if self.mbps else ()
        links = LinksSpec(LinkTable(("any",), {("any", "any"): link}), 1.0, lines)
        forward_s = 2 * PARAMETERS / STAGES * TOKENS / (self.tflops * 1e12)
        data = PeerGroup(True, 1, (forward_s / 10,), (forward_s / 10,), 0.0, (), "any")
        stages = PeerGroup(False, self.peers_per_stage, (forward_s,), (2 * forward_s,), 0.0, (CAPACITY,), "any")
        return Scenario("home", (0,), self.iterations + WARMUP, WARMUP, model, links, (data, stages), ChurnSpec())


def tokens_per_second(home: Home, arm: str) -> float:
    """After the first iteration. Raises StuckError."""
    seconds = simulate(home.scenario(), parse_arm(arm), 0).mean_iteration_s
    return home.microbatches * TOKENS / seconds


def rows(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """One for each device and arm."""
    found = []
    for tflops in flags.tflops:
        for arm in flags.arms:
            settings = (flags.peers_per_stage, flags.microbatches, flags.iterations)
            without = tokens_per_second(Home(tflops, 0.0, *settings), arm)
            over = tokens_per_second(Home(tflops, flags.mbps, *settings), arm)
            row = {"tflops": tflops, "arm": arm, "loopback": round(without), "lines": round(over)}
            found.append({**row, "ratio": round(over / without, 3)})
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Always exit code 0: what lines cost is no failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tflops", type=float, nargs="+", default=[0.05, 1.0, 10.0])
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--mbps", type=float, default=50.0)
    parser.add_argument("--peers_per_stage", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=3, help="measured, after one more")
    parser.add_argument("--json", action="store_true", help="one object per line")
    flags = parser.parse_args(arguments)
    for row in rows(flags):
        told = (
            f"{row['tflops']:>6g} TFLOPS {row['arm']:24} {row['lines']:>9} of {row['loopback']:>9} tokens/s {row['ratio']:.3f}"
        )
        print(json.dumps(row) if flags.json else told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
