"""Links of the simulated swarm: latency, bandwidth between two peers, and lines that a peer's transfers share.

A transfer's rate is its equal share of the narrowest of three: the link between the two peers, the sender's line upwards
and the receiver's line downwards. Rates change whenever a transfer begins or ends on one of them (a fluid model; no packets,
no slow start).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.kernel import Kernel

Line = tuple[str, PeerId] | tuple[str, PeerId, PeerId]


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One direction between two peers: one-way latency and bandwidth."""

    latency_s: float
    bandwidth_bytes_per_s: float


@dataclass(slots=True)
class Transfer:
    """Bytes under way. `rate` is in bytes/s, `updated_at` when `left` was last right."""

    sender: PeerId
    receiver: PeerId
    left: float
    done: Callable[[], None]
    lines: tuple[Line, ...] = ()
    rate: float = 0.0
    updated_at: float = 0.0
    version: int = 0
    active: bool = True


@dataclass
class Links:
    """All links. `line_bytes_per_s` is a peer's line, shared by its transfers in each direction; absent: no limit."""

    kernel: Kernel
    spec: Callable[[PeerId, PeerId], LinkSpec]
    line_bytes_per_s: Mapping[PeerId, float] = field(default_factory=dict)
    bytes_sent: int = 0
    _on_line: dict[Line, dict[int, Transfer]] = field(default_factory=dict)

    def latency_s(self, sender: PeerId, receiver: PeerId) -> float:
        return 0.0 if sender == receiver else self.spec(sender, receiver).latency_s

    def start(self, sender: PeerId, receiver: PeerId, size: int, done: Callable[[], None]) -> Transfer:
        """Begin a transfer; `done` is called when the last byte leaves (add the latency for its arrival)."""
        transfer = Transfer(sender, receiver, float(size), done, updated_at=self.kernel.now)
        transfer.lines = tuple(
            line
            for line, capacity in (
                (("up", sender), self.line_bytes_per_s.get(sender)),
                (("down", receiver), self.line_bytes_per_s.get(receiver)),
                (("link", sender, receiver), 1.0),
            )
            if capacity is not None
        )
        self.bytes_sent += size
        for line in transfer.lines:
            self._on_line.setdefault(line, {})[id(transfer)] = transfer
        self._share(transfer.lines)
        return transfer

    def stop(self, transfer: Transfer) -> None:
        """Cancel; the bytes not yet sent are not counted as sent."""
        if transfer.active:
            self.bytes_sent -= int(self._left_now(transfer))
            self._leave(transfer)

    def _leave(self, transfer: Transfer) -> None:
        transfer.active = False
        transfer.version += 1
        for line in transfer.lines:
            del self._on_line[line][id(transfer)]
        self._share(transfer.lines)

    def _left_now(self, transfer: Transfer) -> float:
        return max(0.0, transfer.left - transfer.rate * (self.kernel.now - transfer.updated_at))

    def _share(self, lines: tuple[Line, ...]) -> None:
        """Recompute the rate of everything that uses one of these lines."""
        touched: dict[int, Transfer] = {}
        for line in lines:
            touched.update(self._on_line[line])
        for transfer in touched.values():
            rate = min(self._capacity(line) / len(self._on_line[line]) for line in transfer.lines)
            if rate == transfer.rate:
                continue
            transfer.left = self._left_now(transfer)
            transfer.updated_at, transfer.rate = self.kernel.now, rate
            transfer.version += 1
            self._schedule(transfer, transfer.version)

    def _schedule(self, transfer: Transfer, version: int) -> None:
        def finish() -> None:
            if transfer.active and transfer.version == version:
                self._leave(transfer)
                transfer.done()

        self.kernel.after(transfer.left / transfer.rate, finish)

    def _capacity(self, line: Line) -> float:
        if len(line) == 3:
            return self.spec(line[1], line[2]).bandwidth_bytes_per_s
        return self.line_bytes_per_s[line[1]]
