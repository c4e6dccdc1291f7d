"""What the parts of one negotiating side share: where it stands, what it has agreed to, what it knows, what it says.

A stage peer has one side. A data peer has two: a *source*, before stage 1, whose slots are the flows that it uses, and a
*sink*, after stage S, whose slots are the paths that lead to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from random import Random

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.slots import Slot, Slots
from gwtf_p2p.protocol.settings import RouterSettings
from gwtf_p2p.protocol.wire.negotiation_messages import CancelFlow, NegotiationMessage, PathIs, PathLost, UpstreamIs

REMEMBERED_S = 20.0
"""How long a peer knows to whom it has handed an end of a hop, for messages that are still under way to it."""

GONE_S = 600.0
"""How long a peer knows who has gone, for hops that others hand to it in ignorance of that."""

MOST_OTHERS = 16
"""Other data peers, the cheapest, of which a path tells what it would cost them."""


@dataclass(frozen=True, slots=True)
class Near:
    """What a peer knows of the swarm: cost of the hop to each peer of the stages before and after, and who is beside it."""

    before_us: Mapping[PeerId, int] = field(default_factory=dict)
    after_us: Mapping[PeerId, int] = field(default_factory=dict)
    beside: tuple[PeerId, ...] = ()

    def without(self, peer: PeerId) -> Near:
        before_us, after_us = ({p: c for p, c in side.items() if p != peer} for side in (self.before_us, self.after_us))
        return Near(before_us, after_us, tuple(p for p in self.beside if p != peer))

    @property
    def mean_us(self) -> float:
        """Of a hop."""
        costs = [*self.before_us.values(), *self.after_us.values()]
        return sum(costs) / len(costs) if costs else 0.0


@dataclass(frozen=True, slots=True)
class NegotiationConfig(RouterSettings):
    """`tick_s`: how often a peer looks around. `patience_s`: a path that nobody uses is given up after that, a flow without a
    path is pushed back. `check_s`: between two CHECK_FLOW. `temperature`: at first, in parts of the mean cost of a hop; it
    falls to 1/e of that in `cooling_s`, and below `coldest` to nothing. `search`: probability to try a move in a tick.
    `known`: peers of a stage that one knows at most.
    """

    tick_s: float = 0.5
    patience_s: float = 24.0
    check_s: float = 10.0
    temperature: float = 0.05
    cooling_s: float = 30.0
    coldest: float = 0.02
    search: float = 0.5
    known: int = 32

    def __post_init__(self) -> None:
        for name in ("tick_s", "patience_s", "check_s", "cooling_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected seconds above 0, got {getattr(self, name)}")
        if not 0 < self.search <= 1:
            raise ValueError(f"search: expected a number above 0, up to 1, got {self.search}")
        if self.temperature < 0 or self.coldest < 0 or self.known < 1:
            raise ValueError("temperature, coldest, known: expected positive numbers")


@dataclass(slots=True)
class Pending:
    """The one request of this side that is under way. What arrives about its hops meanwhile waits in `early`."""

    peer: PeerId
    key: object
    slots: tuple[Slot, ...]
    since: float
    links: frozenset[str]
    quoted_us: int = 0
    takes_over: bool = False
    early: list[tuple[PeerId, NegotiationMessage]] = field(default_factory=list)


@dataclass
class Side:
    """`offers[q][d]`: cost of the cheapest spare path of peer q to data peer d; `prices`: of taking one over."""

    me: PeerId
    config: NegotiationConfig
    random: Random
    slots: Slots
    near: Near = field(default_factory=Near)
    now: float = 0.0
    out: list[tuple[PeerId, NegotiationMessage]] = field(default_factory=list)
    offers: dict[PeerId, Mapping[str, int]] = field(default_factory=dict)
    prices: dict[PeerId, Mapping[str, int]] = field(default_factory=dict)
    pending: Pending | None = None
    given_up: dict[str, tuple[PeerId, float]] = field(default_factory=dict)
    given_down: dict[str, tuple[PeerId, float]] = field(default_factory=dict)
    gone: dict[PeerId, float] = field(default_factory=dict)
    moves: int = 0
    _links: int = 0

    def say(self, to: PeerId, message: NegotiationMessage) -> None:
        self.out.append((to, message))

    def new_link(self) -> str:
        """A name that nobody has used before, nor will after a restart."""
        self._links += 1
        return f"{self.me}.{round(self.now * 1e6)}.{self._links}"

    def lock(self, peer: PeerId, key: object, slots: Sequence[Slot], *links: str) -> None:
        """A request about these slots goes to a peer."""
        for slot in slots:
            slot.locked = True
        ends = [end.link for slot in slots for end in (slot.inflow, slot.outflow) if end is not None]
        self.pending = Pending(peer, key, tuple(slots), self.now, frozenset([*ends, *links]))

    # ---- costs

    def cost_us(self, slot: Slot) -> int:
        """From here to the sink."""
        if slot.outflow is None:
            return 0
        return self.near.after_us[slot.outflow.peer] + slot.beyond_us

    def others_us(self, slot: Slot) -> dict[str, int]:
        """What the same path would cost if it ended at another data peer, the cheapest first."""
        if slot.outflow is None or self.slots.is_sink:
            return {}
        after = self.near.after_us
        if slot.outflow.peer == slot.sink:
            found: dict[str, int] = {d: cost for d, cost in after.items() if d != slot.sink}
        else:
            found = {d: after[slot.outflow.peer] + cost for d, cost in slot.others.items()}
        return dict(sorted(found.items(), key=lambda item: (item[1], item[0]))[:MOST_OTHERS])

    # ---- announcements

    def announce_up(self, slot: Slot) -> None:
        """To the peer before: who is here, and what the path costs."""
        if slot.inflow is None or (slot.outflow is None and not self.slots.is_sink):
            return
        slot.inflow = end = replace(slot.inflow, said=slot.inflow.said + 1)
        slot.told = (slot.sink, self.cost_us(slot), self.others_us(slot))
        self.say(end.peer, PathIs(end.link, end.said, self.me, *slot.told))

    def announce_down(self, slot: Slot) -> None:
        """To the peer after: who is here, and whose flow it is."""
        if slot.outflow is not None:
            slot.outflow = end = replace(slot.outflow, said=slot.outflow.said + 1)
            self.say(end.peer, UpstreamIs(end.link, end.said, self.me, slot.sink))

    def refresh(self, slot: Slot) -> None:
        """Announce what has changed."""
        if slot.inflow is None or slot.outflow is None or slot.locked:
            return
        if slot.told != (slot.sink, self.cost_us(slot), self.others_us(slot)):
            self.announce_up(slot)

    def relabel(self, slot: Slot, sink: PeerId) -> None:
        """The path is to end at another data peer from now on."""
        ends_here = slot.outflow is not None and slot.outflow.peer == slot.sink
        if slot.outflow is not None and not ends_here:
            after_us = self.near.after_us[slot.outflow.peer]
            slot.beyond_us = self.others_us(slot).get(sink, slot.beyond_us + after_us) - after_us
            slot.others = {}
            slot.sink = sink
            self.announce_down(slot)
            return
        slot.sink = sink
        self.cancel_out(slot)

    # ---- ends that go away

    def cancel_out(self, slot: Slot) -> None:
        """Give up the path of a slot, and say so."""
        if slot.outflow is not None:
            self.say(slot.outflow.peer, CancelFlow(slot.outflow.link, slot.outflow.said + 1))
            self.slots.set_out(slot, None, self.now)

    def push_back(self, slot: Slot) -> None:
        """Give up the flow of a slot, and say so."""
        if slot.inflow is not None:
            self.say(slot.inflow.peer, PathLost(slot.inflow.link, slot.inflow.said + 1))
            self.slots.set_in(slot, None, self.now)

    def give_up_gone(self, slot: Slot) -> None:
        """An end that has just come here is worth nothing when the peer at the other end of the hop has left before: whoever
        gave it did not know yet, and nobody will ever tell this side again."""
        if slot.inflow is not None and slot.inflow.peer in self.gone:
            self.push_back(slot)
        if slot.outflow is not None and (slot.outflow.peer in self.gone or slot.outflow.peer not in self.near.after_us):
            self.cancel_out(slot)

    def forget(self) -> None:
        """What is too long ago to matter to a message that is still under way."""
        for peer in [peer for peer, at in self.gone.items() if self.now - at > GONE_S]:
            del self.gone[peer]
        for given in (self.given_up, self.given_down):
            for link in [link for link, (_, at) in given.items() if self.now - at > REMEMBERED_S]:
                del given[link]


def some_of(costs_us: dict[PeerId, int], most: int, salt: str) -> dict[PeerId, int]:
    """The cheapest half of `most`, and others by a draw that depends on the salt alone; sorted by id."""
    if len(costs_us) <= most:
        return dict(sorted(costs_us.items()))
    cheapest = sorted(costs_us, key=lambda p: (costs_us[p], p))[: (most + 1) // 2]
    rest = sorted(costs_us.keys() - set(cheapest), key=lambda p: sha256(f"{salt}/{p}".encode()).digest())
    return {p: costs_us[p] for p in sorted([*cheapest, *rest[: most - len(cheapest)]])}
