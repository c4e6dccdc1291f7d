"""Has the swarm gone on without this peer? Not because one other says so.

A peer that is out of step drops all that it holds, so one that lies about the position could stop a run. What would put this
peer out of step therefore needs *two* witnesses (one, where there is only one other peer): another peer that has said the same
itself, or whose signed record shows it. While there is one only, others are asked where they stand; an honest claim is
confirmed after one round trip, a lie never.
"""

from __future__ import annotations

from collections.abc import Iterable

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.wire.messages import Ballot, Inquire

NEEDED = 2
ASKED_AT_ONCE = 4
ASK_EVERY_S = 1.0
MOST_WITNESSES = 256


class Witnesses:
    """Of one peer. It keeps the latest that each other has said: where it stands, and the ballot that brought it there."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self._said: dict[PeerId, tuple[tuple[int, int], Ballot | None]] = {}
        self._asked_at = float("-inf")
        self._asked: set[PeerId] = set()
        self._ballot: Ballot | None = None

    def forget(self) -> None:
        """This peer has a new position."""
        self._said.clear()
        self._asked.clear()
        self._ballot = None
        self._asked_at = float("-inf")

    def are_further(self, sender: PeerId, claimed: tuple[int, int], mine: tuple[int, int]) -> bool:
        """`sender` says that the swarm is at `claimed`, later than `mine`: do enough others say that it is later too? Of
        another epoch only those of another are witnesses."""
        self._note(sender, claimed, None)
        records = self.ctx.view.records if self.ctx.view is not None else {}
        later = mine if claimed[0] == mine[0] else (mine[0] + 1, -1)
        seen = {p for p, (position, _) in self._said.items() if position > later}
        seen |= {p for p, r in records.items() if (r.epoch, r.weights_version) > later}
        return self._are_enough(seen, mine[1])

    def are_from(self, sender: PeerId, ballot: Ballot, mine: tuple[int, int]) -> bool:
        """`sender` says that the weights of this iteration come from another attempt than this peer's: do others too?"""
        self._note(sender, mine, ballot)
        self._ballot = ballot
        return self._are_enough({p for p, (_, said) in self._said.items() if said == ballot}, mine[1])

    def are_most(self, sender: PeerId, ballot: Ballot, mine: tuple[int, int]) -> bool:
        """`sender` stands where this peer does, with weights from this attempt, another than this peer's: do most of all that
        there are? Then nobody on the other side can say the same."""
        self._note(sender, mine, ballot)
        records = self.ctx.view.records if self.ctx.view is not None else {}
        known = {peer for peer in records if not self.ctx.liveness.is_lost(peer)} | {self.ctx.me}
        there = {peer for peer, said in self._said.items() if said == (mine, ballot)} & known - {self.ctx.me}
        return 2 * len(there) > min(len(known), MOST_WITNESSES)

    def doubts(self, ballot: Ballot | None) -> bool:
        """Somebody has said that the weights come from this attempt."""
        return ballot is not None and ballot == self._ballot

    def _note(self, sender: PeerId, position: tuple[int, int], ballot: Ballot | None) -> None:
        self._said.pop(sender, None)
        self._said[sender] = (position, ballot)
        while len(self._said) > MOST_WITNESSES:
            del self._said[next(iter(self._said))]

    def _are_enough(self, seen: Iterable[PeerId], iteration: int) -> bool:
        ctx = self.ctx
        records = ctx.view.records if ctx.view is not None else {}
        others = {peer for peer in records if peer != ctx.me and not ctx.liveness.is_lost(peer)}
        witnesses = set(seen) - {ctx.me}
        if len(witnesses) >= min(NEEDED, len(others | witnesses)):
            return True
        if ctx.now - self._asked_at >= ASK_EVERY_S:
            self._asked_at = ctx.now
            near = sorted(others - witnesses, key=lambda p: (records[p].stage != DATA_STAGE, records[p].stage != ctx.stage, p))
            if self._asked.issuperset(near):
                self._asked.clear()
            for peer in [peer for peer in near if peer not in self._asked][:ASKED_AT_ONCE]:
                self._asked.add(peer)
                ctx.emit(Send(peer, Inquire(iteration)))
        return False
