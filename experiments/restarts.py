"""What restarts leave behind in the DHT: `python -m experiments.restarts --restarts 50 --json`.

A small live swarm trains; a third of its peers are killed (SIGKILL) and started again, again and again. Then an observer asks
every machine, by hivemind's own `find`, which ids it knows of whom and which records it keeps; then that third is ended for
good, and the records of the others are read as any peer reads them.

The last line is `{"peers", "ids", "records", "readable", "machines_per_record", "false_alarms"}`: machines of the DHT, and ids
that their routing tables hold; records of the peers that stay, and how many of them are read after the others have ended; on
how many machines the worst kept of all records was before that; how often a peer said that nobody keeps its record. Exit code
1 unless there are as many ids as peers, all records are readable and no alarm was false.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID

from experiments.support.live_swarm import SmallRun, Swarm
from gwtf_p2p.cli.shared.local_run import BOOTSTRAP, RunFailed
from gwtf_p2p.live.discovery.dht import REPLICAS, Dht, DhtOptions, start_dht
from gwtf_p2p.live.libp2p.daemon import start_daemon
from gwtf_p2p.live.libp2p.identity import load_or_create_identity
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.peer.record_keeper import NOBODY_KEEPS_IT
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.wire.signed import stage_key

BACK_WITHIN_S = 180.0
PUBLISHED_S = 20.0
"""Everybody has published once more after this."""


@dataclass(frozen=True, slots=True)
class Line:
    peers: int
    ids: int
    records: int
    readable: int
    machines_per_record: int
    false_alarms: int
    restarts: int
    median_back_s: float


@dataclass
class Seen:
    """By the observer: `ids` of each peer in any routing table, and the machines that keep each owner's record."""

    ids: dict[str, set[str]] = field(default_factory=dict)
    keepers: dict[str, set[str]] = field(default_factory=dict)


class Observer:
    """Joins the DHT, keeps nothing for others, and asks."""

    def __init__(self, initial_peer: str, run_id: RunId, stages: int, folder: Path) -> None:
        self._where, self._run_id, self._folder = initial_peer, run_id, folder
        self._stages = [Stage(stage) for stage in range(stages + 1)]

    async def asked(self, machines: Sequence[PeerId]) -> Seen:
        """Every machine, about every record and every other machine."""
        async with _Joined(self._where, self._run_id, self._folder) as dht:
            seen = Seen()
            keys = [DHTID.generate(source=stage_key(self._run_id, stage)) for stage in self._stages]
            for machine in machines:
                found = await dht._node.protocol.call_find(PeerID.from_base58(machine), keys)
                for entry, nearest in (found or {}).values():
                    for dht_id, peer in nearest.items():
                        seen.ids.setdefault(peer.to_base58(), set()).add(str(dht_id))
                    for subkey in entry.value.data if entry is not None else ():
                        seen.keepers.setdefault(repr(subkey), set()).add(machine)
            return seen

    async def read(self) -> set[PeerId]:
        """Owners of records that can be read."""
        async with _Joined(self._where, self._run_id, self._folder) as dht:
            return {record.peer for record in await dht.read_stages(self._run_id, self._stages)}


class _Joined:
    """A DHT peer for as long as it is needed."""

    def __init__(self, initial_peer: str, run_id: RunId, folder: Path) -> None:
        self._options, self._run_id, self._folder = P2POptions.on_this_machine(initial_peer), run_id, folder

    async def __aenter__(self) -> Dht:
        identity = load_or_create_identity(self._folder / "observer.key")
        self._daemon = await start_daemon(self._options, identity)
        self._dht = await start_dht(self._daemon, identity, DhtOptions(self._run_id, client_mode=True))
        return self._dht

    async def __aexit__(self, *_: object) -> None:
        await self._dht.stop()
        await self._daemon.stop()


def wait(swarm: Swarm, seconds: float) -> None:
    """The swarm goes on meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        swarm.poll()


def restarts(swarm: Swarm, names: Sequence[str], number: int) -> list[float]:
    """So many in all, all of `names` at once; returns the seconds until each round was back."""
    run, back = swarm.run, []
    for _ in range(-(-number // len(names))):
        for name in names:
            run.kill(name)
        began = time.monotonic()
        for name in names:
            run.start_again(name)
        swarm.until("they are back", lambda: all(run.lines[name].state == "online" for name in names), BACK_WITHIN_S)
        back.append(time.monotonic() - began)
    return back


def alarms(folder: Path) -> int:
    """How often a peer has said that nobody keeps its record."""
    return sum(log.read_text(errors="replace").count(NOBODY_KEEPS_IT) for log in folder.glob("*.log"))


def measured(number: int, seed: int, folder: Path) -> Line:
    """Raises RunFailed or StoryFailed."""
    small = SmallRun(stages=2, peers_per_stage=2, data_peers=2, steps=0, seed=seed)
    with Swarm(small, folder) as swarm:
        run = swarm.run
        swarm.until("everybody is online", lambda: run.online_s > 0)
        swarm.until_step(2)
        third = ["stage1.1", "stage2.1"]
        back = restarts(swarm, third, number)
        wait(swarm, PUBLISHED_S)
        swarm.until_step(swarm.state.iterations + 2)
        machines = {name: PeerId(maddr.rsplit("/", 1)[1]) for name, maddr in run.maddrs.items()}
        observer = Observer(run.initial_peer(), run.record.run_id, small.stages, folder)
        seen = asyncio.run(observer.asked(list(machines.values())))
        for name in third:
            run.kill(name)
        staying = {peer for name, peer in machines.items() if name not in (*third, BOOTSTRAP)}
        readable = staying & asyncio.run(observer.read())
        known = {peer: ids for peer, ids in seen.ids.items() if peer in machines.values()}
        return Line(
            peers=len(machines),
            ids=sum(map(len, known.values())),
            records=len(staying),
            readable=len(readable),
            machines_per_record=min(map(len, seen.keepers.values()), default=0),
            false_alarms=alarms(folder),
            restarts=len(back) * len(third),
            median_back_s=round(sorted(back)[len(back) // 2], 1),
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gwtf-restarts-") as folder:
        try:
            line = measured(chosen.restarts, chosen.seed, Path(folder))
        except (RunFailed, AssertionError) as error:
            print(f"it did not get to its end: {error}", file=sys.stderr)
            return 1
    print(json.dumps(asdict(line)) if chosen.json else line, flush=True)
    is_right = line.ids == line.peers and line.readable == line.records and not line.false_alarms
    return 0 if is_right and line.machines_per_record >= min(REPLICAS, line.peers) - 1 else 1


if __name__ == "__main__":
    sys.exit(main())
