"""CPU of peers that are online and have nothing to do: `python -m experiments.idle_traffic.cpu --peers 8 20 --json`.

The swarm of `experiments.idle_traffic`: it does one step, which is the last one, and stays. When it has been quiet for
`--settle_s` seconds, the CPU seconds of each peer and of its p2pd are read twice, `--seconds` apart, and how often each was put
to sleep (its voluntary context switches: wake-ups of all threads). `--hold` keeps the swarm for so many seconds more and prints
its process ids, for a profiler.

The last line has, for each number of peers, of the median peer milliseconds of CPU for each second, and wake-ups a second
(`{"sizes": [{"peers", "peer_ms_per_s", "p2pd_ms_per_s", "peer_wakes_per_s", "p2pd_wakes_per_s"}]}`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.idle_traffic.idle_swarm import idle_swarm, wait
from gwtf_p2p.ab.live.cpu import cpu_seconds
from gwtf_p2p.cli.shared.local_run import BOOTSTRAP, RunFailed


@dataclass(frozen=True, slots=True)
class IdleCpu:
    """Of the median peer and of its p2pd; `online_s`: until everybody was online."""

    peers: int
    peer_ms_per_s: float
    p2pd_ms_per_s: float
    peer_wakes_per_s: float
    p2pd_wakes_per_s: float
    online_s: float


@dataclass(frozen=True, slots=True)
class Spent:
    """By one process so far."""

    cpu_s: float
    wakes: int


def spent(pids: Collection[int]) -> dict[int, Spent]:
    """Each of them."""
    return {pid: Spent(cpu_seconds(pid), _wakes(pid)) for pid in pids}


def _wakes(pid: int) -> int:
    """Of all its threads; a thread that ends takes its own with it."""
    switches = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue
        switches += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return switches


def medians(before: dict[int, Spent], after: dict[int, Spent], pids: Collection[int], seconds: float) -> tuple[float, float]:
    """Of milliseconds of CPU a second, and of wake-ups a second."""
    cpu = statistics.median(after[pid].cpu_s - before[pid].cpu_s for pid in pids)
    wakes = statistics.median(after[pid].wakes - before[pid].wakes for pid in pids)
    return round(1e3 * cpu / seconds, 2), round(wakes / seconds, 1)


def measured(peers: int, chosen: argparse.Namespace, folder: Path) -> IdleCpu:
    """Raises RunFailed, StoryFailed."""
    with idle_swarm(peers, chosen.settle_s, folder) as swarm:
        run = swarm.run
        names = [name for name in run.p2pd if name != BOOTSTRAP]
        own, p2pd = [run.swarm.peers[name].pid for name in names], [run.p2pd[name] for name in names]
        began, before = time.monotonic(), spent([*own, *p2pd])
        wait(swarm, chosen.seconds)
        seconds, after = time.monotonic() - began, spent([*own, *p2pd])
        if chosen.hold:
            print(json.dumps({name: pids for name, *pids in zip(names, own, p2pd, strict=True)}), flush=True)
            wait(swarm, chosen.hold)
        peer_ms, peer_wakes = medians(before, after, own, seconds)
        p2pd_ms, p2pd_wakes = medians(before, after, p2pd, seconds)
        return IdleCpu(peers, peer_ms, p2pd_ms, peer_wakes, p2pd_wakes, round(run.online_s, 1))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[8, 20])
    parser.add_argument("--settle_s", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hold", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    sizes = []
    for peers in chosen.peers:
        with tempfile.TemporaryDirectory(prefix="gwtf-idle-") as folder:
            try:
                sizes.append(measured(peers, chosen, Path(folder)))
            except (RunFailed, AssertionError, ValueError) as error:
                print(f"it did not get to its end: {error}", file=sys.stderr)
                return 1
        print(sizes[-1], flush=True)
    told = {"sizes": [asdict(size) for size in sizes]}
    print(json.dumps(told) if chosen.json else told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
