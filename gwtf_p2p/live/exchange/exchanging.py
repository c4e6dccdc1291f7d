"""Exchanges records, and the orders of a run's owner and admins, with other peers over the data plane.

Two small calls: `records` tells and asks what has changed, `records_of` asks for statements or orders. Everything that comes is
checked here: its shape by `protocol/exchange`, whose it is by its signature, and that it is of this run.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from random import Random

from hivemind.utils.timed_storage import get_dht_time

from gwtf_p2p.live.discovery.order_book import SignedOrder, read_order
from gwtf_p2p.live.discovery.signing import opened, sign
from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.live.rpc.api import CallFailed, DataPlane, Header
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.exchange import ASK, FETCH, LOG_BYTES, Exchange
from gwtf_p2p.protocol.exchange.own import OwnStatements
from gwtf_p2p.protocol.exchange.stated import STATED, Mark, decode_stated
from gwtf_p2p.protocol.exchange.table import Statement
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId
from gwtf_p2p.protocol.wire.bounds import MOST_ADMINS
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord, decode_stage

logger = logging.getLogger(__name__)

ANSWER_S = 5.0
MOST_AT_ONCE = 16
"""Calls under way."""

SECRET_BYTES = 16

Answered = Callable[[Header, float], object]
"""Handles an answer, which came at this DHT time. Raises RemoteProtocolError."""


class RecordExchange:
    """Of one peer in one run. `run` exchanges until cancelled; `on_news` hears that some record has changed in what others act
    on, `on_orders` the orders that another peer has."""

    def __init__(self, rpc: DataPlane, identity: Identity, run_id: RunId) -> None:
        self._rpc, self._identity, self._run_id = rpc, identity, run_id
        self._machine = Exchange(rpc.peer_id, os.urandom(LOG_BYTES), Random(os.urandom(8)), self._open)
        self._own = OwnStatements(lambda: os.urandom(SECRET_BYTES))
        self._orders: tuple[bytes, ...] = ()
        self._wake = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()
        self._told_news = 0
        self.on_news: Callable[[], None] = lambda: None
        self.on_orders: Callable[[list[SignedOrder]], None] = lambda orders: None
        rpc.add_service(ASK, self)
        rpc.add_service(FETCH, self)

    # ---- what this peer says

    def publish(self, record: StageRecord) -> None:
        """Tell the others of this peer's own record, as it is published now."""
        now, machine = get_dht_time(), self._machine
        try:
            told = self._own.next(record, len(machine.table), now)
        except ValueError as error:
            logger.warning("%s: it is told by the DHT alone", error)
            return
        if isinstance(told, Mark):
            machine.lives(told, now)
        elif told is not None:
            machine.state(Statement(sign(self._identity, STATED, told), told, record), now)
        self._wake.set()

    def order(self, orders: Sequence[SignedOrder]) -> None:
        """Those that count are these."""
        self._orders = tuple(order.signed for order in orders)
        self._machine.orders = blake2b(b"".join(self._orders), digest_size=16).digest() if orders else b""
        self._wake.set()

    # ---- what it knows

    def records(self) -> list[StageRecord]:
        """The newest of each peer that lives, as far as it was exchanged."""
        self._machine.table.drop_expired(get_dht_time())
        return self._machine.table.records(get_dht_time())

    def stated_times(self) -> int:
        """As long as it is the same, `records` differ by signs of life alone."""
        self._machine.table.drop_expired(get_dht_time())
        return self._machine.table.stated_times

    def is_alone(self) -> bool:
        """Nothing was exchanged lately."""
        return self._machine.is_alone(get_dht_time())

    def can_ask(self, records: Sequence[StageRecord]) -> None:
        """Of these, those that exchange."""
        able = [record for record in records if record.exchanges and record.state is not PeerState.ASKING]
        self._machine.partners.can_ask((r.peer for r in able), (r.peer for r in able if r.stage == DATA_STAGE))
        if self.is_alone():
            self._wake.set()

    # ---- asking

    async def run(self) -> None:
        """Exchange until cancelled."""
        machine = self._machine
        async with asyncio.TaskGroup() as calls:
            while True:
                self._wake.clear()
                now = get_dht_time()
                for peer in machine.due(now):
                    self._start(calls, peer, machine.ask(peer, now), partial(machine.heard, peer))
                for giver in machine.wanted.givers():
                    if len(self._calls) < MOST_AT_ONCE:
                        self._start(calls, giver, machine.fetch(giver), partial(self._brought, giver))
                for peer in machine.orders_of():
                    self._start(calls, peer, {"kind": FETCH, "orders": True}, partial(self._brought_orders, peer))
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, machine.next_at(now) - get_dht_time())):
                        await self._wake.wait()

    def _start(self, calls: asyncio.TaskGroup, peer: PeerId, question: Header, answered: Answered) -> None:
        task = calls.create_task(self._call(peer, question, answered))
        self._calls.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._wake.set()

    async def _call(self, peer: PeerId, question: Header, answered: Answered) -> None:
        """Ask, and have the answer handled. Whatever it is, and whatever comes of it, ends nothing but this call."""
        machine = self._machine
        try:
            answered(await self._rpc.call(peer, question, ANSWER_S), get_dht_time())
        except CallFailed as error:
            machine.failed(peer, get_dht_time())
            logger.debug("%s", error)
        except RemoteProtocolError as error:
            logger.debug("records of %s: %s", peer, error)
        except Exception:  # a stranger chose what was handled: it must not be able to choose that this peer ends
            machine.lied(peer, get_dht_time())
            logger.exception("what %s has answered of records was not handled", peer)

    def _brought(self, giver: PeerId, reply: Header, now: float) -> None:
        self._machine.brought(giver, reply, now)
        urgent = self._machine.table.urgent
        if urgent and urgent[-1].position > self._told_news:
            self._told_news = urgent[-1].position
            self.on_news()

    def _brought_orders(self, peer: PeerId, reply: Header, now: float) -> None:
        signed = reply.get("orders")
        try:
            if not isinstance(signed, list) or len(signed) > MOST_ADMINS + 1:
                raise RemoteProtocolError("records_of: orders: expected a short list")
            self.on_orders([read_order(each) for each in signed if isinstance(each, bytes)])
        except RemoteProtocolError:
            self._machine.lied(peer, now)
            raise

    def _open(self, data: bytes) -> Statement:
        """Raises RemoteProtocolError for what is no statement of this run, or not signed by the peer that it is about."""
        signer, body = opened(data, STATED)
        stated = decode_stated(body)
        record = decode_stage(stated.record)
        if record.peer != signer or record.run_id != self._run_id:
            raise RemoteProtocolError(f"statement: names {record.peer:.60} and run {record.run_id:.60}, signed by {signer}")
        return Statement(data, stated, record)

    # ---- answering: the data plane's side

    def on_message(self, sender: PeerId, header: Header) -> Header:
        now, machine = get_dht_time(), self._machine
        if header.get("kind") == FETCH:
            if header.get("orders") is True:
                machine.giving.count_call(sender, now)
                return {"orders": list(self._orders)}
            return machine.giving.fetched_by(sender, header, now)
        reply = machine.asked(sender, header, now)
        self._wake.set()
        return reply

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": False}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        """Nothing is ever accepted."""

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """Nothing is ever accepted."""
