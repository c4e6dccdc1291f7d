"""The statements that one peer holds, the newest of each owner, in the order in which it came to know of them.

What has changed since a moment is the end of that order. Statements end when neither their owner nor its signs of life are
heard of any more. What is urgent (`news`) is remembered apart: it is told at once, of each owner only so often.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, replace

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.alive import MOST_SIGNS, follows
from gwtf_p2p.protocol.exchange.news import news_of
from gwtf_p2p.protocol.exchange.stated import Mark, Stated, short
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import StageRecord

MOST_OWNERS = 4096
MOST_LIFETIME_S = 3600.0
"""Nothing is held that says of itself that it holds longer."""

URGENT_AGAIN_S = 0.25
"""Between two urgent changes of one owner; what comes sooner is told in the next round."""

_MOST_URGENT = 64


@dataclass(frozen=True, slots=True)
class Statement:
    """What its owner has signed (`signed`: the bytes that travel), and what is in it."""

    signed: bytes
    stated: Stated
    record: StageRecord


@dataclass(slots=True)
class Held:
    """`position`: when this peer came to know of it, in its own count; `giver`: of whom."""

    statement: Statement
    index: int
    sign: bytes
    position: int
    giver: PeerId
    urgent_at: float
    _record: StageRecord | None = None
    _mark: Mark | None = None

    @property
    def sequence_number(self) -> int:
        """Of the statement, without its signs of life."""
        return self.statement.record.sequence_number

    @property
    def expires_at(self) -> float:
        stated = self.statement.stated
        return stated.expires_at + self.index * stated.step_s

    @property
    def mark(self) -> Mark:
        """Told to many: made once, like the record."""
        if self._mark is None:
            self._mark = Mark(short(self.statement.record.peer), self.sequence_number, self.index, self.sign)
        return self._mark

    def goes_on(self, mark: Mark, giver: PeerId, position: int) -> None:
        """By a newer sign of life."""
        self.index, self.sign, self.giver, self.position = mark.index, mark.sign, giver, position
        self._record = self._mark = None

    @property
    def record(self) -> StageRecord:
        """As its owner has published it last; the same one until it lives on, since all are asked for at each news."""
        record = self.statement.record
        if self._record is None:
            self._record = record if not self.index else replace(record, sequence_number=record.sequence_number + self.index)
        return self._record


@dataclass(frozen=True, slots=True)
class Urgent:
    """A change that is to be told at once to everybody but `giver`."""

    position: int
    owner: PeerId
    giver: PeerId


class RecordTable:
    """Of one peer. Times are DHT time: the same for all peers, as far as their clocks are right. `stated_times`: how often a
    statement has come or gone, which signs of life do not."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, Held] = OrderedDict()
        self._bytes = 0
        self.position = self.stated_times = 0
        self.urgent: deque[Urgent] = deque(maxlen=_MOST_URGENT)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def signed_bytes(self) -> int:
        """Of all statements."""
        return self._bytes

    def get(self, owner: bytes) -> Held | None:
        return self._held.get(owner)

    def records(self, now: float) -> list[StageRecord]:
        """Of all owners that live."""
        return [held.record for held in self._held.values() if held.expires_at > now]

    def stated(self, now: float) -> list[StageRecord]:
        """The same as they were stated, without the signs of life since: enough for who is there, and quicker."""
        return [held.statement.record for held in self._held.values() if held.expires_at > now]

    def take(self, statement: Statement, giver: PeerId, now: float, life: tuple[int, bytes] | None = None) -> bool:
        """Hold it, with its newest sign of `life`, if it is newer than what is held of its owner; whether it is. Raises
        RemoteProtocolError for one that is to hold longer than anything may, or a sign that is not its owner's."""
        record, stated = statement.record, statement.stated
        index, sign = life or (0, stated.anchor)
        if index and not follows(sign, stated.anchor, index):
            raise RemoteProtocolError("statement: a sign of life is not its owner's")
        owner = short(record.peer)
        held = self._held.get(owner)
        expires_at = stated.expires_at + index * stated.step_s
        if expires_at > now + MOST_LIFETIME_S:
            raise RemoteProtocolError("statement: it is to hold longer than an hour")
        if held is not None and held.sequence_number >= record.sequence_number:
            return False
        if expires_at <= now or (held is None and len(self._held) >= MOST_OWNERS):
            return False
        is_news = held is None or news_of(held.statement.record) != news_of(record)
        urgent_at = held.urgent_at if held is not None else now - URGENT_AGAIN_S
        self.position += 1
        if is_news and now - urgent_at >= URGENT_AGAIN_S:
            urgent_at = now
            self.urgent.append(Urgent(self.position, record.peer, giver))
        self._bytes += len(statement.signed) - (len(held.statement.signed) if held is not None else 0)
        self.stated_times += 1
        self._held[owner] = Held(statement, index, sign, self.position, giver, urgent_at)
        self._held.move_to_end(owner)
        return True

    def lives(self, mark: Mark, giver: PeerId, now: float) -> bool:
        """A sign of life under what is held; whether it is news. Raises RemoteProtocolError for one that is not its owner's."""
        held = self._held.get(mark.owner)
        if held is None or held.sequence_number != mark.sequence_number or mark.index <= held.index:
            return False
        stated = held.statement.stated
        if mark.index > MOST_SIGNS or not follows(mark.sign, held.sign, mark.index - held.index):
            raise RemoteProtocolError("marks: a sign of life is not its owner's")
        if stated.expires_at + mark.index * stated.step_s > now + MOST_LIFETIME_S:
            return False
        self.position += 1
        held.goes_on(mark, giver, self.position)
        self._held.move_to_end(mark.owner)
        return True

    def marks_since(self, position: int, reader: PeerId, most: int) -> tuple[list[Mark], int]:
        """What has changed since then, the oldest first and at most so many, but for what the reader itself has told; and up to
        which position that is."""
        changed: list[Held] = []
        for held in reversed(self._held.values()):
            if held.position <= position:
                break
            changed.append(held)
        told: list[Mark] = []
        for held in reversed(changed):
            if held.giver == reader:
                continue
            if len(told) == most:
                return told, held.position - 1
            told.append(held.mark)
        return told, self.position

    def drop_expired(self, now: float) -> bool:
        """Whether there were any."""
        gone = [owner for owner, held in self._held.items() if held.expires_at <= now]
        for owner in gone:
            self._bytes -= len(self._held.pop(owner).statement.signed)
        self.stated_times += len(gone)
        return bool(gone)
