"""How far this machine's clock is from the others', because record expiry is in absolute time.

One sample is a DHT ping: the other's time minus the middle of our sending and receiving. Of each peer the sample with the
shortest round trip counts; over the peers, the median, so that one wrong clock among several does not matter.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.stall.rules import counted

WARN_S = 2.0
REFUSE_S = 30.0
_SAMPLES = 3


class ClockVerdict(Enum):
    """What the offset means for taking part."""

    GOOD = "good"
    WARN = "warn"
    REFUSE = "refuse"
    UNKNOWN = "unknown"
    """Nobody answered."""


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """`offset_s` is the median of (their clock - ours) over `peers` that answered."""

    verdict: ClockVerdict
    offset_s: float
    peers: int

    @property
    def reason(self) -> str:
        if self.verdict is ClockVerdict.UNKNOWN:
            return "no peer told its time"
        direction = "behind" if self.offset_s > 0 else "ahead of"
        others = counted(self.peers, "peer")
        return f"this machine's clock is {abs(self.offset_s):.1f} s {direction} that of {others}: set it by NTP"


class TimeTeller(Protocol):
    """What is needed of `dht.Dht`."""

    async def time_of(self, peer: PeerId, deadline_s: float = ...) -> float: ...


async def check_clock(dht: TimeTeller, peers: Sequence[PeerId]) -> ClockCheck:
    """Ask all peers at once; those that do not answer are left out."""
    offsets = [offset for offset in await asyncio.gather(*(_offset(dht, peer) for peer in peers)) if offset is not None]
    return judge_offsets(offsets)


def judge_offsets(offsets_s: Sequence[float]) -> ClockCheck:
    """The verdict for the offsets to several peers."""
    if not offsets_s:
        return ClockCheck(ClockVerdict.UNKNOWN, 0.0, 0)
    offset_s = statistics.median(offsets_s)
    if abs(offset_s) > REFUSE_S:
        verdict = ClockVerdict.REFUSE
    else:
        verdict = ClockVerdict.WARN if abs(offset_s) > WARN_S else ClockVerdict.GOOD
    return ClockCheck(verdict, offset_s, len(offsets_s))


async def _offset(dht: TimeTeller, peer: PeerId) -> float | None:
    samples = []
    for _ in range(_SAMPLES):
        sent_s = time.time()
        try:
            theirs_s = await dht.time_of(peer)
        except RemoteProtocolError:
            break
        received_s = time.time()
        samples.append((received_s - sent_s, theirs_s - (sent_s + received_s) / 2))
    return min(samples)[1] if samples else None
