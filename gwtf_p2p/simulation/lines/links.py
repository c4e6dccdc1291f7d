"""Links of the simulated swarm: latency, bandwidth between two peers, and lines that a peer's transfers share.

A transfer crosses up to three of them: the link between the two peers, the sender's line upwards and the receiver's line
downwards. Their capacity is shared max-min fairly, as long TCP flows come close to doing: nobody can be given more without
taking it from one who has less, and what a transfer cannot use (because it is narrower elsewhere) the others get. Rates
change whenever a transfer begins or ends (a fluid model: no packets, no slow start). Messages arrive in the order in which
they were sent, since the latency of a link does not vary.

A transfer may go *via* a third peer, which stores it and forwards it: SWARM's star (see `protocol/routers/swarm`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.partition import Partition

REQUEST_TIMEOUT_S = 3.0
"""After which an unanswered small message, or a member of an average that says nothing, counts as failed, as in the live
transport."""


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One direction between two peers: one-way latency and bandwidth."""

    latency_s: float
    bandwidth_bytes_per_s: float


@dataclass(slots=True, eq=False)
class Line:
    """What transfers share: `capacity` in bytes/s, and who is on it, by order of arrival."""

    capacity: float
    users: dict[int, Transfer] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes under way, `left` of them at `updated_at`, at `rate` bytes/s. `wake_at` is when the kernel looks at it next.

    `receiver` is the one that it ends at, also for a leg that goes to the peer between.
    """

    order: int
    sender: PeerId
    receiver: PeerId
    left: float
    done: Callable[[], None]
    lines: tuple[Line, ...]
    updated_at: float
    rate: float = 0.0
    wake_at: float = float("inf")
    active: bool = True
    cancelled: bool = False
    second_leg: Transfer | None = None


@dataclass
class Links:
    """All links. `line_bytes_per_s` is a peer's line, in each direction; absent: no limit."""

    kernel: Kernel
    spec: Callable[[PeerId, PeerId], LinkSpec]
    line_bytes_per_s: Mapping[PeerId, float] = field(default_factory=dict)
    bytes_sent: int = 0
    partition: Partition = field(default_factory=Partition)
    _lines: dict[tuple[str, PeerId, PeerId], Line] = field(default_factory=dict)
    _order: count[int] = field(default_factory=count)

    def latency_s(self, sender: PeerId, receiver: PeerId, via: PeerId | None = None) -> float:
        """One way."""
        if via is not None:
            return self.latency_s(sender, via) + self.latency_s(via, receiver)
        return 0.0 if sender == receiver else self.spec(sender, receiver).latency_s

    def idle_bandwidth(self, sender: PeerId, receiver: PeerId) -> float:
        """Bytes/s of a transfer that has the link and both lines to itself: what a probe measures."""
        lines = [self.line_bytes_per_s[p] for p in (sender, receiver) if p in self.line_bytes_per_s]
        return min([self.spec(sender, receiver).bandwidth_bytes_per_s, *lines])

    def start(
        self, sender: PeerId, receiver: PeerId, size: int, done: Callable[[], None], via: PeerId | None = None
    ) -> Transfer:
        """Begin a transfer; `done` is called when the last byte leaves (the last latency is left to the caller)."""
        if via is None:
            return self._start(sender, receiver, size, done)

        def forward() -> None:
            if not first.cancelled:
                first.second_leg = self._start(via, receiver, size, done)

        def stored() -> None:
            self.kernel.after(self.latency_s(sender, via), forward)

        first = self._start(sender, via, size, stored)
        first.receiver = receiver
        return first

    def stop(self, transfer: Transfer) -> int:
        """Cancel; the bytes not yet sent, which are returned, are not counted as sent."""
        transfer.cancelled = True
        if transfer.second_leg is not None:
            return self.stop(transfer.second_leg)
        if not transfer.active:
            return 0
        left = int(self._left_now(transfer))
        self.bytes_sent -= left
        self._leave(transfer)
        return left

    # ---- one leg

    def _start(self, sender: PeerId, receiver: PeerId, size: int, done: Callable[[], None]) -> Transfer:
        lines = self._lines_between(sender, receiver)
        transfer = Transfer(next(self._order), sender, receiver, float(size), done, lines, self.kernel.now)
        self.bytes_sent += size
        for line in lines:
            line.users[transfer.order] = transfer
        self._share(lines)
        return transfer

    def _lines_between(self, sender: PeerId, receiver: PeerId) -> tuple[Line, ...]:
        """The link first, then the lines that limit."""
        keys = (("link", sender, receiver), ("up", sender, sender), ("down", receiver, receiver))
        lines = []
        for key in keys:
            line = self._lines.get(key)
            if line is None:
                if key[0] != "link" and key[1] not in self.line_bytes_per_s:
                    continue
                is_link = key[0] == "link"
                capacity = self.spec(sender, receiver).bandwidth_bytes_per_s if is_link else self.line_bytes_per_s[key[1]]
                line = self._lines[key] = Line(capacity)
            lines.append(line)
        return tuple(lines)

    def _leave(self, transfer: Transfer) -> None:
        transfer.active = False
        for line in transfer.lines:
            del line.users[transfer.order]
        self._share(transfer.lines)

    def _left_now(self, transfer: Transfer) -> float:
        return max(0.0, transfer.left - transfer.rate * (self.kernel.now - transfer.updated_at))

    # ---- who gets how much

    def _share(self, lines: tuple[Line, ...]) -> None:
        """Set the rates of all that can be affected by a change on these lines."""
        for transfer, rate in max_min_rates(lines):
            if rate != transfer.rate:
                transfer.left = self._left_now(transfer)
                transfer.updated_at, transfer.rate = self.kernel.now, rate
                self._wake(transfer)

    def _wake(self, transfer: Transfer) -> None:
        """Look at it when it should be done; one that is to be looked at earlier anyway is left alone until then."""
        due = transfer.updated_at + transfer.left / transfer.rate
        if due >= transfer.wake_at:
            return
        transfer.wake_at = due

        def look() -> None:
            if not transfer.active or transfer.wake_at != due:
                return
            transfer.wake_at = float("inf")
            if transfer.updated_at + transfer.left / transfer.rate > due:
                self._wake(transfer)
            else:
                self._leave(transfer)
                transfer.done()

        self.kernel.at(due, look)


def max_min_rates(lines: tuple[Line, ...]) -> list[tuple[Transfer, float]]:
    """Max-min fair rates of all transfers that share a line, directly or through others, with users of `lines`.

    Progressive filling: the line whose equal share is smallest fixes its users at that share; the others share what is left.
    O(n log n) for n transfers, as each line's share only ever grows.
    """
    if len(lines) == 1:
        share = lines[0].capacity / max(1, len(lines[0].users))
        return [(transfer, share) for transfer in lines[0].users.values()]
    left, open_users, order = _component(lines)
    heap = [(line.capacity / open_users[line], order[line], line) for line in left if open_users[line]]
    heapq.heapify(heap)
    rates: dict[int, tuple[Transfer, float]] = {}
    while heap:
        share, rank, line = heapq.heappop(heap)
        users = open_users[line]
        if not users:
            continue
        now = left[line] / users
        if now > share:
            heapq.heappush(heap, (now, rank, line))
            continue
        for transfer in line.users.values():
            if transfer.order in rates:
                continue
            rates[transfer.order] = (transfer, share)
            for other in transfer.lines:
                left[other] = max(0.0, left[other] - share)
                open_users[other] -= 1
    return list(rates.values())


def _component(lines: tuple[Line, ...]) -> tuple[dict[Line, float], dict[Line, int], dict[Line, int]]:
    """Capacity, number of users and rank of every line that is connected with these through its users."""
    left: dict[Line, float] = {}
    users: dict[Line, int] = {}
    order: dict[Line, int] = {}
    to_see = list(lines)
    while to_see:
        line = to_see.pop()
        if line in left:
            continue
        left[line], users[line], order[line] = line.capacity, len(line.users), len(order)
        for transfer in line.users.values():
            to_see.extend(other for other in transfer.lines if other not in left)
    return left, users, order
