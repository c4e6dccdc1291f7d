"""Real libp2p peers on loopback, and the promise that none of their p2pd outlives its test."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.live.libp2p.daemon import Daemon, start_daemon
from gwtf_p2p.live.libp2p.daemon_lifetime import sweep
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.rpc.rpc import Header, Rpc, RpcOptions
from gwtf_p2p.protocol.ids import PeerId, RunId

RUN = RunId("test-run")
DEADLINE_S = 20.0
"""How long a test waits for an event that must come. It is no measure of speed."""

LOCAL = P2POptions.on_this_machine()


@pytest.fixture(autouse=True)
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sockets of this test alone. When it ends, no p2pd uses them any more; what killed peers left, the sweep takes away."""
    path = Path(tempfile.mkdtemp(prefix="gwtf-t", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    yield path
    pids = daemons_in(path)
    survivors = [pid for pid in pids if not ends(pid, DEADLINE_S / 4)]
    for pid in survivors:
        os.kill(pid, 9)
    for base in path.iterdir():
        sweep(base)
    left = sockets_in(path)
    shutil.rmtree(path)
    assert not survivors, f"p2pd outlived its test: {survivors}"
    assert not left, f"socket files left: {left}"


def daemons_in(path: Path) -> list[int]:
    """Process ids of the p2pd whose sockets are under `path`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"p2pd" in command and str(path).encode() in command:
                found.append(int(entry.name))
    return found


def sockets_in(path: Path) -> list[Path]:
    return list(path.rglob("*.sock"))


def ends(pid: int, limit_s: float) -> bool:
    """Wait for the end of a process that need not be our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], limit_s)[0])
    finally:
        os.close(descriptor)


@dataclass
class Recorder:
    """Handlers that take every offer unless told otherwise, and note what they heard."""

    answer: Callable[[Header], Header] = field(default=lambda header: {"accepted": True})
    heard: asyncio.Queue[tuple[Any, ...]] = field(default_factory=asyncio.Queue)

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return self.answer(header)

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        self.heard.put_nowait(("delivery", sender, header, payload))

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        self.heard.put_nowait(("broken", sender, header, reason))

    def on_message(self, sender: PeerId, header: Header) -> Header:
        return {"from": sender, **self.answer(header)}

    def on_watch_broken(self, peer: PeerId, reason: str) -> None:
        self.heard.put_nowait(("watch", peer, reason))

    async def next(self) -> tuple[Any, ...]:
        async with asyncio.timeout(DEADLINE_S):
            return await self.heard.get()


@dataclass
class LivePeer:
    daemon: Daemon
    rpc: Rpc
    handlers: Recorder

    @property
    def id(self) -> PeerId:
        return self.daemon.peer_id


StartPeer = Callable[..., Awaitable[LivePeer]]


@pytest.fixture
async def start_peer() -> AsyncIterator[StartPeer]:
    """Starts peers of one swarm in this process; the first one is the initial peer of the others."""
    peers: list[LivePeer] = []

    async def start(answer: Callable[[Header], Header] | None = None, limits: RpcOptions | None = None) -> LivePeer:
        initial = await peers[0].daemon.maddrs() if peers else ()
        daemon = await start_daemon(P2POptions.on_this_machine(*initial))
        handlers = Recorder() if answer is None else Recorder(answer)
        peer = LivePeer(daemon, Rpc(daemon, RUN, limits or RpcOptions(first_try_s=2.0)), handlers)
        peers.append(peer)
        await peer.rpc.start(handlers)
        return peer

    yield start
    for peer in peers:
        await peer.rpc.stop()
        await peer.daemon.stop()


@pytest.fixture
def peer_process(runtime_dir: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a peer in a process of its own that joins at the given address (none: alone); its first line is its peer id."""
    processes: list[subprocess.Popen[str]] = []

    def start(initial_peer: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.live.peer_process", initial_peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
