"""Which of the payloads that a peer has to send go first.

Small messages (offers, verdicts, calls) never wait. Of payloads gradients go before activations, since a gradient frees memory
in all stages behind it, and both before what belongs to no microbatch: averages, weights, probes. Whoever waits is overtaken by
more urgent ones at most `MOST_OVERTAKEN` times, so nothing waits for ever. Payloads go in pieces (`line_cap`), so a small one
waits for a piece of a large one at most; and so many at once go to one peer (`SendSlots`) that those of one kind leave room for
more urgent ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

MOST_OVERTAKEN = 16


class Urgency(IntEnum):
    """Of a payload, the most urgent first."""

    BACKWARD = 0
    FORWARD = 1
    BULK = 2


_KINDS = {"Backward": Urgency.BACKWARD, "Forward": Urgency.FORWARD}


def urgency_of(kind: str) -> Urgency:
    """Of a payload whose header is of this kind."""
    return _KINDS.get(kind, Urgency.BULK)


@dataclass(eq=False, slots=True)
class Place:
    """One that waits; `number` tells in which order they came."""

    urgency: Urgency
    number: int
    size: int = 0
    overtaken: int = 0
    has_slot: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """The lowest goes first."""
        return (-1 if self.overtaken >= MOST_OVERTAKEN else int(self.urgency), self.number)


class Places:
    """All that wait for one thing."""

    def __init__(self) -> None:
        self._waiting: list[Place] = []
        self._count = 0

    def join(self, urgency: Urgency, size: int = 0) -> Place:
        """A new place; what it waits for is free when it is `first`."""
        self._count += 1
        place = Place(urgency, self._count, size)
        self._waiting.append(place)
        return place

    def in_order(self) -> list[Place]:
        """Those that wait, the first first."""
        return sorted(self._waiting, key=lambda place: place.order)

    def is_first(self, place: Place) -> bool:
        """Nobody that waits goes before it."""
        return place is min(self._waiting, key=lambda each: each.order, default=None)

    def take(self, place: Place) -> None:
        """It goes now; those that came before it have been overtaken once more."""
        self.leave(place)
        for other in self._waiting:
            other.overtaken += other.number < place.number

    def leave(self, place: Place) -> None:
        """It waits no more; nothing to do if it did not."""
        if place in self._waiting:
            self._waiting.remove(place)


class SendSlots:
    """Payloads under way to one peer, at most so many at once: half of them may be bulk, three quarters bulk and forward."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limits = {
            Urgency.BACKWARD: most,
            Urgency.FORWARD: max(1, most - most // 4),
            Urgency.BULK: max(1, most // 2),
        }
        self._places, self._used = Places(), Counter[Urgency]()

    def ask(self, urgency: Urgency) -> Place:
        """`has_slot` says whether it goes at once; else `free` names it when it may."""
        place = self._places.join(urgency)
        self._grant()
        return place

    def free(self, place: Place) -> list[Place]:
        """It has been sent, or given up; returns those that go now."""
        if place.has_slot:
            self._used[place.urgency] -= 1
            place.has_slot = False
        self._places.leave(place)
        return self._grant()

    def _grant(self) -> list[Place]:
        granted = []
        for place in self._places.in_order():
            upwards = sum(count for urgency, count in self._used.items() if urgency >= place.urgency)
            if self._used.total() < self._most and upwards < self._limits[place.urgency]:
                self._places.take(place)
                self._used[place.urgency] += 1
                place.has_slot = True
                granted.append(place)
        return granted
