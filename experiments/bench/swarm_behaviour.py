"""Our `swarm` against what was measured on the official code (yandex-research/swarm), with real peers:

    python -m experiments.bench.swarm_behaviour [shares] [killed] [frozen] [frozen_official]

- `shares`: a stage peer whose device takes 0.1 s longer for each pass (its real computing is stretched). Its share of the
  microbatches against the one that the data peer's response times predict: on the official code 10.1 to 13.5 % predicted,
  within 3 points of that observed.
- `killed`: from SIGKILL to the microbatch moving on. Official: under 0.3 s, since the connection breaks; here under 1 s.
- `frozen`: a stage peer gets SIGSTOP. What the run loses by it, with deadlines from measured times (under 8 s) and,
  `frozen_official`, with the official time-outs, which stall everything for two forwards of 30 s.

One line per check; exit code 1 when one is off.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.ab.live.wire import Wire
from gwtf_p2p.live.emulation.emulation import Emulation
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.local_swarm import LocalSwarm
from gwtf_p2p.protocol.core.router import HopObservation, RouteRequest
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.routers.swarm import OFFICIAL, PAPER, SwarmConfig, SwarmRouter
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, RunRecord, StageRecord
from gwtf_p2p.simulation.lines.links import LinkSpec

DATA, SLOW, VICTIM = "data0", "stage1.1", "stage2.1"
DEVICE_S, SLOWER_S = 0.02, 0.1
FAULT_AT = 3
"""The iteration (from 0) in which a stage peer breaks down."""

DEADLINE_S = 300.0
SHARES = SmallRun(peers_per_stage=2, microbatches=16, steps=10)
FAULTS = SmallRun(peers_per_stage=3, microbatches=8, steps=9)


@dataclass
class Life:
    """One swarm from its start to its last step. `peers` are ids by name, `steps_at` when the data peer committed each step."""

    small: SmallRun
    config: SwarmConfig
    folder: Path
    slower_s: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""
    peers: dict[str, PeerId] = field(default_factory=dict)
    steps_at: list[float] = field(default_factory=list)
    first_hops: Counter[str] = field(default_factory=Counter)
    moved_on: list[float] = field(default_factory=list)
    fault_at: float | None = None

    def live(self) -> None:
        swarm = LocalSwarm(self.folder)
        wire = Wire(self.folder / "wire", lambda one, other: LinkSpec(0.0, 1e9), {})
        record = replace(self.small.record(), router="swarm")
        wire.start()
        try:
            swarm.start("bootstrap", self._config(record, "bootstrap", "bootstrap", ""))
            started = swarm.wait_for("bootstrap", "started", 60)
            assert started is not None, "the bootstrap peer did not start"
            maddr = started["maddrs"][0]
            swarm.start(DATA, self._config(record, "data", DATA, maddr, wire, shard=0, new_run=record))
            for stage in range(1, record.stages + 1):
                for number in range(record.peers_per_stage):
                    name = f"stage{stage}.{number}"
                    swarm.start(name, self._config(record, "peer", name, maddr, wire, stage=stage))
            self._watch(swarm)
        finally:
            swarm.stop()
            wire.stop()

    def _config(self, record: RunRecord, role: str, name: str, maddr: str, wire: Wire | None = None, **more: Any) -> PeerConfig:
        device = {}
        if role == "peer":
            seconds = DEVICE_S + self.slower_s.get(name, 0.0)
            device = {Work.FORWARD: seconds, Work.BACKWARD: seconds}
        return PeerConfig(
            role=role,
            options=P2POptions.on_this_machine(maddr),
            identity_path=self.folder / f"{name}.key",
            run_id=record.run_id,
            threads=1,
            router_config=self.config,
            emulation=Emulation(wire.socket, links=False, work_s=device) if wire is not None else None,
            event_log=self.folder / "events.jsonl" if name == DATA else None,
            **more,
        )

    def _watch(self, swarm: LocalSwarm) -> None:
        end = time.monotonic() + DEADLINE_S
        while len(self.steps_at) < self.small.steps:
            assert time.monotonic() < end, f"only {len(self.steps_at)} steps in {DEADLINE_S:.0f} s"
            for name, report in swarm.poll(0.02):
                self._hear(swarm, name, report)

    def _hear(self, swarm: LocalSwarm, name: str, report: Mapping[str, Any]) -> None:
        match report["name"]:
            case "started":
                self.peers[name] = PeerId(str(report["peer"]))
            case "iteration_begins" if name == DATA and report["iteration"] == FAULT_AT and self.fault:
                self.fault_at = time.monotonic()
                (swarm.kill if self.fault == "kill" else swarm.freeze)(VICTIM)
            case "injected":
                self.first_hops[report["route"][0]] += 1
            case "recovered" if self.fault_at is not None:
                self.moved_on.append(time.monotonic() - self.fault_at)
            case "stepped" if name == DATA:
                self.steps_at.append(time.monotonic())
            case "exited" | "failed":
                assert name == VICTIM and self.fault, f"{name} ended: {report}"
            case _:
                pass

    @property
    def lost_s(self) -> float:
        """What the iterations from the fault on took longer than the slowest one before it, the first one apart."""
        took = [later - former for former, later in zip(self.steps_at, self.steps_at[1:], strict=False)]
        usual, since = took[: FAULT_AT - 1], took[FAULT_AT - 1 :]
        return sum(since) - len(since) * max(usual)


def predicted_share(life: Life) -> float:
    """Of the slow stage peer, by the response times that the data peer learned: its events, told to a router like its own.

    The mean over all microbatches after the first iteration's.
    """
    stage_peers = [life.peers[f"stage1.{number}"] for number in range(life.small.peers_per_stage)]
    records = [StageRecord(peer, life.small.record().run_id, Stage(1), PeerState.ONLINE, 0) for peer in stage_peers]
    router, me = SwarmRouter(life.config, 0), life.peers[DATA]
    router.observe_view(NetworkView.of(records, 1, 1), 0.0)
    router.route(RouteRequest(MicrobatchId(me, 0, -1), me, Stage(1), Stage(1), is_new=True), 0.0)
    predicted = []
    for line in (life.folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        message = event.get("message", {})
        if event["event"] != "Received" or message.get("kind") != "Complete":
            continue
        microbatch = MicrobatchId(me, message["microbatch"]["iteration"], message["microbatch"]["index"])
        hop = HopObservation(microbatch, me, PeerId(event["sender"]), Stage(1), False, message["held_s"])
        router.observe_hop(hop, 0.0)
        if microbatch.iteration > 0:
            weights = {peer: 1 / router.response_s(Stage(1), peer) for peer in stage_peers}
            predicted.append(weights[life.peers[SLOW]] / sum(weights.values()))
    return sum(predicted) / len(predicted)


def shares(folder: Path) -> tuple[str, bool]:
    life = Life(SHARES, replace(OFFICIAL, in_flight=1), folder, {SLOW: SLOWER_S})
    life.live()
    predicted = predicted_share(life)
    observed = life.first_hops[life.peers[SLOW]] / life.first_hops.total()
    told = f"predicted {predicted:.1%}, observed {observed:.1%} of {life.first_hops.total()} (expected: within 3 points)"
    return told, abs(predicted - observed) <= 0.03


def killed(folder: Path) -> tuple[str, bool]:
    life = Life(FAULTS, PAPER, folder, fault="kill")
    life.live()
    gap_s = max(life.moved_on, default=0.0)
    return f"moved on {gap_s:.2f} s after the kill, {len(life.moved_on)} microbatches (expected: under 1 s)", gap_s < 1.0


def frozen(folder: Path) -> tuple[str, bool]:
    life = Life(FAULTS, PAPER, folder, fault="freeze")
    life.live()
    return f"{life.lost_s:.1f} s lost (expected: under 8 s)", life.lost_s < 8.0


def frozen_official(folder: Path) -> tuple[str, bool]:
    life = Life(FAULTS, replace(PAPER, official_failures=True), folder, fault="freeze")
    life.live()
    return f"{life.lost_s:.1f} s lost (expected: 60 to 80 s)", 60.0 < life.lost_s < 80.0


CHECKS: Mapping[str, Callable[[Path], tuple[str, bool]]] = {
    "shares": shares,
    "killed": killed,
    "frozen": frozen,
    "frozen_official": frozen_official,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(CHECKS))
    wanted = parser.parse_args(arguments).checks or list(CHECKS)
    if set(wanted) - set(CHECKS):
        parser.error(f"expected some of {', '.join(CHECKS)}")
    all_hold = True
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="gwtf-sw-") as folder:
            told, holds = CHECKS[name](Path(folder))
        all_hold &= holds
        print(f"{name:16} {'as expected' if holds else 'OFF':12} {told}")
        sys.stdout.flush()
    return 0 if all_hold else 1


if __name__ == "__main__":
    raise SystemExit(main())
