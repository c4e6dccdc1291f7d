"""What a circuit will carry yet: it ends after some bytes or seconds, which the called peer's record tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gwtf_p2p.live.nat.connect import Way
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.live.nat.reachability_rules import NO_END, circuit_left
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import PathType, StageRecord

LEAST_ALLOWANCE = 4096
"""Bytes; a circuit that carries less is replaced before anything is sent on it."""


class Budget:
    """Counts what goes over circuits. `records` are the newest of the other peers; `clock` says seconds."""

    def __init__(self, records: Mapping[PeerId, StageRecord], reachability: Reachability, clock: Callable[[], float]) -> None:
        self._records, self._reachability, self._clock = records, reachability, clock

    def circuit_bytes(self, peer: PeerId) -> int:
        """What a circuit between this peer and that one carries each way; 0 is no limit."""
        record = self._records.get(peer)
        return _least(record.circuit_bytes if record else 0, self._reachability.circuit_bytes)

    def left(self, peer: PeerId, way: Way) -> int:
        """Bytes that the path will carry yet."""
        if way.kind is not PathType.RELAYED:
            return NO_END
        record, own = self._records.get(peer), self._reachability
        budget_s = _least(record.circuit_s if record else 0, own.circuit_s)
        return circuit_left(self.circuit_bytes(peer), budget_s, way.sent_bytes, self._clock() - way.opened_s)

    def allowance(self, peer: PeerId, way: Way, wanted: int) -> int:
        """How many of the wanted bytes may go over the path now; they count as sent. 0: it has to be renewed first."""
        given = min(wanted, self.left(peer, way))
        if given < min(wanted, LEAST_ALLOWANCE):
            return 0
        way.sent_bytes += given
        return given


def _least(one: int, other: int) -> int:
    """The smaller of two budgets, where 0 is no limit."""
    return min(one, other) if one and other else one or other
