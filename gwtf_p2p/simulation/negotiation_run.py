"""Negotiates the flows of a problem file in virtual time: `gwtf plan --router negotiated`, without records or microbatches.

A peer is a `Negotiator` and no more. It knows its own hops, the peers beside it, and what peers of the next stage advertise; an
advert reaches the stage before as a message would, and is counted apart. Every pair of peers has a latency of its own, drawn
from `LATENCY_S` by the seed, as problem files give costs rather than times.

It ends when all peers rest (nobody has found a move, and no message is under way), or after `MOST_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from random import Random

from gwtf_p2p.protocol.flow.min_cost import FAR
from gwtf_p2p.protocol.flow.plan_keeper import Flow, Plan
from gwtf_p2p.protocol.flow.problem import Problem
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.negotiator import Advert, Near, NegotiationConfig, Negotiator
from gwtf_p2p.protocol.negotiation.side import some_of
from gwtf_p2p.protocol.wire.negotiation_messages import NegotiationMessage
from gwtf_p2p.simulation.lines.kernel import Kernel

THOROUGH = NegotiationConfig(temperature=0.3, cooling_s=200.0)
"""A problem file has no microbatches that wait for the annealing to end."""

LATENCY_S = (0.01, 0.15)
MOST_S = 7200.0
RENEWED_S = 30.0
"""After which an advert is shown again, as a record is."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """`full_at_s`: when the data peers first held as many flows as in the end. `seconds`: when all was converged."""

    plan: Plan
    messages: int
    adverts: int
    moves: int
    full_at_s: float
    seconds: float

    @property
    def reason(self) -> str:
        count = len(self.plan.flows)
        return (
            f"{count} flows after {self.full_at_s:.1f} virtual seconds; {self.moves} moves and {self.messages} messages "
            f"(and {self.adverts} adverts) in {self.seconds:.0f} s"
        )


class Negotiation:
    """All peers of a problem. `on_step` is called after every event, for tests."""

    def __init__(self, problem: Problem, seed: int, config: NegotiationConfig | None = None) -> None:
        self.problem, self.seed = problem, seed
        self.config = config or THOROUGH
        self.kernel = Kernel()
        self.random = Random(seed)
        self.peers: dict[PeerId, Negotiator] = {}
        self.lost: set[PeerId] = set()
        self.on_step: Callable[[], None] = lambda: None
        self.adverts = 0
        self.under_way = 0
        self._advertised: dict[PeerId, tuple[Advert, float]] = {}
        self._near = neighbourhoods(problem, self.config.known, seed)
        self._epoch: list[tuple[float, int]] = [(0.0, 0)]
        self._latency_s: dict[tuple[PeerId, PeerId], float] = {}
        for layer in range(problem.stages + 1):
            for index, peer in enumerate(problem.layers[layer]):
                own = Random(int.from_bytes(sha256(f"{seed}/{peer}".encode()).digest()[:8]))
                self.peers[peer] = Negotiator(peer, self.config, own, is_data_peer=layer == 0)
                self._first_tick(peer, int(problem.capacities[layer][index]))

    def _first_tick(self, peer: PeerId, capacity: int) -> None:
        def begin() -> None:
            self.peers[peer].know(self._near[peer], capacity, self.kernel.now)
            self._after(peer)
            self.kernel.after(self.config.tick_s, tick)

        def tick() -> None:
            if peer not in self.lost:
                self.peers[peer].tick(self.kernel.now)
                self._advertise(peer)
                self._after(peer)
                self.kernel.after(self.config.tick_s, tick)

        self.kernel.at(self.random.random() * self.config.tick_s, begin)

    # ---- the world

    def latency_s(self, one: PeerId, other: PeerId) -> float:
        pair = (one, other) if one < other else (other, one)
        if pair not in self._latency_s:
            share = int.from_bytes(sha256(f"{self.seed}/{pair[0]}/{pair[1]}".encode()).digest()[:4]) / 2**32
            self._latency_s[pair] = LATENCY_S[0] + (LATENCY_S[1] - LATENCY_S[0]) * share
        return self._latency_s[pair]

    def _after(self, peer: PeerId) -> None:
        """Send what a peer wants to say."""
        for to, message in self.peers[peer].take_out():
            self._send(peer, to, message)
        if peer in self.problem.layers[0]:
            count = sum(len(self.peers[d].flows) for d in self.problem.layers[0] if d not in self.lost)
            if count != self._epoch[-1][1]:
                self._epoch.append((self.kernel.now, count))
        self.on_step()

    def _send(self, sender: PeerId, to: PeerId, message: NegotiationMessage) -> None:
        self.under_way += 1

        def arrive() -> None:
            self.under_way -= 1
            if to not in self.lost and sender not in self.lost:
                self.peers[to].hear(sender, message, self.kernel.now)
                self._after(to)

        self.kernel.after(self.latency_s(sender, to), arrive)

    def _advertise(self, peer: PeerId) -> None:
        """What is new at once, the rest now and then, as records are renewed: an answer may have told something else since."""
        advert, now = self.peers[peer].advert(), self.kernel.now
        told, told_at = self._advertised.get(peer, (None, 0.0))
        if advert == told and now - told_at < RENEWED_S:
            return
        self._advertised[peer] = advert, now
        for other in sorted(self._near[peer].before_us):
            if other not in self.lost:
                self.adverts += 1
                self.kernel.after(self.latency_s(peer, other), partial(self._show, other, peer, advert))

    def _show(self, to: PeerId, about: PeerId, advert: Advert) -> None:
        if to not in self.lost and about not in self.lost:
            self.peers[to].hear_advert(about, advert, self.kernel.now)
            self._after(to)

    def lose(self, peer: PeerId) -> None:
        """A peer stops; its neighbours notice after one latency."""
        self.lost.add(peer)
        near = self._near[peer]
        for other in sorted({*near.before_us, *near.after_us, *near.beside} - self.lost):
            self.kernel.after(self.latency_s(peer, other), partial(self._miss, other, peer))

    def _miss(self, to: PeerId, peer: PeerId) -> None:
        if to not in self.lost:
            self.peers[to].gone(peer, self.kernel.now)
            self._after(to)

    # ---- running and reading

    def run(self, most_s: float = MOST_S) -> Negotiated:
        """Until all is converged."""
        self.kernel.run(self.has_converged, most_s)
        return self.outcome()

    def has_converged(self) -> bool:
        if self.under_way or self.kernel.now < self.config.patience_s:
            return False
        return all(n.has_converged for p, n in self.peers.items() if p not in self.lost)

    def outcome(self) -> Negotiated:
        plan = self.plan()
        count = self._epoch[-1][1]
        return Negotiated(
            plan=plan,
            messages=sum(n.messages for n in self.peers.values()),
            adverts=self.adverts,
            moves=sum(n.moves for n in self.peers.values()),
            full_at_s=next(at for at, n in self._epoch if n >= count),
            seconds=self.kernel.now,
        )

    def plan(self) -> Plan:
        """The flows that lead from their data peer, hop by hop, back to it."""
        flows = []
        for data_peer in self.problem.layers[0]:
            for slot in self.peers[data_peer].flows if data_peer not in self.lost else ():
                assert slot.outflow is not None
                path = self.walk(data_peer, slot.outflow.peer, slot.outflow.link)
                if path is not None:
                    stage_peers = tuple(path[1:-1])
                    row = tuple(self.problem.layers[k].index(p) for k, p in enumerate(path))
                    flows.append(Flow(data_peer, stage_peers, self.problem.path_cost_us(row)))
        return Plan(tuple(sorted(flows)))

    def walk(self, data_peer: PeerId, peer: PeerId, link: str) -> list[PeerId] | None:
        """Data peer, stage peers, data peer; None when it leads astray."""
        path = [data_peer]
        while peer not in self.lost:
            path.append(peer)
            if peer in self.problem.layers[0]:
                whole = peer == data_peer and link in self.peers[peer].sink_slots.by_in
                return path if whole and len(path) == self.problem.stages + 2 else None
            slot = self.peers[peer].slots.by_in.get(link)
            if slot is None or slot.outflow is None:
                return None
            peer, link = slot.outflow.peer, slot.outflow.link
        return None


def neighbourhoods(problem: Problem, known: int, seed: int) -> dict[PeerId, Near]:
    """Each peer asks at most `known` peers of the next stage: the cheapest half of them, and others at random."""
    after: dict[PeerId, dict[PeerId, int]] = {}
    before: dict[PeerId, dict[PeerId, int]] = {}
    for k, costs in enumerate(problem.costs_us):
        for i, peer in enumerate(problem.layers[k]):
            reached = {q: int(costs[i, j]) for j, q in enumerate(problem.layers[k + 1]) if costs[i, j] < FAR}
            after[peer] = some_of(reached, known, f"{seed}/{peer}")
            for q, cost_us in after[peer].items():
                before.setdefault(q, {})[peer] = cost_us
    near = {}
    for layer in problem.layers[:-1]:
        for peer in layer:
            beside = some_of(dict.fromkeys((p for p in layer if p != peer), 0), known, f"{seed}/{peer}")
            is_data = peer in problem.layers[0]
            near[peer] = Near(before.get(peer, {}), after[peer], () if is_data else tuple(sorted(beside)))
    return near


def negotiate(problem: Problem, seed: int, config: NegotiationConfig | None = None) -> Negotiated:
    """Deterministic from the problem and the seed."""
    return Negotiation(problem, seed, config).run()
