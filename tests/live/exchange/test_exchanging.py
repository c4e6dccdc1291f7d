"""Records and orders go from peer to peer over real streams; what their owners have not signed is not believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from gwtf_p2p.live.discovery.order_book import SignedOrder, give
from gwtf_p2p.live.discovery.signing import sign
from gwtf_p2p.live.exchange.exchanging import RecordExchange
from gwtf_p2p.live.libp2p.daemon import Daemon, start_daemon
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.rpc.rpc import Header, Rpc
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.stated import STATED, Stated
from gwtf_p2p.protocol.ids import RunId, Stage
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord, encode
from gwtf_p2p.protocol.wire.signed import Order
from tests.live.conftest import DEADLINE_S, RUN, Recorder

pytestmark = pytest.mark.live


@dataclass
class Here:
    daemon: Daemon
    identity: Identity
    rpc: Rpc
    exchange: RecordExchange
    record: StageRecord
    orders: list[SignedOrder] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    running: asyncio.Task[None] | None = None

    def hear(self, orders: list[SignedOrder]) -> None:
        self.orders += orders
        self.heard.set()

    async def until(self, what: Callable[[], bool]) -> None:
        """It has heard something by which this is so."""
        async with asyncio.timeout(DEADLINE_S):
            while not what():
                await self.heard.wait()
                self.heard.clear()


StartHere = Callable[[], Awaitable[Here]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[StartHere]:
    here: list[Here] = []

    async def start_one() -> Here:
        initial = parse_initial_peers(await here[0].daemon.maddrs(), {}) if here else ()
        identity = create_identity(tmp_path / f"{len(here)}.key")
        daemon = await start_daemon(P2POptions(initial, auto_nat=False, nat_port_map=False, check_identity=False), identity)
        rpc = Rpc(daemon, RUN)
        exchange = RecordExchange(rpc, identity, RUN)
        record = StageRecord(identity.peer_id, RUN, Stage(1), PeerState.ONLINE, 4, sequence_number=1, exchanges=True)
        here.append(Here(daemon, identity, rpc, exchange, record))
        exchange.on_orders, exchange.on_news = here[-1].hear, here[-1].heard.set
        await rpc.start(Recorder())
        here[-1].running = asyncio.ensure_future(exchange.run())
        return here[-1]

    yield start_one
    for each in here:
        if each.running is not None:
            each.running.cancel()
        await each.rpc.stop()
        await each.daemon.stop()


async def test_records_reach_those_that_no_one_has_told_of_them(start: StartHere) -> None:
    """Both ends know only the one in the middle."""
    a, middle, b = await start(), await start(), await start()
    for each in (a, middle, b):
        each.exchange.publish(each.record)
    a.exchange.can_ask([middle.record])
    b.exchange.can_ask([middle.record])
    everybody = sorted([a.record, middle.record, b.record], key=lambda record: record.peer)
    for each in (a, middle, b):
        await each.until(lambda each=each: sorted(each.exchange.records(), key=lambda record: record.peer) == everybody)  # type: ignore[misc]
    a.exchange.publish(replace(a.record, sequence_number=2, capacity=7))
    await b.until(lambda: a.record.peer in {record.peer for record in b.exchange.records() if record.capacity == 7})


async def test_orders_reach_those_that_have_others(start: StartHere) -> None:
    a, b = await start(), await start()
    order = give(a.identity, Order(RUN, a.identity.peer_id, 1))
    a.exchange.order([order])
    b.exchange.can_ask([a.record])
    await b.until(lambda: bool(b.orders))
    assert b.orders[0] == order


async def test_a_statement_counts_if_the_peer_has_signed_it_that_it_is_about_and_it_is_of_this_run(start: StartHere) -> None:
    a, b = await start(), await start()
    of_a, of_another_run = encode(a.record), encode(replace(b.record, run_id=RunId("other")))
    for record in (of_a, of_another_run, b"no record"):
        with pytest.raises(RemoteProtocolError):
            a.exchange._open(sign(b.identity, STATED, Stated(record, 2e9, 10.0, bytes(16))))
    signed = sign(b.identity, STATED, Stated(encode(b.record), 2e9, 10.0, bytes(16)))
    assert a.exchange._open(signed).record == b.record
    with pytest.raises(RemoteProtocolError):
        a.exchange._open(sign(b.identity, "another kind", Stated(encode(b.record), 2e9, 10.0, bytes(16))))


async def test_a_liar_is_not_believed_and_the_truth_comes_from_another(
    start: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hands on records with another peer's signature under them."""
    a, liar, honest, b = await start(), await start(), await start(), await start()
    a.exchange.publish(a.record)
    for each in (liar, honest):
        each.exchange.can_ask([a.record])
        await each.until(lambda each=each: bool(each.exchange.records()))  # type: ignore[misc]
    forged = sign(liar.identity, STATED, Stated(encode(replace(a.record, capacity=99)), 2e9, 10.0, bytes(16)))
    lied = asyncio.Event()

    def lie(*_: object) -> Header:
        lied.set()
        return {"records": [[forged, 0, bytes(16)]]}

    monkeypatch.setattr(liar.exchange._machine.giving, "fetched_by", lie)
    b.exchange.can_ask([liar.record])
    async with asyncio.timeout(DEADLINE_S):
        await lied.wait()
    b.exchange.can_ask([liar.record, honest.record])
    await b.until(lambda: a.record in b.exchange.records())
