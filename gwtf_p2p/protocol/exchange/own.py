"""What this peer states of itself: a statement where its record has changed, a sign of life where it has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gwtf_p2p.protocol.exchange.alive import MOST_SIGNS, sign_of_life
from gwtf_p2p.protocol.exchange.news import lasting
from gwtf_p2p.protocol.exchange.pace import LIFETIME_PERIODS, RECORD_PERIOD_S, period_s
from gwtf_p2p.protocol.exchange.stated import MOST_STATED_BYTES, Mark, Stated, short
from gwtf_p2p.protocol.wire.records import StageRecord, encode


@dataclass(frozen=True, slots=True)
class _Last:
    record: StageRecord
    stated: Stated
    secret: bytes


class OwnStatements:
    """Of one peer. `draw` gives 16 bytes that nobody else knows."""

    def __init__(self, draw: Callable[[], bytes]) -> None:
        self._draw = draw
        self._last: _Last | None = None
        self._told_at = 0.0

    def next(self, record: StageRecord, peers: int, now: float) -> Stated | Mark | None:
        """What to tell of the record, which this peer publishes now; None: nothing yet. Raises ValueError when it is too
        large."""
        last, period = self._last, period_s(peers)
        if last is None or not self._still_says(last, record, now + LIFETIME_PERIODS * period):
            secret = self._draw()
            stated = Stated(_fitting(record), now + LIFETIME_PERIODS * period, RECORD_PERIOD_S, sign_of_life(secret, 0))
            self._last, self._told_at = _Last(record, stated, secret), now
            return stated
        if now - self._told_at < period - RECORD_PERIOD_S / 2:
            return None
        self._told_at = now
        index = record.sequence_number - last.record.sequence_number
        return Mark(short(record.peer), last.record.sequence_number, index, sign_of_life(last.secret, index))

    def _still_says(self, last: _Last, record: StageRecord, until: float) -> bool:
        """The statement, with a sign of life, says this record, and that it holds about until then."""
        index = record.sequence_number - last.record.sequence_number
        is_same = lasting(replace(last.record, sequence_number=record.sequence_number)) == lasting(record)
        holds_until = last.stated.expires_at + index * last.stated.step_s
        return is_same and 0 < index <= MOST_SIGNS and abs(holds_until - until) < 1.5 * RECORD_PERIOD_S


def _fitting(record: StageRecord) -> bytes:
    """The record's bytes, with as many of its links as there is room for. Raises ValueError when there is none without them."""
    packed = encode(record)
    while len(packed) > MOST_STATED_BYTES:
        if not record.links:
            raise ValueError(f"record of {len(packed)} bytes is over the bound of {MOST_STATED_BYTES}")
        record = replace(record, links=record.links[: len(record.links) // 2])
        packed = encode(record)
    return packed
