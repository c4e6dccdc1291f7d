"""How many messages of one sender a peer handles in a *stretch* of time, and how many microbatches it takes of it.

A stretch lasts as long as this peer's iteration, at least five seconds and at most a minute. What an honest peer sends in one
grows with what it does: the most that was seen in simulated swarms with churn was 28 of a kind and 51 in all. Bounds are far
above, so that they bind nobody but who sends for the sake of sending.
- Members: so many of each kind, more of those that are about single microbatches, of which there may be thousands.
- A request to do a microbatch again costs more than its own bytes: so many of each microbatch.
- Strangers, of whom there may be any number: few each, and few together.
Going over a bound is a breach, and each time as much again comes on top is another one: a flood bars its sender. That strangers
together are too many is no single one's breach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire import messages as msg

LEAST_S, MOST_S = 5.0, 60.0
OF_A_KIND, OF_MICROBATCHES, AGAIN = 1000, 1 << 14, 64
OF_A_STRANGER, OF_STRANGERS = 60, 1200

_ABOUT_ONE = (
    msg.Forward,
    msg.Backward,
    msg.Complete,
    msg.CapacityAvailable,
    msg.Done,
    msg.Superseded,
    msg.Redo,
    msg.Missing,
)
MOST: Mapping[type[Any], int] = MappingProxyType(dict.fromkeys(_ABOUT_ONE, OF_MICROBATCHES))
"""Of kinds that are about single microbatches; of all others `OF_A_KIND`."""


@dataclass(frozen=True, slots=True)
class Excess:
    """Why a message is one too many."""

    reason: str
    breach: bool


@dataclass(slots=True)
class _Stretch:
    began: float
    position: Hashable
    of: dict[PeerId, Counter[Hashable]] = field(default_factory=dict)
    strangers: int = 0


class MessageQuotas:
    """Of one peer; times are its own clock's."""

    def __init__(self) -> None:
        self._stretch = _Stretch(0.0, None)
        self._minute = _Stretch(0.0, None)

    def excess(self, sender: PeerId, message: Any, position: Hashable, now: float, *, is_member: bool) -> Excess | None:
        """What is wrong with hearing one more message of this sender, which counts from here on; `position`: of this peer."""
        self._go_on(position, now)
        kind = type(message)
        if not is_member:
            return self._stranger(sender)
        taken = self._stretch.of.setdefault(sender, Counter())
        over = _count(taken, kind.__name__, MOST.get(kind, OF_A_KIND), kind.__name__)
        if over is None and isinstance(message, msg.Redo):
            over = _count(taken, message.microbatch, AGAIN, "Redo of one microbatch")
        return over

    def _stranger(self, sender: PeerId) -> Excess | None:
        minute = self._minute
        if sender not in minute.of and minute.strangers >= OF_STRANGERS:
            return Excess(f"over {OF_STRANGERS} messages of strangers", breach=False)
        over = _count(minute.of.setdefault(sender, Counter()), "", OF_A_STRANGER, "messages of a stranger")
        if over is None and minute.strangers >= OF_STRANGERS:
            return Excess(f"over {OF_STRANGERS} messages of strangers", breach=False)
        minute.strangers += over is None
        return over

    def _go_on(self, position: Hashable, now: float) -> None:
        stretch = self._stretch
        if now - stretch.began >= (LEAST_S if position != stretch.position else MOST_S):
            self._stretch = _Stretch(now, position)
        if now - self._minute.began >= MOST_S:
            self._minute = _Stretch(now, None)


def most_held(microbatches: int, data_peers: int, ahead: int = 0) -> int:
    """How many microbatches a stage peer takes of one sender: all there can be of the iteration at hand and of the next one,
    and of as many more as are computed `ahead`. `microbatches`: of each data peer; 0: nobody says."""
    return (2 + ahead) * microbatches * max(1, data_peers)


def _count(taken: Counter[Hashable], what: Hashable, most: int, name: str) -> Excess | None:
    taken[what] += 1
    beyond = taken[what] - most
    return Excess(f"over {most} {name}", breach=beyond % most == 1) if beyond > 0 else None
