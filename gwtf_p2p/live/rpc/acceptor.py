"""What all streams share that a peer has accepted: how many each sender may have, how much memory, and what outlives a stream.

How many streams one sender may have here, and how much memory may be held for it, says `protocol/trust/stream_quotas`; who is
refused for that is counted and told once a minute. A payload that has come half outlives its stream for a while (`park`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from gwtf_p2p.live.rpc.api import Header, RpcOptions, RpcService
from gwtf_p2p.live.rpc.frames import clock_s
from gwtf_p2p.live.rpc.greeting import Purpose
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.refusals import Refusals
from gwtf_p2p.protocol.trust.stream_quotas import IsMember, admission, over

logger = logging.getLogger(__name__)

_REMEMBERED = 256


@dataclass(slots=True)
class Transfer:
    """A payload under way. `reply` is the verdict that was given on it."""

    number: int
    header: Header
    payload: memoryview
    reply: Header
    offered_s: float
    filled: int = 0
    crc: int = 0


class Accepted(Protocol):
    """One of the streams (`incoming.IncomingStream`). `heard_s`: when something was said on it last, by `clock_s`.
    `is_direct`: it came over a connection of our own."""

    sender: PeerId
    purpose: Purpose
    heard_s: float
    is_direct: bool

    def end(self, reason: str) -> None:
        """What it was bringing is broken."""

    def close(self) -> None:
        """Without a word to anybody."""

    def give_up_transfer(self, number: int) -> Transfer | None:
        """What it has received of a transfer that goes on elsewhere; the stream ends."""


class Acceptor:
    """What all accepted streams share: limits, services, and who is connected. `knows`: has this peer a record that counts?"""

    def __init__(self, options: RpcOptions, service_for: Callable[[Header], RpcService]) -> None:
        self.options = options
        self.service_for = service_for
        self.knows: IsMember = lambda peer: True
        self.refusals = Refusals()
        self.streams: set[Accepted] = set()
        self.payload_bytes: Counter[PeerId] = Counter()
        self.frame_bytes: Counter[PeerId] = Counter()
        self._greeting: Counter[PeerId] = Counter()
        self._parked: dict[tuple[PeerId, int], tuple[Transfer, asyncio.TimerHandle]] = {}
        self._barred: dict[PeerId, float] = {}
        self._ended: OrderedDict[tuple[PeerId, int], Header] = OrderedDict()

    @property
    def inflight_bytes(self) -> int:
        """Of all payloads that are being received."""
        return sum(self.payload_bytes.values())

    def bar(self, peer: PeerId, seconds: float) -> None:
        """End its streams, and accept none of it for so long; 0 ends an earlier bar."""
        now = clock_s()
        self._barred = {p: until for p, until in self._barred.items() if until > now and p != peer}
        if seconds <= 0:
            return
        self._barred[peer] = now + seconds
        for stream in [stream for stream in self.streams if stream.sender == peer]:
            stream.end("barred")

    @contextmanager
    def greeting(self, sender: PeerId) -> Iterator[bool]:
        """A stream whose opener has to say first what it is for: whether it may."""
        refused = over(self.options.limits.greetings, self._greeting, sender, 1, self.knows)
        if refused:
            self.refuse(sender, "streams that say nothing", refused)
            yield False
            return
        _add(self._greeting, sender, 1)
        try:
            yield True
        finally:
            _add(self._greeting, sender, -1)

    def admits(self, sender: PeerId, purpose: Purpose) -> bool:
        """Whether it may have one more stream, perhaps at the cost of another sender's."""
        if self._barred.get(sender, 0.0) > clock_s():
            return False
        limits = self.options.limits
        refused = ""
        if purpose is Purpose.WATCH:
            watches = Counter(stream.sender for stream in self.streams if stream.purpose is Purpose.WATCH)
            refused = over(limits.watches, watches, sender, 1, self.knows)
        if not refused:
            found = admission(limits.streams, Counter(stream.sender for stream in self.streams), sender, self.knows)
            refused = found.refused
            if found.at_cost_of is not None:
                self._end_quietest(found.at_cost_of)
        if refused:
            self.refuse(sender, f"{purpose.name.lower()} streams", refused)
        return not refused

    def takes_direct(self, sender: PeerId) -> bool:
        """Whether one more direct connection of this peer's may begin its handshake."""
        if self._barred.get(sender, 0.0) > clock_s():
            return False
        taken = Counter(stream.sender for stream in self.streams if stream.is_direct)
        refused = over(self.options.limits.direct, taken, sender, 1, self.knows)
        if refused:
            self.refuse(sender, "direct streams", refused)
        return not refused

    def may_hold(self, sender: PeerId, more: int) -> bool:
        """Of a frame that has come half; less than 0: it has come whole, or will not."""
        if more > 0 and (refused := over(self.options.limits.frame_bytes, self.frame_bytes, sender, more, self.knows)):
            self.refuse(sender, "bytes of half frames", refused)
            return False
        _add(self.frame_bytes, sender, more)
        return True

    def holds(self, sender: PeerId, more: int) -> None:
        """So many more bytes of a payload that was accepted; less than 0: as many fewer."""
        _add(self.payload_bytes, sender, more)

    def refuse(self, sender: PeerId, what: str, why: str) -> None:
        """Count it, and tell it unless that was told in the last minute."""
        of = sender if self.knows(sender) else "strangers"
        count = self.refusals.note((of, what), what, clock_s())
        if count:
            logger.warning("refused %s %s (%d since this was said last): %s", of, what, count, why)

    def _end_quietest(self, sender: PeerId) -> None:
        quietest = min((stream for stream in self.streams if stream.sender == sender), key=lambda stream: stream.heard_s)
        self.refuse(sender, "a stream of many", "others have fewer than their share")
        quietest.end("others have fewer streams than their share")

    def add(self, stream: Accepted) -> None:
        self.streams.add(stream)

    def remove(self, stream: Accepted) -> None:
        self.streams.discard(stream)  # a bar may have ended it already, while what it brought was being handled

    def close(self) -> None:
        """End every stream without telling the services: this peer is leaving."""
        for stream in list(self.streams):
            stream.close()
        for _, timer in self._parked.values():
            timer.cancel()
        self._parked.clear()

    def park(self, sender: PeerId, transfer: Transfer, reason: str, *, is_brief: bool = False) -> None:
        """Keep a half received payload for a while; then it counts as broken. `is_brief`: its sender, if it is there, only has
        to take another stream, and whoever waits for word of its end should not wait long."""
        key = (sender, transfer.number)

        def give_up() -> None:
            del self._parked[key]
            self.holds(sender, -len(transfer.payload))
            self.service_for(transfer.header).on_broken(sender, transfer.header, f"{reason}, and it was not taken up again")

        self.unpark(sender, transfer.number)
        wait_s = self.options.direct_park_s if is_brief else self.options.park_s
        self._parked[key] = transfer, asyncio.get_running_loop().call_later(wait_s, give_up)

    def unpark(self, sender: PeerId, number: int) -> Transfer | None:
        """The parked transfer, which is the caller's from here on. One whose old stream still seems alive is taken from it."""
        transfer, timer = self._parked.pop((sender, number), (None, None))
        if timer is not None:
            timer.cancel()
            return transfer
        for stream in list(self.streams):
            if stream.sender == sender and (taken := stream.give_up_transfer(number)) is not None:
                return taken
        return None

    def remember_end(self, sender: PeerId, number: int, acknowledgement: Header) -> None:
        """So that a sender whose stream broke before the acknowledgement came can ask for it."""
        self._ended[sender, number] = acknowledgement
        while len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    def end_of(self, sender: PeerId, number: int) -> Header | None:
        return self._ended.get((sender, number))


def _add(to: Counter[PeerId], sender: PeerId, more: int) -> None:
    to[sender] += more
    if not to[sender]:
        del to[sender]
