"""The agent's side of `agent`: imports everything heavy, so that the fork server does it once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from hivemind.p2p import P2P, PeerID

from gwtf_p2p.live.direct.direct import DirectOptions, DirectStreams, hosts_of
from gwtf_p2p.live.libp2p import control as libp2p_streams
from gwtf_p2p.live.libp2p.daemon import Daemon, start_daemon
from gwtf_p2p.live.libp2p.dialling import connect
from gwtf_p2p.live.libp2p.identity import Identity, load_or_create_identity
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.nat import hole_punch as punch
from gwtf_p2p.live.nat.paths import Paths
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.live.rpc.rpc import Header, Rpc
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

RUN = RunId("lab")


class _Sink:
    """Handlers that take everything."""

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": True}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None: ...

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None: ...

    def on_message(self, sender: PeerId, header: Header) -> Header:
        return {"ok": True}

    def on_watch_broken(self, peer: PeerId, reason: str) -> None: ...


class _Agent:
    """One method for each thing that can be asked."""

    def __init__(self, daemon: Daemon, rpc: Rpc, reachability: Reachability | None = None, paths: Paths | None = None) -> None:
        self.daemon, self.rpc = daemon, rpc
        self._reachability, self._path_keeper = reachability, paths
        self._doors: list[asyncio.Task[punch.Splice]] = []

    async def maddrs(self) -> tuple[str, ...]:
        return await self.daemon.maddrs()

    async def paths(self, peer: PeerId) -> list[str]:
        """Remote addresses of all connections to a peer."""
        infos = await self.daemon.p2p.list_peers()
        return [str(addr) for info in infos if str(info.peer_id) == peer for addr in info.addrs]

    async def connect(self, peer: PeerId, maddr: str | None = None, limit_s: float = 10.0) -> str:
        """Empty when connected, else the reason."""
        return await connect(self.daemon.control_path, peer, [maddr] if maddr else [], limit_s)

    async def disconnect(self, peer: PeerId) -> None:
        await self.daemon.p2p._client.disconnect(PeerID.from_base58(peer))

    async def call(self, peer: PeerId, limit_s: float = 12.0) -> float:
        """Seconds of a null call."""
        begin = time.perf_counter()
        await self.rpc.call(peer, {"kind": "null"}, limit_s)
        return time.perf_counter() - begin

    async def push(self, peer: PeerId, size: int, limit_s: float = 60.0) -> float:
        """Megabytes per second of one push."""
        result = await self.rpc.push(peer, {"kind": "null"}, bytes(size), limit_s)
        return size / result.seconds / 1e6

    async def direct_bytes(self) -> int:
        """Of payloads, that went past p2pd."""
        return self.rpc.meter.direct_bytes

    async def identify(self, peer: PeerId) -> tuple[str, tuple[str, ...], list[str]]:
        found = await libp2p_streams.identify(self.daemon.control_path, peer, 5.0)
        return found.observed, found.listens, sorted(found.protocols)

    async def dial_back(self, peer: PeerId, maddrs: Sequence[str], limit_s: float) -> tuple[str, str]:
        answer = await libp2p_streams.dial_back(self.daemon.control_path, self.daemon.peer_id, peer, maddrs, limit_s)
        return answer.address, answer.reason

    async def reserve(self, relay: PeerId) -> tuple[float, int, int]:
        """Seconds that it lasts, bytes and seconds of a circuit."""
        slot = await libp2p_streams.reserve(self.daemon.control_path, relay, 5.0)
        return slot.expires_at - time.time(), slot.circuit_bytes, slot.circuit_s

    async def become_reachable(self, relays: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """Path type and addresses after the first answers of the circuit relays; both are kept up to date from then on."""
        self._reachability = Reachability(self.daemon, parse_initial_peers(relays, {}), lambda: None)
        await self._reachability.start()
        return await self.reachable()

    async def reachable(self) -> tuple[str, tuple[str, ...]]:
        assert self._reachability is not None, "become_reachable comes first"
        return self._reachability.path.value, self._reachability.maddrs

    async def record(self) -> StageRecord:
        """As it would publish it."""
        reach = self._reachability
        assert reach is not None, "only an agent with paths has a record"
        bare = StageRecord(self.daemon.peer_id, RUN, Stage(1), PeerState.ONLINE, 1, path=reach.path, maddrs=reach.maddrs)
        return replace(bare, circuit_bytes=reach.circuit_bytes, circuit_s=reach.circuit_s)

    async def learn(self, record: StageRecord) -> None:
        assert self._path_keeper is not None, "only an agent with paths learns"
        self._path_keeper.learn(NetworkView.of([record], 1, 1))

    async def kind(self, peer: PeerId) -> str:
        assert self._path_keeper is not None, "only an agent with paths knows their kinds"
        kind = self._path_keeper.kind(peer)
        return kind.value if kind else ""

    async def push_for(self, peer: PeerId, size: int, limit_s: float) -> tuple[float, int]:
        """Seconds of one push, and how many circuits it took."""
        assert self._path_keeper is not None, "only an agent with paths counts its circuits"
        before = self._path_keeper.circuits_renewed
        result = await self.rpc.push(peer, {"kind": "null"}, bytes(size), limit_s)
        return result.seconds, self._path_keeper.circuits_renewed - before + 1

    async def wait_at_door(self, own_port: int, host: str, port: int) -> None:
        """Wait in the background for the dial of a peer whose public address this is; see `punch_result`."""
        self._doors.append(asyncio.create_task(punch.wait_at_door(own_port, host, port)))
        await asyncio.sleep(0)  # the SYN leaves before the answer does

    async def punch_result(self) -> str:
        """Empty when the last wait became a connection, else the reason."""
        try:
            await self._doors[-1]
        except punch.PunchFailed as error:
            return str(error)
        return ""


def run_agent(pipe: Connection, log: str, options: P2POptions, flags: Sequence[str], settings: dict[str, Any]) -> None:
    """Serve until the pipe ends or brings None."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(message)s")
    with_paths = settings.pop("with_paths", False)
    identity = None if "identity_path" in settings else load_or_create_identity(Path(log).with_suffix(".key"))
    _add_settings(flags, settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(pipe, options, identity, with_paths))


def _add_settings(flags: Sequence[str], settings: dict[str, Any]) -> None:
    """What an experiment passes to p2pd beyond `P2POptions`; this process serves one agent only."""
    create, arguments = P2P.create.__func__, P2P._make_process_args

    async def create_with_settings(cls: type[P2P], *args: Any, **kwargs: Any) -> P2P:
        return await create(cls, *args, **{**kwargs, **settings})

    P2P.create = classmethod(create_with_settings)
    P2P._make_process_args = staticmethod(lambda *args, **kwargs: [*arguments(*args, **kwargs), *flags])


async def _serve(pipe: Connection, options: P2POptions, identity: Identity | None, with_paths: bool) -> None:
    loop = asyncio.get_running_loop()
    reachability, paths = None, None
    try:
        daemon = await start_daemon(options, identity)
        if with_paths:
            reachability = Reachability(daemon, options.initial_peers, lambda: None)
            await reachability.start()
            paths = Paths(daemon, reachability)
        direct = None
        if identity is not None:
            hosts = hosts_of(options.host_maddrs)
            direct = DirectStreams(identity, daemon.control_path, DirectOptions(hosts))
        rpc = Rpc(daemon, RUN, ways=paths, direct=direct)
        if paths is not None:
            paths.attach(rpc, lambda peer, kind: None)
        await rpc.start(_Sink())
    except Exception as error:  # noqa: BLE001 (the process boundary: told to whoever started this agent)
        pipe.send((False, f"{type(error).__name__}: {error}"))
        return
    agent = _Agent(daemon, rpc, reachability, paths)
    maddrs = await daemon.maddrs() if options.host_maddrs else ()
    pipe.send((True, (daemon.peer_id, maddrs)))
    with suppress(EOFError, ConnectionError):
        while (question := await loop.run_in_executor(None, pipe.recv)) is not None:
            what, arguments = question
            try:
                answer = await getattr(agent, what)(*arguments)
            except Exception as error:  # noqa: BLE001 (the process boundary, again)
                pipe.send((False, f"{type(error).__name__}: {error}"))
            else:
                pipe.send((True, answer))
    if agent._reachability is not None:
        await agent._reachability.stop()
    await rpc.stop()
    if agent._path_keeper is not None:
        await agent._path_keeper.stop()
    await daemon.stop()
