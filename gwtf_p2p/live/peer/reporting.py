"""What a running peer tells: reports to whoever started it, and its record to the swarm whenever that has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gwtf_p2p.live.compute.tensor_store import resident_bytes
from gwtf_p2p.live.measure.alert_command import run_alert
from gwtf_p2p.live.measure.join_times import JoinTimes
from gwtf_p2p.live.measure.traffic import traffic
from gwtf_p2p.live.peer.config import OnReport
from gwtf_p2p.live.peer.wiring import Parts
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.stall.watch import StallWatch, told
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.releases import newer_release
from gwtf_p2p.protocol.wire.records import PathType
from gwtf_p2p.version import VERSION

logger = logging.getLogger(__name__)

STALL_LOOK_S = 5.0
NEVER_S = 3600.0
"""How often a peer that reports no figures looks whether it should."""

REST_S = 2.0
"""How often a peer that computes nothing tells its figures at least."""


def next_pause_s(every_s: float, pause_s: float, has_computed: bool) -> float:
    """Until the next figures, of a peer that has paused for so long before those that it has just told."""
    return every_s if has_computed else max(every_s, min(2 * pause_s, REST_S))


@dataclass(frozen=True, slots=True)
class Reporting:
    """Who hears of this peer, and how long it has taken so far."""

    on_report: OnReport
    times: JoinTimes


class Reporter:
    """Tells what happens to one peer. `machine` is its state machine, `resent_bytes` its driver's count."""

    def __init__(self, parts: Parts, machine: StagePeer | DataPeer, reporting: Reporting) -> None:
        self._parts, self._machine = parts, machine
        self.tell, self._times = reporting.on_report, reporting.times
        self.resent_bytes: Callable[[], int] = lambda: 0
        self._online = self._has_computed = False
        self._stalled = ""
        self._newer = ""

    def record_changed(self) -> None:
        """Publish the record soon. Called whenever it has changed: this is how this peer's coming ONLINE is seen here."""
        machine, times, place = self._machine, self._times, self._parts.place
        if not self._online and machine.membership.serves:
            self._online = True
            times.mark("online")
            self.tell({"name": "online", "stage": place.stage, "shard": place.shard, "version": machine.participant.version})
            seconds = round(times.seconds, 3)
            self.tell({"name": "joined", "seconds": seconds, "steps": str(times), "step_s": dict(times.step_s)})
        self._parts.records.publish_soon()

    def heard(self, event: ev.Event) -> None:
        """The state machine hears an event: the first microbatch that this peer has computed whole is told."""
        if isinstance(event, ev.Computed) and not self._has_computed and event.work in (ev.Work.BACKWARD, ev.Work.FINISH):
            self._has_computed = True
            self.tell({"name": "first_microbatch", "seconds": round(self._times.seconds, 3)})

    def report(self, report: ef.Report, now: float) -> None:
        """What the state machine reports."""
        self._parts.records.progress.hear(report.name, report.fields, now)
        logger.debug("%s %s", report.name, report.fields)
        self.tell({"name": report.name, **report.fields})

    def fault(self, fault: dict[str, Any]) -> None:
        """This peer is about to break down on purpose."""
        self.tell({**fault, "computed_s": self._machine.accounts.computed_s})

    def path(self, peer: PeerId, path: PathType) -> None:
        """The path to a peer is another one now, which the record says too."""
        self._parts.records.publish_soon()
        self.tell({"name": "path", "peer": peer, "path": path.value})

    def look_at_releases(self, view: NetworkView) -> None:
        """Others run a newer release of this package: said once of each."""
        newer, peers = newer_release(VERSION, view.records.values())
        if newer and newer != self._newer:
            self._newer = newer
            self.tell({"name": "newer_release", "release": newer, "peers": peers, "own": VERSION})

    def download(self, chunks: int, of: int) -> None:
        """A state download goes on."""
        self.tell({"name": "download", "chunks": chunks, "of": of})

    async def keep_telling(self, every_s: float) -> None:
        """Memory and compute, every so often, and twice as late each time that nothing was computed since; 0 is never."""
        pause_s, computed_s = every_s, 0.0
        while True:
            await asyncio.sleep(pause_s or NEVER_S)
            if every_s:
                self.tell({"name": "figures", **self._figures()})
                computed_before_s, computed_s = computed_s, self._machine.accounts.computed_s
                pause_s = next_pause_s(every_s, pause_s, computed_s != computed_before_s)

    async def watch_stalls(self, watch: StallWatch, on_alert: str) -> None:
        """Say why training stands still, and that it goes on; after a while call somebody: `on_alert` is a shell command."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(STALL_LOOK_S)
            news = watch.look(self._machine, clock())
            self._stalled = watch.text
            if news is None:
                continue
            seconds, code = round(news.lasted_s, 1), news.stall.code if news.stall is not None else ""
            name = "stall" if news.stall is not None else "goes_on"
            self.tell({"name": name, "code": code, "text": told(news), "seconds": seconds, "alert": news.alert})
            if news.alert and on_alert:
                run_alert(on_alert, {"CODE": code, "TEXT": told(news)})

    def _figures(self) -> dict[str, Any]:
        store, transport = self._parts.compute.store, self._parts.transport
        return {
            "computed_s": self._machine.accounts.computed_s,
            "resent_bytes": self.resent_bytes(),
            "kept_bytes": store.held_bytes,
            "most_kept_bytes": store.most_held_bytes,
            "spilled_bytes": store.spilled_bytes,
            "resident_bytes": resident_bytes(),
            "stall": self._stalled,
            **traffic(transport.real_rpc.meter, transport.network.dht.record_bytes),
        }
