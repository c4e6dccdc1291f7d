"""A stranger who knows the join line of a run: an identity of its own, no record, no role, and much to say or do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from experiments.support.outsider_acts import Act, Place
from gwtf_p2p.live.discovery.dht import DhtOptions, start_dht
from gwtf_p2p.live.libp2p.daemon import Daemon, DaemonFailed, NetworkUnreachable, start_daemon
from gwtf_p2p.live.libp2p.identity import Identity, load_or_create_identity
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.rpc.api import Header, RpcFailed
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.wire.records import StageRecord

DEADLINE_S = 1.0
TRIES = 5
BETWEEN_S = 0.1


@dataclass(frozen=True, slots=True)
class Said:
    """A message to one peer: a call, or with a `payload` a push."""

    header: Header
    payload: bytes | None = None


Script = Callable[[PeerId, StageRecord, Sequence[StageRecord]], Sequence[Said]]
"""What to say to a peer, by the outsider's own id, that peer's record and all records."""


def _silent(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> Sequence[Said]:
    return ()


@dataclass
class Outsider:
    """It joins with `start`, and from `attack` on says its script to everybody, or acts, over and over until `stop`: so many
    `rounds`, and `said` messages in all."""

    run_id: RunId
    stages: int
    initial_peer: str
    folder: Path
    script: Script | None = None
    act: Act | None = None
    said: int = 0
    rounds: int = 0
    joined: bool = False
    failure: BaseException | None = None
    _attack_now: threading.Event = field(default_factory=threading.Event)
    _halt: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._main, name="outsider")
        self._thread.start()

    def attack(self) -> None:
        """From now on."""
        self._attack_now.set()

    def stop(self) -> None:
        """Raises what went wrong at the outsider itself: then there was no attack."""
        self._halt.set()
        self._attack_now.set()
        assert self._thread is not None, "start first"
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _main(self) -> None:
        try:
            uvloop.run(self._live())
        except Exception as error:  # noqa: BLE001  the boundary of a thread: told by `stop`
            self.failure = error

    async def _start(self, identity: Identity) -> Daemon:
        """Its p2pd may start too slowly beside a swarm that does as well."""
        for left in reversed(range(TRIES)):
            try:
                return await start_daemon(P2POptions.on_this_machine(self.initial_peer), identity)
            except (DaemonFailed, NetworkUnreachable):
                if not left:
                    raise
        raise AssertionError("it starts, or raises")

    async def _live(self) -> None:
        identity = load_or_create_identity(self.folder / "outsider.key")
        daemon = await self._start(identity)
        try:
            dht = await start_dht(daemon, identity, DhtOptions(self.run_id, client_mode=True))
            rpc = Rpc(daemon, self.run_id)
            place = Place(identity, daemon, dht, rpc, self.folder)
            self.joined = True
            await asyncio.to_thread(self._attack_now.wait)
            while not self._halt.is_set():
                records = await dht.read_stages(self.run_id, [Stage(k) for k in range(self.stages + 1)])
                honest = [record for record in records if record.peer not in {ghost.peer_id for ghost in place.ghosts}]
                if self.act is not None and honest:
                    self.said += await self.act(place, honest)
                script = self.script or _silent
                for record in honest:
                    for said in script(daemon.peer_id, record, honest):
                        await self._say(rpc, record.peer, said)
                        self.said += 1
                self.rounds += 1
                await asyncio.sleep(BETWEEN_S)
            for frames in place.kept:
                frames.close()
            await rpc.stop()
            await dht.stop()
        finally:
            await daemon.stop()

    async def _say(self, rpc: Rpc, to: PeerId, said: Said) -> Any:
        try:
            if said.payload is None:
                return await rpc.call(to, said.header, DEADLINE_S)
            return await rpc.push(to, said.header, said.payload, DEADLINE_S, eager=False)
        except (RpcFailed, RemoteProtocolError) as error:
            return error  # refused, or barred: that is what should happen
