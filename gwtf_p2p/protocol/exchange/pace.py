"""How often records are exchanged, told and read, by the size of the swarm; and how much a peer gives to one that asks.

Up to `SMALL` peers the periods are those of a small swarm. Beyond, they grow with the number of peers, so that what a peer
sends and receives grows little: each peer hears of each other one once a period.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId

RECORD_PERIOD_S = 10.0
"""Between two times that a peer says in the DHT that its record holds."""

LIFETIME_PERIODS = 3
SMALL = 100
LEAST_ROUNDS, MOST_ROUNDS = 3, 5
"""Exchanges that one peer begins in one period; it is asked as often."""

LOOK_S, ORDERS_S = 2.0, 5.0
"""Between two readings of all records, and of the orders, by a peer that has them from the DHT alone."""

FALLBACK_S = 30.0
FALLBACK_BYTES_PER_S = 300.0
"""What reading the DHT beside the exchange may cost: a large swarm's records are read rarely."""

READ_BYTES = 7000
"""What reading one record from the DHT costs: several of its holders send it."""

ALONE_S = 12.0
"""Who has exchanged nothing for so long reads the DHT as if there were no exchange."""

MOST_SENDERS = 1024


def period_s(peers: int) -> float:
    """Between two signs of life of one peer."""
    return RECORD_PERIOD_S * max(1.0, peers / SMALL)


def rounds(peers: int) -> int:
    """Exchanges that one peer begins in a period: a sign of life needs about as many steps as the logarithm of the number of
    peers, and has two periods for them."""
    return min(MOST_ROUNDS, max(LEAST_ROUNDS, peers.bit_length() - 2))


def round_s(peers: int) -> float:
    """Between two exchanges that one peer begins."""
    return period_s(peers) / rounds(peers)


def routine_s(peers: int) -> float:
    """How long what is no news waits until it is told: all that one peer hears of it in a second grows little with them."""
    return 5.0 * max(1.0, peers / 16)


def orders_s(peers: int, *, exchanges: bool) -> float:
    """Between two readings of the orders from the DHT: all peers together read them about as often as two do, since whoever
    finds one tells the others."""
    return ORDERS_S * max(1.0, peers / 2) if exchanges else ORDERS_S


def fallback_s(records: int) -> float:
    """Between two readings of a stage's records from the DHT, where the last one brought so many."""
    return max(FALLBACK_S, records * READ_BYTES / FALLBACK_BYTES_PER_S)


def mixed_s(peers: int) -> float:
    """The same where some peers of the swarm tell of themselves in the DHT alone."""
    return LOOK_S * max(1.0, peers / 8)


@dataclass(slots=True)
class Allowance:
    """So many bytes (or calls) at once, so many more each second: of each sender that has a record; of all others together,
    `of_all_others` times as many."""

    most: float
    per_s: float
    of_all_others: int
    _left: dict[PeerId | None, tuple[float, float]] = field(default_factory=dict)

    def take(self, sender: PeerId | None, wanted: float, now: float) -> float:
        """How much of what is wanted the sender gets now; None: somebody without a record."""
        times = 1 if sender is not None else self.of_all_others
        left, at = self._left.pop(sender, (times * self.most, now))
        left = min(times * self.most, left + times * self.per_s * max(0.0, now - at))
        given = min(wanted, left)
        self._left[sender] = left - given, now
        if len(self._left) > MOST_SENDERS:
            del self._left[next(iter(self._left))]
        return given
