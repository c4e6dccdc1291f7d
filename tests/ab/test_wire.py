"""What the wire imposes, measured: bytes over time against the line rates, and the sharing against the simulator's."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwtf_p2p.ab.live.wire import Wire
from gwtf_p2p.live.emulation.wire_client import Load, Stretch, WireClient, connect_wire
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import Links, LinkSpec

A, B, C, HUB = (PeerId(name) for name in ("a", "b", "c", "hub"))
FAST = LinkSpec(0.0, 1e9)
LINE = 1_000_000.0
LEAST_S = 0.2
"""What the passages take at least: emulated, so no busy machine makes it shorter. How much longer is
`experiments.bench.wire`."""


@pytest.fixture
def wire() -> Iterator[Wire]:
    folder = tempfile.mkdtemp(prefix="gwtf-w", dir="/tmp")
    running = Wire(Path(folder) / "w.sock", lambda a, b: FAST, {A: LINE, B: LINE, HUB: LINE})
    running.start()
    yield running
    running.stop()
    (Path(folder) / "w.sock").unlink(missing_ok=True)
    Path(folder).rmdir()


async def passage_s(client: WireClient, load: Load) -> float:
    """Seconds from the begin until the last byte has left."""
    loop = asyncio.get_running_loop()
    passage, began = client.passage(load), loop.time()
    passage.begin()
    await passage.sent()
    return loop.time() - began


async def test_a_passage_takes_no_less_than_its_line_allows(wire: Wire) -> None:
    client = await connect_wire(wire.socket, A, links=True)
    assert await passage_s(client, Load(B, int(LINE * LEAST_S), "forward", "0/0")) >= 0.98 * LEAST_S
    await client.close()
    assert wire.bytes_by_path[A, B, "forward"] == LINE * LEAST_S


async def test_concurrent_passages_share_a_line_as_the_simulator_says(wire: Wire) -> None:
    """Two go up A's line, and one of them meets a third on B's line downwards."""
    size = int(LINE * LEAST_S / 2)
    loads = [(A, Load(B, size, "forward", "0/0")), (A, Load(C, size, "forward", "0/1")), (C, Load(B, size, "forward", "0/2"))]
    kernel, ended = Kernel(), list[float]()
    links = Links(kernel, lambda a, b: FAST, {A: LINE, B: LINE})
    for sender, load in loads:
        links.start(sender, load.to, load.size, lambda: ended.append(kernel.now))
    kernel.run(lambda: len(ended) == len(loads), 10.0)
    clients = {peer: await connect_wire(wire.socket, peer, links=True) for peer in (A, C)}
    took = await asyncio.gather(*(passage_s(clients[sender], load) for sender, load in loads))
    for client in clients.values():
        await client.close()
    assert sorted(ended)[-1] == pytest.approx(LEAST_S, rel=1e-6)
    assert all(real >= 0.9 * simulated for real, simulated in zip(sorted(took), sorted(ended), strict=True))


async def test_a_passage_through_a_hub_crosses_its_line_twice(wire: Wire) -> None:
    client = await connect_wire(wire.socket, C, links=True)
    size = int(LINE * LEAST_S / 2)
    assert await passage_s(client, Load(PeerId("d"), size, "forward", "0/0", HUB)) >= 0.98 * LEAST_S
    await client.close()
    assert wire.bytes_by_path[C, HUB, "forward"] == wire.bytes_by_path[HUB, PeerId("d"), "forward"] == size


async def test_who_gives_up_frees_the_line(wire: Wire) -> None:
    client = await connect_wire(wire.socket, A, links=True)
    endless = client.passage(Load(B, int(LINE * 1000), "forward", "0/0"))
    endless.begin()
    endless.end()
    async with asyncio.timeout(60):
        await passage_s(client, Load(B, 1000, "forward", "0/1"))
    await client.close()


async def test_a_peer_that_is_gone_frees_its_lines(wire: Wire) -> None:
    gone, client = [await connect_wire(wire.socket, peer, links=True) for peer in (A, C)]
    gone.passage(Load(B, int(LINE * 1000), "forward", "0/0")).begin()
    await gone.close()
    async with asyncio.timeout(60):
        await passage_s(client, Load(B, 1000, "forward", "0/1"))
    await client.close()


async def test_a_computation_lasts_as_long_as_the_device_would_need(wire: Wire) -> None:
    client = await connect_wire(wire.socket, A, links=True)
    client.note({"op": "online"})
    device = Stretch({Work.FORWARD: LEAST_S}, client)
    microbatch = MicrobatchId(A, 0, 0)
    await asyncio.to_thread(lambda: device.end(Work.FORWARD, microbatch, device.begin(Work.FORWARD, microbatch), True))
    await passage_s(client, Load(B, 1, "forward", "0/0"))  # what was said before it has been heard
    await client.close()
    usage = wire.usage[A]
    assert usage.device_s >= 0.98 * LEAST_S and usage.computations == 1 and not usage.late
    assert usage.cpu_s < LEAST_S / 2, "waiting must not burn the core"
