"""CPU per hop as a stage grows, at equal work for each peer: `python -m experiments.stage_size --peers_per_stage 3 12 --json`.

Real peers on this machine, two stages and one data peer for three stage peers of a stage, so that every stage peer has four
microbatches in an iteration, whatever the size. After `--warm_up` steps the CPU seconds of all stage peers and of their p2pds
are read, and again `--steps` later; then the swarm has nothing to do and is read once more over `--idle_s`: on few cores a
larger swarm takes longer for its iterations, in which everybody also does what it does anyway.

The last line has, for each size, milliseconds of CPU of a stage peer (and its p2pd) for each hop that it has done, those
without what it spends when idle, and the largest size's over the smallest's (`{"sizes": [...], "per_hop": ratio,
"per_hop_beside_idle": ratio}`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.support.live_swarm import SmallRun, Swarm
from gwtf_p2p.ab.live.cpu import cpu_seconds
from gwtf_p2p.cli.shared.local_run import RunFailed

STAGES, HOPS_EACH = 2, 4
"""Hops of a stage peer in an iteration."""

START_S = 900.0


@dataclass(frozen=True, slots=True)
class Cost:
    """`stage_peers`: in all stages; `iteration_s`: of wall time. CPU in ms of a stage peer: for each hop (`p2pd_ms` of it in
    its p2pd), and, idle, for each second."""

    stage_peers: int
    iterations: int
    iteration_s: float
    per_hop_ms: float
    p2pd_ms: float
    idle_ms_per_s: float
    beside_idle_ms: float


@dataclass(frozen=True, slots=True)
class Mark:
    """CPU seconds of all stage peers and of their p2pds, at a time and after so many steps."""

    at: float
    steps: int
    peers_s: float
    p2pds_s: float


def mark(swarm: Swarm) -> Mark:
    """Now."""
    run = swarm.run
    names = [name for name, line in run.lines.items() if line.role == "stage"]
    peers = sum(cpu_seconds(run.swarm.peers[name].pid) for name in names)
    return Mark(time.monotonic(), swarm.state.iterations, peers, sum(cpu_seconds(run.p2pd[name]) for name in names))


def measured(peers_per_stage: int, chosen: argparse.Namespace, folder: Path) -> Cost:
    """Raises RunFailed, StoryFailed."""
    data_peers = max(1, peers_per_stage // 3)
    small = SmallRun(
        stages=STAGES,
        peers_per_stage=peers_per_stage,
        data_peers=data_peers,
        steps=chosen.warm_up + chosen.steps,
        microbatches=HOPS_EACH * peers_per_stage // data_peers,
        checkpoint_every=10_000,
    )
    stage_peers = STAGES * peers_per_stage
    with Swarm(small, folder, options={"start_s": START_S}) as swarm:
        swarm.until("everybody is online", lambda: swarm.run.online_s > 0, START_S)
        swarm.until("the first steps are done", lambda: swarm.state.iterations >= chosen.warm_up, START_S)
        first = mark(swarm)
        swarm.until("all steps are done", lambda: swarm.run.finished(small.steps), START_S)
        last = mark(swarm)
        swarm.until("it has been idle", lambda: time.monotonic() > last.at + chosen.idle_s, START_S)
        idle = mark(swarm)
    hops = (last.steps - first.steps) * HOPS_EACH * stage_peers
    spent = last.peers_s + last.p2pds_s - first.peers_s - first.p2pds_s
    idle_rate = (idle.peers_s + idle.p2pds_s - last.peers_s - last.p2pds_s) / (idle.at - last.at)
    return Cost(
        stage_peers=stage_peers,
        iterations=last.steps - first.steps,
        iteration_s=round((last.at - first.at) / (last.steps - first.steps), 2),
        per_hop_ms=round(1e3 * spent / hops, 2),
        p2pd_ms=round(1e3 * (last.p2pds_s - first.p2pds_s) / hops, 2),
        idle_ms_per_s=round(1e3 * idle_rate / stage_peers, 2),
        beside_idle_ms=round(1e3 * (spent - idle_rate * (last.at - first.at)) / hops, 2),
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers_per_stage", type=int, nargs="+", default=[3, 12])
    parser.add_argument("--warm_up", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--idle_s", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    sizes = []
    for peers_per_stage in chosen.peers_per_stage:
        with tempfile.TemporaryDirectory(prefix="gwtf-stage-size-") as folder:
            try:
                sizes.append(measured(peers_per_stage, chosen, Path(folder)))
            except (RunFailed, AssertionError) as error:
                print(f"it did not get to its end: {error}", file=sys.stderr)
                return 1
        print(sizes[-1], flush=True)
    told = {
        "sizes": [asdict(size) for size in sizes],
        "per_hop": round(sizes[-1].per_hop_ms / sizes[0].per_hop_ms, 3),
        "per_hop_beside_idle": round(sizes[-1].beside_idle_ms / sizes[0].beside_idle_ms, 3),
    }
    print(json.dumps(told) if chosen.json else told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
