"""With whom one peer exchanges records, when, and what they tell each other.

In each round a peer asks one of a few *partners*, in turn: it tells what has changed here since it told that one last, and
hears what has changed there. Both are marks (`stated`); statements that one lacks it then fetches from whoever told of them.
News is told at once: to the partners, and to those who have asked lately. Data peers plan by records, and are to plan alike: a
peer tells them of each of its own statements at once.

Partners are drawn among those whose records say that they exchange, and one of them is replaced now and then. A partner that
withholds what it knows is one of several; one that does not answer is not asked for a while, and one that says what nobody has
signed is not heard either. A stranger is heard of itself alone. Whoever asks more often than any honest peer is told so, and
gets no more than its share.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from random import Random
from typing import Any

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.alive import MOST_SIGNS
from gwtf_p2p.protocol.exchange.giving import Giving
from gwtf_p2p.protocol.exchange.pace import ALONE_S, round_s
from gwtf_p2p.protocol.exchange.partners import PARTNERS, Partners
from gwtf_p2p.protocol.exchange.stated import MOST_MARKS, Mark, pack_marks, short, unpack_marks
from gwtf_p2p.protocol.exchange.table import RecordTable, Statement, Urgent
from gwtf_p2p.protocol.exchange.wanted import MOST_FETCHED, Wanted
from gwtf_p2p.protocol.ids import PeerId

Header = dict[str, Any]
Opener = Callable[[bytes], Statement]
"""Reads a statement as it travels, and checks whose it is. Raises RemoteProtocolError."""

ASK, FETCH = "records", "records_of"
AGAIN_S = 0.2
"""Between two times that one peer is told news."""

LOOK_AGAIN_S = 5.0
"""Whom to ask is looked at so often at least; answers and news wake before."""

ASKED_LATELY_S = 60.0
MOST_TOLD_AT_ONCE = 8
MOST_KNOWN = 256
LOG_BYTES = 8
_WHOLE = 1 << 62


@dataclass(slots=True)
class _Other:
    """What is known of exchanging with another peer: up to where its count (`log`) is known here, and ours there."""

    log: bytes = b""
    since: int = 0
    told: int = 0
    asked_at: float = -1e9
    asks_at: float = -1e9
    under_way: bool = False


class Exchange:
    """Of one peer; `log` names its count, which begins anew when it starts again. Times are DHT time."""

    def __init__(self, me: PeerId, log: bytes, rng: Random, opener: Opener) -> None:
        self.me, self.table, self.wanted = me, RecordTable(), Wanted()
        self.partners, self.giving = Partners(me, rng), Giving(self.table)
        self.orders = b""
        self._others_orders: set[PeerId] = set()
        self._log, self._rng, self._open = log, rng, opener
        self._others: OrderedDict[PeerId, _Other] = OrderedDict()
        self._round_at, self._stated = 0.0, 0
        self._planners: Sequence[PeerId] = ()
        self._heard_at = -1e9

    # ---- whom to ask

    def is_alone(self, now: float) -> bool:
        """It has exchanged nothing for so long that it had better ask the DHT."""
        return now - self._heard_at > max(ALONE_S, 3 * round_s(len(self.table)))

    def due(self, now: float) -> list[PeerId]:
        """Whom to ask now (`ask`, and then `heard` or `failed`)."""
        self.partners.draw(now)
        others = ((peer, self._other(peer)) for peer in self._to_tell(now))
        due = [peer for peer, other in others if not other.under_way and now - other.asked_at >= AGAIN_S]
        free = [peer for peer in self.partners.chosen if not self._other(peer).under_way]
        if now >= self._round_at and free:
            self._round_at = now + round_s(len(self.table)) * self._rng.uniform(0.8, 1.2)
            self.partners.round_begins()
            due.append(min(free, key=lambda peer: (self._other(peer).asked_at, peer)))
        return list(dict.fromkeys(due))

    def next_at(self, now: float) -> float:
        """When to look again, if nothing comes before."""
        waits = [LOOK_AGAIN_S]
        if any(not self._other(peer).under_way for peer in self.partners.chosen):
            waits.append(max(AGAIN_S / 4, self._round_at - now))
        if any(not self._other(peer).under_way for peer in self._to_tell(now)):
            waits.append(AGAIN_S)
        return now + min(waits)

    def _to_tell(self, now: float) -> list[PeerId]:
        """Who has not been told some news that this peer has, or, if it plans, this peer's own statement."""
        urgent, found = self.table.urgent, list[PeerId]()
        if urgent:
            askers = (peer for peer, other in reversed(self._others.items()) if now - other.asks_at < ASKED_LATELY_S)
            near = dict.fromkeys([*self.partners.chosen, *islice(askers, PARTNERS)])
            found = [peer for peer in near if self._lacks(peer, urgent)]
        planners = [peer for peer in self._planners if self._told(peer) < self._stated]
        return [peer for peer in dict.fromkeys([*found, *planners]) if not self.partners.is_left_out(peer, now)]

    def _lacks(self, peer: PeerId, urgent: Sequence[Urgent]) -> bool:
        """`urgent`: the newest last."""
        news = takewhile(lambda each: each.position > self._told(peer), reversed(urgent))
        return any(peer not in (each.giver, each.owner) for each in news)

    def _told(self, peer: PeerId) -> int:
        return self._others[peer].told if peer in self._others else 0

    # ---- asking

    def ask(self, peer: PeerId, now: float) -> Header:
        other = self._other(peer)
        other.under_way, other.asked_at = True, now
        marks, upto = self.table.marks_since(other.told, peer, MOST_MARKS)
        other.told = upto
        known = {"of": other.log, "since": other.since}
        return {"kind": ASK, "log": self._log, **known, "marks": pack_marks(marks), "orders": self.orders}

    def heard(self, peer: PeerId, reply: Header, now: float) -> None:
        """Its answer. Raises RemoteProtocolError for what is none, and leaves the peer out for a while."""
        other = self._other(peer)
        other.under_way = False
        try:
            log, upto = _bytes_of(reply, "log", LOG_BYTES), _whole(reply, "to")
            if other.log and other.log != log:
                other.told = 0  # it has started again, and knows nothing of what it was told
            other.log, other.since = log, upto
            self._hear_marks(peer, unpack_marks(reply.get("marks")), now)
            if _has_other_orders(reply, self.orders):
                self._others_orders.add(peer)
        except RemoteProtocolError:
            self.lied(peer, now)
            raise
        self._heard_at = now

    def failed(self, peer: PeerId, now: float) -> None:
        """No answer: what it was told, it may not know."""
        other = self._other(peer)
        other.under_way, other.told = False, 0
        self.wanted.failed(peer)
        self.partners.did_not_answer(peer, now)

    def lied(self, peer: PeerId, now: float) -> None:
        """Its answer was none, or what nobody has signed."""
        self.failed(peer, now)
        self.partners.shun(peer, now)

    def orders_of(self) -> list[PeerId]:
        """Who has other orders than this peer, and is to be asked for them now; said once."""
        found, self._others_orders = sorted(self._others_orders), set()
        return found[:PARTNERS]

    # ---- answering

    def asked(self, sender: PeerId, header: Header, now: float) -> Header:
        """The reply to one that asks. Raises RemoteProtocolError for what is no question, or one too many."""
        self.giving.count_call(sender, now)
        self.partners.asks(sender)
        log, of = _bytes_of(header, "log", LOG_BYTES), _bytes_of(header, "of", LOG_BYTES)
        since, marks = _whole(header, "since"), unpack_marks(header.get("marks"))
        other = self._other(sender)
        if other.log != log:
            other.log, other.since = log, 0
        other.asks_at = now
        since = since if of == self._log else 0
        told, upto = self.table.marks_since(since, sender, MOST_MARKS)
        self._hear_marks(sender, marks, now)
        if _has_other_orders(header, self.orders):
            self._others_orders.add(sender)
        other.told = upto  # as far as the reply arrives: the next question says how far it did
        return {"log": self._log, "to": upto, "marks": pack_marks(told), "orders": self.orders}

    # ---- what comes of it

    def fetch(self, giver: PeerId) -> Header:
        """The next question for statements that are wanted of this one (`wanted.givers`)."""
        return {"kind": FETCH, "owners": b"".join(self.wanted.begin(giver))}

    def brought(self, giver: PeerId, reply: Header, now: float) -> bool:
        """What was fetched; whether any of it is new. Raises RemoteProtocolError for what no owner has signed, and leaves its
        giver out for a while."""
        items = reply.get("records")
        try:
            if not isinstance(items, list) or len(items) > MOST_FETCHED:
                raise RemoteProtocolError(f"records_of: expected a list of at most {MOST_FETCHED}")
            statements = [_statement(item) for item in items]
            changed = [self._bring(self._open(signed), life, giver, now) for signed, life in statements]
        except RemoteProtocolError:
            self.lied(giver, now)
            raise
        if changed:
            self.wanted.brought(giver)
        else:
            self.wanted.failed(giver)
        return any(changed)

    def state(self, statement: Statement, now: float) -> None:
        """This peer's own."""
        if self.table.take(statement, self.me, now):
            self._stated, self._planners = self.table.position, self.partners.data_peers(MOST_TOLD_AT_ONCE)

    def lives(self, mark: Mark, now: float) -> None:
        """This peer's own sign of life."""
        self.table.lives(mark, self.me, now)

    def _bring(self, statement: Statement, life: tuple[int, bytes], giver: PeerId, now: float) -> bool:
        record = statement.record
        self.wanted.came(short(record.peer), record.sequence_number)
        # What it has stated in a life before, this peer knows better.
        return record.peer != self.me and self.table.take(statement, giver, now, life)

    def _hear_marks(self, giver: PeerId, marks: Iterable[Mark], now: float) -> None:
        if self.partners.is_shunned(giver, now):
            return
        mine, itself, room = short(self.me), short(giver), self.wanted.room(giver)
        is_known = self.partners.knows(giver) or self.table.get(itself) is not None
        for mark in marks:
            held = self.table.get(mark.owner)
            if mark.owner == mine:
                continue
            if held is not None and held.sequence_number >= mark.sequence_number:
                self.table.lives(mark, giver, now)
            elif room > 0 and (is_known or mark.owner == itself):
                self.wanted.want(mark, giver)
                room -= 1

    def _other(self, peer: PeerId) -> _Other:
        other = self._others.pop(peer, None) or _Other()
        self._others[peer] = other
        if len(self._others) > MOST_KNOWN:
            del self._others[next(iter(self._others))]
        return other


def _has_other_orders(header: Header, mine: bytes) -> bool:
    digest = header.get("orders", b"")
    return isinstance(digest, bytes) and digest != b"" and digest != mine


def _statement(item: object) -> tuple[bytes, tuple[int, bytes]]:
    """Raises RemoteProtocolError."""
    if isinstance(item, list) and len(item) == 3:
        signed, index, sign = item
        if isinstance(signed, bytes) and type(index) is int and 0 <= index <= MOST_SIGNS and isinstance(sign, bytes):
            return signed, (index, sign)
    raise RemoteProtocolError("records_of: expected a statement and its newest sign of life")


def _bytes_of(header: Header, name: str, length: int) -> bytes:
    value = header.get(name)
    if not isinstance(value, bytes) or len(value) > length:
        raise RemoteProtocolError(f"records: {name}: expected at most {length} bytes")
    return value


def _whole(header: Header, name: str) -> int:
    value = header.get(name)
    if type(value) is not int or not 0 <= value < _WHOLE:
        raise RemoteProtocolError(f"records: {name}: expected a whole number")
    return value
