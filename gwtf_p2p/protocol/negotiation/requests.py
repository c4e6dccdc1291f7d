"""Who is asked for a move, and how hot it is: the asking half of Request Change and Request Redirect.

A peer tells a peer of its stage all its flows, and that one makes the move that it likes best (`negotiation_moves`). T falls
with every performed move, and with every round in which all peers were asked in vain. When it is cold and a round was in vain
the peer rests for a while, or until something changes around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.side import Side
from gwtf_p2p.protocol.negotiation.slots import Slot
from gwtf_p2p.protocol.wire.negotiation_messages import (
    ChangeAnswer,
    HopEnd,
    Passage,
    RedirectAnswer,
    RequestChange,
    RequestRedirect,
)

REST_S = 60.0

ROUNDS_IN_VAIN = 3
"""Before a rest. One says little: who has a request under way refuses what it would like otherwise."""


class Search:
    """Of one stage peer's side. `rests_until`: nothing is to be had for now. `is_done`: it has come to a rest since
    something changed."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._heated_at = side.now
        self.rests_until = 0.0
        self.is_done = False
        self._trials: list[tuple[PeerId, bool]] = []
        self._in_vain = 0
        self._tokens = 0

    @property
    def temperature_us(self) -> float:
        """0 when cold."""
        config = self.side.config
        part = config.temperature * exp((self._heated_at - self.side.now) / config.cooling_s)
        return part * self.side.near.mean_us if part > config.coldest else 0.0

    def reheat(self, heat: float) -> None:
        """The measurements have changed: begin again, at this part of the first temperature at least."""
        self._heated_at = max(self._heated_at, self.side.now + log(heat) * self.side.config.cooling_s)
        self.stir()

    def stir(self) -> None:
        """Own flows have changed: what was tried in vain may work now."""
        self._trials.clear()
        self.rests_until, self._in_vain, self.is_done = 0.0, 0, False

    def performed(self) -> None:
        self.side.moves += 1
        self.stir()

    # ---- asking

    def step(self) -> None:
        """Ask one peer for a move."""
        side = self.side
        if side.pending is not None or side.now < self.rests_until or not side.near.beside:
            return
        slots = [slot for slot in side.slots.complete() if slot.inflow is not None and slot.inflow.peer in side.near.before_us]
        if not slots:
            return
        if not self._trials:
            self._next_round()
        peer, change = self._trials.pop()
        if peer not in side.near.beside:
            return
        self._tokens += 1
        passages = tuple(self._passage(slot) for slot in slots)
        side.lock(peer, self._tokens, slots)
        if change:
            side.say(peer, RequestChange(self._tokens, passages, side.near.before_us, side.near.after_us))
        else:
            side.say(peer, RequestRedirect(self._tokens, passages))

    def _next_round(self) -> None:
        """A new order of all peers, or a rest."""
        side = self.side
        if self.temperature_us > 0.0:
            self._in_vain = 0
        elif self._in_vain == ROUNDS_IN_VAIN:
            self.rests_until, self.is_done, self._in_vain = side.now + REST_S, True, 0
        else:
            self._in_vain += 1
        self._trials = [(peer, change) for peer in side.near.beside for change in (True, False)]
        side.random.shuffle(self._trials)

    def _passage(self, slot: Slot) -> Passage:
        near = self.side.near
        assert slot.inflow is not None and slot.outflow is not None
        before_us, after_us = near.before_us[slot.inflow.peer], near.after_us[slot.outflow.peer]
        return Passage(slot.sink, slot.inflow, slot.outflow, before_us, after_us, slot.beyond_us, slot.others)

    # ---- the answer: the move is made on the other side

    def change_answered(self, sender: PeerId, message: ChangeAnswer, slots: tuple[Slot, ...]) -> None:
        if message.outflow is None or message.sink is None or not 0 <= message.chosen < len(slots):
            return
        side, slot, both = self.side, slots[message.chosen], message.inflow is not None
        self.hand_over(sender, slot.outflow, slot.inflow if both else None)
        self.take(slot, message.outflow, message.inflow)
        if both or slot.inflow is None:
            slot.sink = message.sink
        lead(slot, message.sink, message.beyond_us, message.others)
        side.slots.unlock(slot)
        self.announce(slot, both)
        self.performed()

    def redirect_answered(self, sender: PeerId, message: RedirectAnswer, slots: tuple[Slot, ...]) -> None:
        if not (0 <= message.inflow < len(slots) and 0 <= message.outflow < len(slots)):
            return
        side = self.side
        loses, gives = slots[message.inflow], slots[message.outflow]
        self.hand_over(sender, None if message.keeps_path else gives.outflow, loses.inflow)
        side.slots.set_in(loses, None, side.now)
        if gives is not loses:
            self._exchange_paths(loses, gives)
        if not message.keeps_path:
            side.slots.set_out(loses, None, side.now)
        self.performed()

    def _exchange_paths(self, one: Slot, other: Slot) -> None:
        """Between two slots of this peer; the flows are one data peer's."""
        tails = [(s.outflow, s.beyond_us, s.others) for s in (other, one)]
        for slot in (one, other):
            self.side.slots.set_out(slot, None, self.side.now)
        for slot, (out, beyond_us, others) in zip((one, other), tails, strict=True):
            self.side.slots.set_out(slot, out, self.side.now)
            slot.beyond_us, slot.others = beyond_us, others

    # ---- hops change hands

    def hand_over(self, to: PeerId, out: HopEnd | None, inflow: HopEnd | None) -> None:
        """Messages about these that still come here are for `to`."""
        side = self.side
        if out is not None:
            side.given_up[out.link] = (to, side.now)
        if inflow is not None:
            side.given_down[inflow.link] = (to, side.now)

    def take(self, slot: Slot, out: HopEnd | None, inflow: HopEnd | None) -> None:
        """These are mine from now on."""
        side = self.side
        if inflow is not None:
            side.given_down.pop(inflow.link, None)
            side.slots.set_in(slot, inflow, side.now)
        if out is not None:
            side.given_up.pop(out.link, None)
            side.slots.set_out(slot, out, side.now)
        side.give_up_gone(slot)

    def announce(self, slot: Slot, both: bool) -> None:
        """To the peer after, that I am before it; to the one before, that I am after it, or what the path costs now."""
        self.side.announce_down(slot)
        if both:
            self.side.announce_up(slot)
        else:
            self.side.refresh(slot)


def lead(slot: Slot, sink: PeerId, beyond_us: int, others: Mapping[str, int]) -> None:
    """The new path ended at `sink`. Where the flow is another data peer's, it goes there from now on."""
    slot.beyond_us, slot.others = beyond_us, others
    if sink != slot.sink:
        slot.beyond_us, slot.others = others.get(slot.sink, beyond_us), {}
