"""Emulated links at the edge of real peers: order of what happens, latencies, and what a push says of its link."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from gwtf_p2p.ab.live.wire import Wire
from gwtf_p2p.live.emulation.emulation import EmulatedRpc, Emulation
from gwtf_p2p.live.emulation.wire_client import WireClient, connect_wire
from gwtf_p2p.live.rpc.rpc import FailureKind, PushFailed
from gwtf_p2p.simulation.lines.links import LinkSpec
from tests.live.conftest import DEADLINE_S, LivePeer, StartPeer, runtime_dir, start_peer
from tests.live.direct.conftest import StartDirect, start_direct

__all__ = ["runtime_dir", "start_direct", "start_peer"]
pytestmark = pytest.mark.live

LATENCY_S, LINE = 0.1, 1_000_000.0
PAYLOAD = bytes(50_000)


@pytest.fixture
def wire() -> Iterator[Wire]:
    folder = tempfile.mkdtemp(prefix="gwtf-w", dir="/tmp")
    running = Wire(Path(folder) / "w.sock", lambda a, b: LinkSpec(LATENCY_S, LINE), {})
    running.start()
    yield running
    running.stop()
    (Path(folder) / "w.sock").unlink(missing_ok=True)
    Path(folder).rmdir()


Connect = Callable[[LivePeer, LivePeer], Awaitable[EmulatedRpc]]


@pytest.fixture
async def emulated(wire: Wire) -> AsyncIterator[Connect]:
    """The sender's end of an emulated link to the receiver."""
    clients: list[WireClient] = []

    async def connect(sender: LivePeer, receiver: LivePeer) -> EmulatedRpc:
        latency = {(sender.id, receiver.id): LATENCY_S, (receiver.id, sender.id): LATENCY_S}
        emulation = Emulation(wire.socket, latency_s=latency, bytes_factor={"microbatch": 4.0})
        clients.append(await connect_wire(wire.socket, sender.id, links=True))
        return EmulatedRpc(sender.rpc, emulation, clients[-1])

    yield connect
    for client in clients:
        await client.close()


async def test_a_push_measures_the_emulated_link(emulated: Connect, start_peer: StartPeer) -> None:
    sender, receiver = await start_peer(), await start_peer()
    rpc = await emulated(sender, receiver)
    result = await rpc.push(receiver.id, {"kind": "Forward"}, PAYLOAD, DEADLINE_S)
    assert result.accepted and result.sent_bytes == len(PAYLOAD)
    assert result.round_trip_s >= 2 * LATENCY_S
    charged = 4 * len(PAYLOAD)
    assert result.transfer_s >= 0.9 * charged / LINE
    assert result.seconds >= 0.98 * (2 * LATENCY_S + charged / LINE)
    assert (await receiver.handlers.next())[0] == "delivery"


async def test_a_direct_stream_takes_the_time_of_the_emulated_line(emulated: Connect, start_direct: StartDirect) -> None:
    """What passes by p2pd passes by no line: the end of a payload waits for the wire on any stream."""
    sender, receiver = await start_direct(), await start_direct()
    await sender.opened(receiver)
    rpc, before = await emulated(sender, receiver), sender.rpc.meter.direct_bytes
    result = await rpc.push(receiver.id, {"kind": "Forward"}, PAYLOAD, DEADLINE_S)
    assert sender.rpc.meter.direct_bytes - before == len(PAYLOAD)
    assert result.transfer_s >= 0.9 * 4 * len(PAYLOAD) / LINE
    assert result.seconds >= 0.98 * (2 * LATENCY_S + 4 * len(PAYLOAD) / LINE)


async def test_a_refused_push_frees_the_line_and_sends_nothing(emulated: Connect, start_peer: StartPeer) -> None:
    sender = await start_peer()
    receiver = await start_peer(lambda header: {"accepted": False})
    rpc = await emulated(sender, receiver)
    result = await rpc.push(receiver.id, {"kind": "Forward"}, bytes(100_000_000), DEADLINE_S)
    assert not result.accepted and result.sent_bytes == 0


async def test_a_call_takes_a_latency_each_way(emulated: Connect, start_peer: StartPeer) -> None:
    sender, receiver = await start_peer(), await start_peer()
    rpc, loop = await emulated(sender, receiver), asyncio.get_running_loop()
    began = loop.time()
    reply = await rpc.call(receiver.id, {"kind": "Check"}, DEADLINE_S)
    assert reply["from"] == sender.id and loop.time() - began >= 2 * LATENCY_S


async def test_a_receiver_that_dies_while_bytes_are_under_way_is_noticed(emulated: Connect, start_peer: StartPeer) -> None:
    sender, receiver = await start_peer(), await start_peer()
    rpc = await emulated(sender, receiver)
    pushing = asyncio.ensure_future(rpc.push(receiver.id, {"kind": "Forward"}, bytes(50_000_000), 2 * DEADLINE_S))
    offered = asyncio.get_running_loop().create_future()
    receiver.handlers.answer = lambda header: offered.set_result(None) or {"accepted": True}
    async with asyncio.timeout(DEADLINE_S):
        await offered
        await receiver.rpc.stop()
        with pytest.raises(PushFailed) as failed:
            await pushing
    assert failed.value.kind is FailureKind.BROKEN
