"""`negotiated`: flows agreed between neighbours (`negotiation`), the paper's decentralised algorithm.

A peer plans nothing and sees only the records of the stages around it: its own hops, what the next stage offers, and who is
beside it. Rules:

- A data peer injects a microbatch on the cheapest of its flows that is free; `observe_end` frees it. Each stage peer sends it
on
  along a flow of the same data peer that no other microbatch uses there, so nobody knows a whole route.
- Data peers want no more flows than their fair share of what the records say that the stages can carry.
- A repair of one stage, and whatever has no free flow, takes the cheapest way among peers with room (`cheapest`). So does a
  data peer that has no flow, with one microbatch at a time and only `PATIENCE_S` after its first view.
"""

from __future__ import annotations

from random import Random

from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.flow.plan_keeper import fair_shares
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.negotiation.negotiator import Advert, Near, NegotiationConfig, Negotiator
from gwtf_p2p.protocol.negotiation.side import some_of
from gwtf_p2p.protocol.negotiation.slots import Slot
from gwtf_p2p.protocol.routers.cheapest import CheapestWays
from gwtf_p2p.protocol.routers.spare import SpareCapacity
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.negotiation_messages import NegotiationMessage
from gwtf_p2p.protocol.wire.records import StageRecord

PATIENCE_S = 20.0
"""How long a data peer waits for its first flow before it sends without one."""

PUBLISHED_EVERY_S = 1.0
"""At most: what changes in between goes out together."""

_NOBODY = Near()


class NegotiatedRouter:
    """The router of one peer; `random` must be its own."""

    def __init__(self, me: PeerId, config: NegotiationConfig, random: Random) -> None:
        self.me, self.config, self.tick_s = me, config, config.tick_s
        self.negotiator: Negotiator | None = None
        self._random = random
        self._spare = SpareCapacity()
        self._ways = CheapestWays(me, self._spare)
        self._flying: set[MicrobatchId] = set()
        self._in_use: dict[MicrobatchId, str] = {}
        self._lost: frozenset[PeerId] = frozenset()
        self._published = Advert({}, {})
        self._published_at = self._seen_at = -1.0
        self._now = 0.0
        self._costs: dict[PeerId, tuple[StageRecord, StageRecord, int]] = {}
        self._heard: dict[PeerId, int] = {}

    # ---- what it learns

    def observe_view(self, view: NetworkView, now: float) -> None:
        self._now = now
        self._spare.observe_view(view)
        own = view.records.get(self.me)
        if own is None:
            return
        if self._seen_at < 0:
            self._seen_at = now
        is_data_peer = own.stage == DATA_STAGE
        if self.negotiator is None or (self.negotiator.parts[-1].side.slots.is_sink != is_data_peer):
            self.negotiator = Negotiator(self.me, self.config, self._random, is_data_peer=is_data_peer)
        self._own_measurements_changed(view, own)

    def _own_measurements_changed(self, view: NetworkView, own: StageRecord) -> None:
        assert self.negotiator is not None
        near = self._near(view, own) if own.is_routable else _NOBODY
        capacity = self._fair_share(view) if own.stage == DATA_STAGE else own.capacity
        self.negotiator.know(near, capacity, self._now)
        for peer in near.after_us:
            record = view.records[peer]
            if self._heard.get(peer) != record.sequence_number:
                self._heard[peer] = record.sequence_number
                self.negotiator.hear_advert(peer, Advert(record.cost_to_sink_us, record.takeover_us), self._now)

    def _near(self, view: NetworkView, own: StageRecord) -> Near:
        stage, last = own.stage, view.stages
        before = self._hops(view, own, Stage(last if stage == DATA_STAGE else stage - 1))
        after = self._hops(view, own, Stage((stage + 1) % (last + 1)))
        beside = dict.fromkeys(view.peers_of_stage(stage) if stage != DATA_STAGE else (), 0)
        for gone in (self.me, *self._lost):
            beside.pop(gone, None)
        known = self.config.known
        return Near(before, some_of(after, known, self.me), tuple(some_of(beside, known, self.me)))

    def _hops(self, view: NetworkView, own: StageRecord, stage: Stage) -> dict[PeerId, int]:
        """The cost of the hop to each peer of a stage. Made anew only for records that have changed."""
        costs: dict[PeerId, int] = {}
        for peer in view.peers_of_stage(stage):
            if peer in self._lost:
                continue
            record, known = view.records[peer], self._costs.get(peer)
            if known is None or known[0] is not own or known[1] is not record:
                known = self._costs[peer] = (own, record, view.hop_cost_us(self.me, peer))
            costs[peer] = known[2]
        return costs

    def _fair_share(self, view: NetworkView) -> int:
        data_peers = view.data_peers
        if self.me not in data_peers:
            return 0
        wanted = [max(0, view.records[p].capacity) for p in data_peers]
        stages = [view.peers_of_stage(Stage(k)) for k in range(1, view.stages + 1)]
        room = min(sum(view.records[p].capacity for p in peers) for peers in stages)
        return fair_shares(room, wanted)[data_peers.index(self.me)]

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        self._spare.observe_hop(hop)

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        self._flying.discard(microbatch)
        self._spare.observe_end(microbatch)
        self._in_use.pop(microbatch, None)

    # ---- what it answers

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        """The next peer of a free flow; for a repair, the cheapest way."""
        view = self._spare.view
        if view is None or request.after not in view.records or self.negotiator is None:
            return NoRoute("own record is not in the view yet")
        if not request.is_new:
            free = self._free(request) if request.rejoin is None else []
            return self._along(request, free) if free else self._ways.cheapest(request)
        flows = self.negotiator.flows
        in_use = len(self._flying)
        if flows and in_use >= len(flows):
            return NoRoute(f"all {len(flows)} flows are in use")
        free = self._free(request)
        if not flows and (in_use or now - self._seen_at < PATIENCE_S):
            return NoRoute("no flow yet" if not in_use else "no flow, and one microbatch is under way")
        answer = self._along(request, free) if free else self._ways.cheapest(request)
        if isinstance(answer, Route):
            self._flying.add(request.microbatch)
        return answer

    def _free(self, request: RouteRequest) -> list[Slot]:
        """Paths back to the microbatch's data peer that no microbatch uses here, the cheapest first."""
        assert self.negotiator is not None
        slots, used = self.negotiator.slots, set(self._in_use.values())
        if request.first_stage > request.last_stage:
            return []
        free = [
            s
            for s in slots
            if s.outflow is not None
            and s.sink == request.microbatch.data_peer
            and s.outflow.link not in used
            and s.outflow.peer not in request.excluding
        ]
        side = self.negotiator.parts[0].side
        return sorted(free, key=lambda s: (not slots.is_used(s), side.cost_us(s)))

    def _along(self, request: RouteRequest, free: list[Slot]) -> Route:
        slot = free[0]
        assert slot.outflow is not None and self.negotiator is not None
        self._in_use[request.microbatch] = slot.outflow.link
        cost_us = self.negotiator.parts[0].side.cost_us(slot)
        return Route((slot.outflow.peer,), f"flow of {cost_us} us from here, {len(free)} free")

    # ---- what it says (`TalkingRouter`)

    def hear(self, sender: PeerId, message: NegotiationMessage, now: float) -> None:
        self._now = now
        if self.negotiator is not None:
            self.negotiator.hear(sender, message, now)

    def tick(self, now: float) -> None:
        self._now = now
        if self.negotiator is not None:
            self.negotiator.tick(now)

    def lost(self, peers: frozenset[PeerId], now: float) -> None:
        self._now, new = now, peers - self._lost
        self._lost = peers
        if self.negotiator is None or self._spare.view is None:
            return
        for peer in sorted(new):
            self.negotiator.gone(peer, now)
        own = self._spare.view.records.get(self.me)
        if own is not None:
            self._own_measurements_changed(self._spare.view, own)

    def passed(self, microbatch: MicrobatchId) -> None:
        self._in_use.pop(microbatch, None)

    def take_out(self) -> list[tuple[PeerId, NegotiationMessage]]:
        return self.negotiator.take_out() if self.negotiator is not None else []

    def news(self) -> Advert | None:
        advert = self.advert
        if advert == self._published or self._now - self._published_at < PUBLISHED_EVERY_S:
            return None
        self._published, self._published_at = advert, self._now
        return advert

    @property
    def advert(self) -> Advert:
        return self.negotiator.advert() if self.negotiator is not None else Advert({}, {})

    @property
    def flow_count(self) -> int:
        is_source = self.negotiator is not None and self.negotiator.slots.is_source
        return len(self.negotiator.flows) if self.negotiator is not None and is_source else 0
