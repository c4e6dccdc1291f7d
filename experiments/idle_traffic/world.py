"""Peers that exchange records by `protocol/exchange`, in virtual time: who knows what, when, and for how many bytes.

Calls take a drawn delay each way and are lost to peers that have ended. Statements are signed by nobody: their bytes are a
number, filled up to the size that they have on the wire. `CALL_BYTES` is what a call and its answer cost besides their headers:
frames, multiplexing, TLS and TCP/IP of two packets and their acknowledgements.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

import msgpack

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.exchange import LOG_BYTES, Exchange, Header
from gwtf_p2p.protocol.exchange.own import OwnStatements
from gwtf_p2p.protocol.exchange.pace import RECORD_PERIOD_S
from gwtf_p2p.protocol.exchange.stated import Mark
from gwtf_p2p.protocol.exchange.table import Statement
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.wire.records import StageRecord

CALL_BYTES = 4 * 52 + 2 * 60
STATEMENT_BYTES = 1600
VIEW_S, FEW = 1.0, 64
"""Between two times that a peer looks who is there; of more than these it looks more rarely, as it takes longer."""

BEGAN_S = 1000.0
"""When the world begins: of DHT time, which is never 0."""


@dataclass
class Member:
    """One peer. `knows_first`: records that it has from the DHT when it begins; `lost`: whether it has ended."""

    record: StageRecord
    exchange: Exchange
    own: OwnStatements
    knows_first: list[StageRecord] = field(default_factory=list)
    lost: bool = False
    statement: Statement | None = None
    looks_at: float = 0.0
    views_at: float = 0.0

    def records(self, now: float) -> dict[PeerId, StageRecord]:
        """What it knows of all that live, itself among them."""
        known = {record.peer: record for record in self.exchange.table.records(now)}
        return {**{record.peer: record for record in self.knows_first if record.peer not in known}, **known}

    def seen(self, now: float) -> list[StageRecord]:
        """The same, as it was stated."""
        known = self.exchange.table.stated(now)
        if not self.knows_first:
            return known
        peers = {record.peer for record in known}
        return [*known, *(record for record in self.knows_first if record.peer not in peers)]


class ExchangeWorld:
    """`delay_s`: least and most, one way. `sent_bytes` of each peer: of its questions and its answers."""

    def __init__(self, seed: int, delay_s: tuple[float, float] = (0.01, 0.1)) -> None:
        self.now = BEGAN_S
        self.members: dict[PeerId, Member] = {}
        self.sent_bytes: Counter[PeerId] = Counter()
        self.refused = 0
        self._rng, self._delay_s = Random(seed), delay_s
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._statements: dict[bytes, Statement] = {}

    def add(self, record: StageRecord, knows: list[StageRecord], *, looks: bool = True) -> Member:
        """A peer begins, which has read these records, and publishes its own from now on; unless it `looks`, it asks nobody
        until it is made to (`look`)."""
        rng = Random(self._rng.random())
        exchange = Exchange(record.peer, rng.randbytes(LOG_BYTES), rng, self._open)
        member = Member(replace(record, exchanges=True), exchange, OwnStatements(lambda: rng.randbytes(16)), knows)
        self.members[record.peer] = member
        member.lost = not looks
        self.publish(member)
        member.lost = False
        self._repeat(member)
        return member

    def publish(self, member: Member, **changes: object) -> None:
        """Its record has changed in this."""
        record = member.record
        member.record = replace(record, sequence_number=record.sequence_number + 1, **changes)  # type: ignore[arg-type]
        told = member.own.next(member.record, len(member.exchange.table), self.now)
        if isinstance(told, Mark):
            member.exchange.lives(told, self.now)
        elif told is not None:
            signed = next(self._numbers).to_bytes(8).ljust(STATEMENT_BYTES, b"\0")
            self._statements[signed] = Statement(signed, told, member.record)
            member.statement = self._statements[signed]
            member.exchange.state(member.statement, self.now)
        self.look(member)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, _, what = heapq.heappop(self._due)
            what()
        self.now = until

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        """So long from now."""
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), what))

    def _open(self, data: bytes) -> Statement:
        return self._statements[data]

    def _repeat(self, member: Member) -> None:
        def again() -> None:
            if not member.lost:
                self.publish(member)
                self.at(RECORD_PERIOD_S, again)

        self.at(RECORD_PERIOD_S * self._rng.random(), again)

    def look(self, member: Member) -> None:
        """What it is to do now."""
        if member.lost:
            return
        exchange = member.exchange
        if self.now >= member.views_at:
            member.views_at = self.now + VIEW_S * max(1.0, len(self.members) / FEW)
            exchange.table.drop_expired(self.now)
            exchanging = [record for record in member.seen(self.now) if record.exchanges]
            exchange.partners.can_ask((r.peer for r in exchanging), (r.peer for r in exchanging if r.stage == DATA_STAGE))
        for peer in exchange.due(self.now):
            question = exchange.ask(peer, self.now)
            self._call(member, peer, question, lambda reply, peer=peer: exchange.heard(peer, reply, self.now))
        for giver in exchange.wanted.givers():
            question = exchange.fetch(giver)
            self._call(member, giver, question, lambda reply, giver=giver: exchange.brought(giver, reply, self.now))
        next_at = exchange.next_at(self.now)
        if not self.now < member.looks_at <= next_at:
            member.looks_at = next_at
            self.at(next_at - self.now, lambda: self.look(member) if member.looks_at == next_at else None)

    def _call(self, asker: Member, to: PeerId, question: Header, heard: Callable[[Header], object]) -> None:
        self.sent_bytes[asker.record.peer] += len(msgpack.packb(question)) + CALL_BYTES // 2

        def arrives() -> None:
            other = self.members.get(to)
            if other is None or other.lost:
                self.at(self._delay(), lambda: self._failed(asker, to))
                return
            answers = other.exchange.giving.fetched_by if "owners" in question else other.exchange.asked
            try:
                reply = answers(asker.record.peer, question, self.now)
            except RemoteProtocolError:
                self.refused += 1
                self.at(self._delay(), lambda: self._failed(asker, to))
                return
            self.sent_bytes[to] += len(msgpack.packb(reply)) + CALL_BYTES // 2
            self.look(other)
            self.at(self._delay(), lambda: self._heard(asker, heard, reply))

        self.at(self._delay(), arrives)

    def _heard(self, asker: Member, heard: Callable[[Header], object], reply: Header) -> None:
        if not asker.lost:
            heard(reply)
            self.look(asker)

    def _failed(self, asker: Member, to: PeerId) -> None:
        if not asker.lost:
            asker.exchange.failed(to, self.now)
            self.look(asker)

    def _delay(self) -> float:
        return self._rng.uniform(*self._delay_s)
