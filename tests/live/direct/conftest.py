"""Peers that have a data port, and a way between that a test can cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gwtf_p2p.live.direct.direct import DirectOptions, DirectStreams
from gwtf_p2p.live.libp2p.daemon import start_daemon
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.libp2p.run_secret import RunSecret
from gwtf_p2p.live.rpc.api import RpcOptions
from gwtf_p2p.live.rpc.rpc import Rpc
from tests.live.conftest import DEADLINE_S, RUN, LivePeer, Recorder


@dataclass
class DirectPeer(LivePeer):
    direct: DirectStreams = field(kw_only=True)

    async def opened(self, other: DirectPeer) -> None:
        """Return when direct streams to the other can be had."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.direct.is_open(other.id):
                await self.rpc.push(other.id, {"kind": "Forward"}, b"knock", DEADLINE_S)
                await other.handlers.next()


StartDirect = Callable[..., Awaitable[DirectPeer]]


@pytest.fixture
async def start_direct(tmp_path: Path) -> AsyncIterator[StartDirect]:
    """Starts peers of one swarm in this process; the first one is the initial peer of the others."""
    peers: list[DirectPeer] = []

    async def start(
        options: DirectOptions | None = None, limits: RpcOptions | None = None, secret: RunSecret | None = None
    ) -> DirectPeer:
        initial = await peers[0].daemon.maddrs() if peers else ()
        identity = create_identity(tmp_path / f"{len(peers)}.key")
        daemon = await start_daemon(P2POptions.on_this_machine(*initial), identity)
        direct, handlers = DirectStreams(identity, daemon.control_path, options or DirectOptions()), Recorder()
        rpc = Rpc(daemon, RUN, limits or RpcOptions(first_try_s=2.0), secret=secret, direct=direct)
        peer = DirectPeer(daemon, rpc, handlers, direct=direct)
        peers.append(peer)
        await rpc.start(handlers)
        return peer

    yield start
    for peer in peers:
        await peer.rpc.stop()
        await peer.daemon.stop()
