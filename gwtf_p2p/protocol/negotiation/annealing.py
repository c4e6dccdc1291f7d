"""Local moves with simulated annealing: the deciding half of Request Change and Request Redirect.

*Change*: two peers of a stage exchange the next hops of two flows. *Redirect*: a peer with room takes over a flow, so that
prev -> other -> next becomes prev -> me -> next. The one who is asked decides, as it knows what it holds. Cold, it makes the
move that saves most, if one saves. Hot, it draws: each move, and none, with a probability in proportion to exp(saving / T).

What the prototype does is written there: a Change of two flows, a Redirect of one. Ours: a Change may be of flows of different
data peers, which then exchange their ends too, or exchange both hops, or a used against a spare path. A Redirect may take the
inflow of one flow and the outflow of another (who goes where inside a peer costs nothing), or go on along the taker's own
spare path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.requests import Search, lead
from gwtf_p2p.protocol.negotiation.side import Side
from gwtf_p2p.protocol.negotiation.slots import Slot
from gwtf_p2p.protocol.wire.negotiation_messages import (
    ChangeAnswer,
    Passage,
    RedirectAnswer,
    RequestChange,
    RequestRedirect,
)


@dataclass(frozen=True, slots=True)
class Move:
    """`inflow` and `outflow` are places in the request's passages, `slot` is mine (None: a free one).

    `both`: of a Change, the inflows are exchanged too.
    """

    saving_us: int
    slot: Slot | None
    inflow: int
    outflow: int
    both: bool = False


class Moves:
    """Of one stage peer's side."""

    def __init__(self, side: Side, search: Search) -> None:
        self.side, self.search = side, search

    # ---- Change

    def change_requested(self, sender: PeerId, message: RequestChange) -> None:
        """Exchange one of mine with one of the sender's."""
        side, search = self.side, self.search
        mine = side.slots.complete() + side.slots.spare()
        reachable = [(n, its) for n, its in enumerate(message.passages) if self._reaches(its)]
        move = self._choose([m for n, its in reachable for slot in mine for m in self._exchanges(n, its, slot, message)])
        if move is None or move.slot is None:
            side.say(sender, ChangeAnswer(message.token))
            return
        slot, its, both = move.slot, message.passages[move.outflow], move.both
        inflow = slot.inflow if both else None
        given = ChangeAnswer(message.token, move.outflow, slot.outflow, inflow, slot.sink, slot.beyond_us, slot.others)
        search.hand_over(sender, given.outflow, given.inflow)
        side.say(sender, given)
        search.take(slot, its.outflow, its.inflow if both else None)
        if both or slot.inflow is None:
            slot.sink = its.sink
        lead(slot, its.sink, its.beyond_us, its.others)
        search.announce(slot, both)
        search.performed()

    def _exchanges(self, n: int, its: Passage, slot: Slot, message: RequestChange) -> Iterator[Move]:
        """Of one of my slots with one of its passages."""
        near, out, inflow = self.side.near, slot.outflow, slot.inflow
        if out is None or out.peer not in message.after_us:
            return
        mine_after, its_after = message.after_us[out.peer], near.after_us[its.outflow.peer]
        if inflow is None:
            if slot.sink == its.sink:
                yield Move(its.after_us + its.beyond_us - mine_after - slot.beyond_us, slot, n, n)
            return
        hops_now_us = near.after_us[out.peer] + its.after_us
        if slot.sink == its.sink:
            yield Move(hops_now_us - mine_after - its_after, slot, n, n)
        elif its.sink in slot.others and slot.sink in its.others:
            ends_us = slot.beyond_us + its.beyond_us - slot.others[its.sink] - its.others[slot.sink]
            yield Move(hops_now_us + ends_us - mine_after - its_after, slot, n, n)
        if inflow.peer in message.before_us and inflow.peer in near.before_us:
            now_us = near.before_us[inflow.peer] + its.before_us + hops_now_us
            then_us = near.before_us[its.inflow.peer] + message.before_us[inflow.peer] + mine_after + its_after
            yield Move(now_us - then_us, slot, n, n, both=True)

    # ---- Redirect

    def redirect_requested(self, sender: PeerId, message: RequestRedirect) -> None:
        """Take a flow over into a free slot, or into a spare one: with its path or with mine."""
        side, passages = self.side, message.passages
        reachable = [n for n, its in enumerate(passages) if self._reaches(its)]
        moves = [move for i in reachable for o in reachable for move in self._takings(i, o, passages)]
        move = self._choose(moves)
        if move is None:
            side.say(sender, RedirectAnswer(message.token))
            return
        into, out_of, slot = passages[move.inflow], passages[move.outflow], move.slot
        side.say(sender, RedirectAnswer(message.token, move.inflow, move.outflow, keeps_path=slot is not None))
        if slot is not None:
            self.search.take(slot, None, into.inflow)
        else:
            if side.slots.room <= 0:
                side.cancel_out(max(side.slots.spare(), key=side.cost_us))
            slot = side.slots.add(Slot(into.sink, into.inflow, None, out_of.beyond_us, out_of.others))
            self.search.take(slot, out_of.outflow, None)
            side.given_down.pop(into.inflow.link, None)
            side.announce_down(slot)
        side.announce_up(slot)
        self.search.performed()

    def _takings(self, i: int, o: int, passages: tuple[Passage, ...]) -> Iterator[Move]:
        """Of the inflow of one passage and the outflow of another."""
        side, near, into, out_of = self.side, self.side.near, passages[i], passages[o]
        if into.sink != out_of.sink:
            return
        saved_us = into.before_us + out_of.after_us - near.before_us[into.inflow.peer]
        spares = side.slots.spare()
        if side.slots.room > 0 or spares:
            yield Move(saved_us - near.after_us[out_of.outflow.peer], None, i, o)
        for spare in spares:
            if spare.sink == into.sink:
                yield Move(saved_us + out_of.beyond_us - side.cost_us(spare), spare, i, o)

    # ---- choosing

    def _reaches(self, its: Passage) -> bool:
        """Do I know the peers before and after? And are the hops news to me?"""
        near, slots = self.side.near, self.side.slots
        known = its.inflow.peer in near.before_us and its.outflow.peer in near.after_us
        return known and its.inflow.link not in slots.by_in and its.outflow.link not in slots.by_out

    def _choose(self, moves: list[Move]) -> Move | None:
        """See the module docstring."""
        moves = [move for move in moves if move.saving_us != 0]
        if not moves:
            return None
        temperature_us = self.search.temperature_us
        best = max(moves, key=lambda move: move.saving_us)
        if temperature_us == 0:
            return best if best.saving_us > 0 else None
        highest = max(0, best.saving_us)
        weights = [exp((move.saving_us - highest) / temperature_us) for move in moves]
        drawn = self.side.random.random() * (sum(weights) + exp(-highest / temperature_us))
        for move, weight in zip(moves, weights, strict=True):
            drawn -= weight
            if drawn < 0:
                return move
        return None
