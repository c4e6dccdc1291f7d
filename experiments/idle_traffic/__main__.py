"""What a swarm puts on its lines when it does nothing: `python -m experiments.idle_traffic --peers 8 14 26 --json`.

Real peers on this machine, forked from one warm parent: two data peers, the rest in three stages, and a bootstrap peer. They
do one step, which is the last one, and stay. When they have been quiet for `--settle_s` seconds, the bytes of each p2pd's TCP
connections are read twice, `--seconds` apart; what a peer sends and what it receives both count as its traffic. `--simulated`
adds swarms of the exchange alone (`simulated`).

The last line has, for each number of peers, the median peer's kB/s (sent and received), what all peers together sent, and the
slope of that total over peers in log-log (`{"sizes": [{"peers", "median_kb_s", "sent_kb_s", ...}], "slope", "simulated",
"simulated_slope"}`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.idle_traffic.idle_swarm import idle_swarm, wait
from experiments.idle_traffic.simulated import quiet
from experiments.idle_traffic.wire_bytes import NotCounted, carried
from gwtf_p2p.cli.shared.local_run import BOOTSTRAP, RunFailed


@dataclass(frozen=True, slots=True)
class Idle:
    """`median_kb_s` and `most_kb_s`: of a peer, both ways. `sent_kb_s`: of all peers and the bootstrap peer, one way.
    `online_s`: until everybody was online."""

    peers: int
    median_kb_s: float
    most_kb_s: float
    sent_kb_s: float
    bootstrap_kb_s: float
    online_s: float


def slope(totals: Sequence[tuple[int, float]]) -> float:
    """Of (peers, kB/s of all), both in logarithms, by least squares; 0.0 for one size."""
    if len(totals) < 2:
        return 0.0
    x, y = ([math.log(max(value, 1e-3)) for value in values] for values in zip(*totals, strict=True))
    return round(statistics.linear_regression(x, y).slope, 2)


def measured(peers: int, settle_s: float, seconds: float, folder: Path) -> Idle:
    """Raises RunFailed, StoryFailed, NotCounted."""
    with idle_swarm(peers, settle_s, folder) as swarm:
        run = swarm.run
        began, before = time.monotonic(), carried(run.p2pd.values())
        wait(swarm, seconds)
        after, took_s = carried(run.p2pd.values()), time.monotonic() - began
        since = {name: after[pid].since(before[pid]) for name, pid in run.p2pd.items()}
        rates = {name: (each.sent + each.received) / took_s / 1e3 for name, each in since.items()}
        bootstrap = rates.pop(BOOTSTRAP)
        return Idle(
            peers=peers,
            median_kb_s=round(statistics.median(rates.values()), 2),
            most_kb_s=round(max(rates.values()), 2),
            sent_kb_s=round(sum(each.sent for each in since.values()) / took_s / 1e3, 2),
            bootstrap_kb_s=round(bootstrap, 2),
            online_s=round(run.online_s, 1),
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="*", default=[8, 14, 26])
    parser.add_argument("--simulated", type=int, nargs="+", default=[])
    parser.add_argument("--settle_s", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    sizes = []
    for peers in chosen.peers:
        with tempfile.TemporaryDirectory(prefix="gwtf-idle-") as folder:
            try:
                sizes.append(measured(peers, chosen.settle_s, chosen.seconds, Path(folder)))
            except (RunFailed, AssertionError, NotCounted, ValueError) as error:
                print(f"it did not get to its end: {error}", file=sys.stderr)
                return 1
        print(sizes[-1], flush=True)
    told: dict[str, object] = {
        "sizes": [asdict(size) for size in sizes],
        "slope": slope([(size.peers, size.sent_kb_s) for size in sizes]),
    }
    if chosen.simulated:
        simulated = [quiet(peers, seed=0) for peers in chosen.simulated]
        told["simulated"] = [asdict(size) for size in simulated]
        told["simulated_slope"] = slope([(size.peers, size.total_kb_s) for size in simulated])
    print(json.dumps(told) if chosen.json else told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
