"""How differently two data peers plan: `python -m experiments.idle_traffic.views --peers 26 --seeds 0 1 2 --json`.

A swarm trains, simulated: stage peers' timings change by a few per cent all the time and are told every five seconds, a stage
peer ends without a word every 20 s and another one comes. At each iteration both data peers plan by what they know of the
others (`schedule/iteration_plan`) and publish their shares. Once all read the DHT every two seconds, each at its own time, as
before; once they exchange records.

The last line has the share of flows that one data peer has planned and the other has not, and in how many of their records the
two differed (`{"peers", "read": {"flows", "records"}, "exchanged": {...}}`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Protocol

from experiments.idle_traffic.simulated import records
from experiments.idle_traffic.world import ExchangeWorld
from gwtf_p2p.protocol.exchange.pace import LIFETIME_PERIODS, RECORD_PERIOD_S
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.schedule.from_view import figures_of
from gwtf_p2p.protocol.schedule.iteration_plan import plan_for
from gwtf_p2p.protocol.schedule.published import published_flows
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import IterationPlan
from gwtf_p2p.protocol.wire.records import StageRecord, Timing

STAGES, MICROBATCHES = 3, 8
ROUTINE_S, CHURN_S, ITERATION_S, ITERATIONS = 5.0, 20.0, 4.0, 30
READ_S, STORED_S = 2.0, 0.3
LIFETIME_S = LIFETIME_PERIODS * RECORD_PERIOD_S


class Swarm(Protocol):
    """What the story does to a swarm."""

    @property
    def now(self) -> float: ...

    def begin(self, record: StageRecord) -> None: ...

    def tell(self, peer: PeerId, **changes: object) -> None: ...

    def end(self, peer: PeerId) -> None: ...

    def run(self, seconds: float) -> None: ...

    def known_to(self, peer: PeerId) -> Mapping[PeerId, StageRecord]: ...


class Exchanging:
    """By `protocol/exchange`."""

    def __init__(self, seed: int) -> None:
        self._world = ExchangeWorld(seed)

    @property
    def now(self) -> float:
        return self._world.now

    def begin(self, record: StageRecord) -> None:
        self._world.add(record, [member.record for member in self._world.members.values() if not member.lost])

    def tell(self, peer: PeerId, **changes: object) -> None:
        self._world.publish(self._world.members[peer], **changes)

    def end(self, peer: PeerId) -> None:
        self._world.members[peer].lost = True

    def run(self, seconds: float) -> None:
        self._world.run(seconds)

    def known_to(self, peer: PeerId) -> Mapping[PeerId, StageRecord]:
        return self._world.members[peer].records(self._world.now)


class Reading:
    """Everybody reads all that has been in the DHT for a moment, every two seconds, from a time of its own on."""

    def __init__(self, seed: int) -> None:
        self.now = 1000.0
        self._rng = Random(seed)
        self._told: dict[PeerId, list[tuple[float, StageRecord]]] = {}
        self._first_read: dict[PeerId, float] = {}
        self._expires: dict[PeerId, float] = {}

    def begin(self, record: StageRecord) -> None:
        self._told[record.peer] = [(self.now, record)]
        self._first_read[record.peer] = self.now + self._rng.uniform(0, READ_S)

    def tell(self, peer: PeerId, **changes: object) -> None:
        last = self._told[peer][-1][1]
        record = replace(last, sequence_number=last.sequence_number + 1, **changes)  # type: ignore[arg-type]
        self._told[peer].append((self.now, record))

    def end(self, peer: PeerId) -> None:
        """It has published last half a period ago."""
        self._expires[peer] = self.now + LIFETIME_S - RECORD_PERIOD_S / 2

    def run(self, seconds: float) -> None:
        self.now += seconds

    def known_to(self, peer: PeerId) -> Mapping[PeerId, StageRecord]:
        first = self._first_read[peer]
        read_at = first + READ_S * max(0, (self.now - first) // READ_S)
        known = {}
        for owner, told in self._told.items():
            seen = [record for at, record in told if at + STORED_S <= read_at or owner == peer]
            if seen and self.now < self._expires.get(owner, math.inf):
                known[owner] = seen[-1]
        return known


def story(swarm: Swarm, peers: int, seed: int) -> tuple[float, float]:
    """Shares of flows, and of records, that two data peers have and the other has not."""
    rng, flows, differing = Random(seed), [], []
    drawn = [replace(record, capacity=MICROBATCHES, **_timing(rng, 0.1)) for record in records(peers, STAGES)]  # type: ignore[arg-type]
    for record in drawn:
        swarm.begin(record)
    swarm.run(30.0)
    one, other = (record.peer for record in drawn if record.stage == DATA_STAGE)
    living = {record.peer: record for record in drawn if record.stage != DATA_STAGE}
    left = peers
    for iteration in range(ITERATIONS):
        for step in range(int(ITERATION_S)):
            for peer in sorted(living):
                if rng.random() < 1 / ROUTINE_S:
                    swarm.tell(peer, **_timing(rng, living[peer].forward_s))
            if (iteration * ITERATION_S + step) % CHURN_S == 0:
                gone = rng.choice(sorted(living))
                swarm.end(gone)
                newcomer = replace(living.pop(gone), peer=PeerId(f"Qm{left:044d}"), sequence_number=1)
                living[newcomer.peer], left = newcomer, left + 1
                swarm.begin(newcomer)
            swarm.run(1.0)
        known = [swarm.known_to(peer) for peer in (one, other)]
        plans = [_plan(records_, seed) for records_ in known]
        flows.append(plans[0].changed_from(plans[1]) / (len(plans[0].flows) + len(plans[1].flows)))
        stage_records = [{p: r for p, r in of.items() if r.stage != DATA_STAGE} for of in known]
        everybody = stage_records[0].keys() | stage_records[1].keys()
        differing.append(sum(stage_records[0].get(p) != stage_records[1].get(p) for p in everybody) / len(everybody))
        for peer, plan in zip((one, other), plans, strict=True):
            swarm.tell(peer, flows=plan.published_by(peer), flows_iteration=iteration)
        swarm.run(0.5)
    return statistics.mean(flows), statistics.mean(differing)


def _timing(rng: Random, around_s: float) -> dict[str, Timing]:
    seconds = around_s * rng.uniform(0.97, 1.03)
    return {"forward": Timing(seconds, 10, 0.0), "backward": Timing(2 * seconds, 10, 0.0)}


def _plan(known: Mapping[PeerId, StageRecord], seed: int) -> IterationPlan:
    view = NetworkView.of(known.values(), STAGES, 1 << 20)
    figures, reason = figures_of(view)
    assert figures is not None, reason
    return plan_for(figures, published_flows(view), seed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=26)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    told: dict[str, object] = {"peers": chosen.peers}
    for name, kind in (("read", Reading), ("exchanged", Exchanging)):
        found = [story(kind(seed), chosen.peers, seed) for seed in chosen.seeds]
        flows, differing = (round(statistics.mean(each), 4) for each in zip(*found, strict=True))
        told[name] = {"flows": flows, "records": differing}
    print(json.dumps(told) if chosen.json else told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
