"""Repairs in a large swarm: who takes the place of a stage peer that whoever holds a microbatch must not hand it to.

In a small swarm all published flows are mended together (`iteration_plan.Mended`). In a large one somebody repairs something at
every moment, each by other records and without other peers: what a repair looks at must not grow with the swarm. So each stage
is mended by itself, and only when it is asked for: all flows in which this stage has a gap, in the order of the plan, each gap
as `mending` prices it. A neighbour in a flow that is not there either counts as nowhere.

Whoever repairs one of these flows by the same records, without the same peers of this stage, makes the same choice for the
others, so they do not all go to one stage peer.
"""

from __future__ import annotations

from functools import cached_property

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.schedule.from_view import seconds_of, typical_s
from gwtf_p2p.protocol.schedule.mending import Does, looked_at
from gwtf_p2p.protocol.schedule.model import UNLIMITED
from gwtf_p2p.protocol.schedule.published import published_flows
from gwtf_p2p.protocol.view.network_view import NetworkView

_Chosen = dict[int, PeerId]
"""Flow, by its place in the plan, and who takes the gap."""

_STAGES_REMEMBERED = 256
"""Of one view, each without certain peers."""


class Repairs:
    """What one view's published flows become without certain peers."""

    def __init__(self, view: NetworkView) -> None:
        self._view, self._hops = view, view.hops
        self._flows = published_flows(view)
        self._shares: dict[PeerId, list[int]] = {}
        for m, (data_peer, _) in enumerate(self._flows):
            self._shares.setdefault(data_peer, []).append(m)
        self._planned: dict[Stage, dict[PeerId, list[int]]] = {}
        self._chosen: dict[tuple[Stage, frozenset[PeerId]], _Chosen] = {}

    def flow_for(
        self, microbatch: MicrobatchId, stages: tuple[Stage, Stage], excluding: frozenset[PeerId]
    ) -> tuple[PeerId, ...] | None:
        """Its stage peers of these stages (first, last); None when nothing is published for it, or a stage has nobody left."""
        share = self._shares.get(microbatch.data_peer)
        if not share or microbatch.data_peer in excluding:
            return None
        m = share[microbatch.index % len(share)]
        found = []
        for k in range(stages[0], stages[1] + 1):
            stage_peer = self._at(Stage(k), m, excluding)
            if stage_peer is None:
                return None
            found.append(stage_peer)
        return tuple(found)

    def _at(self, stage: Stage, m: int, excluding: frozenset[PeerId]) -> PeerId | None:
        planned = self._flows[m][1][stage - 1]
        if planned not in excluding and planned in self._view.peers_of_stage(stage):
            return planned
        barred = excluding.intersection(self._view.peers_of_stage(stage))
        known = self._chosen.get((stage, barred))
        if known is None:
            if len(self._chosen) >= _STAGES_REMEMBERED:
                self._chosen.clear()
            known = self._chosen[stage, barred] = self._mended(stage, barred)
        return known.get(m)

    def _mended(self, stage: Stage, barred: frozenset[PeerId]) -> _Chosen:
        """Who takes each gap of a stage; nobody, when the stage has nobody left."""
        planned = self._planned_at(stage)
        able = [peer for peer in self._view.peers_of_stage(stage) if peer not in barred]
        if not able:
            return {}
        there = set(able)
        taken = {peer: len(planned.get(peer, ())) for peer in able}
        chosen: _Chosen = {}
        for m in sorted(m for peer, flows in planned.items() if peer not in there for m in flows):
            chosen[m] = self._soonest(stage, m, able, taken)
            taken[chosen[m]] += 1
        return chosen

    def _planned_at(self, stage: Stage) -> dict[PeerId, list[int]]:
        planned = self._planned.get(stage)
        if planned is None:
            planned = self._planned[stage] = {}
            for m, (_, stage_peers) in enumerate(self._flows):
                planned.setdefault(stage_peers[stage - 1], []).append(m)
        return planned

    def _soonest(self, stage: Stage, m: int, able: list[PeerId], taken: dict[PeerId, int]) -> PeerId:
        """As `mending` chooses."""
        data_peer, stage_peers = self._flows[m]
        above = stage_peers[stage - 2] if stage > 1 else data_peer
        below = stage_peers[stage] if stage < self._view.stages else data_peer

        def price(peer: PeerId) -> tuple[bool, float, PeerId]:
            record = self._view.records[peer]
            slots = record.capacity if record.capacity > 0 else UNLIMITED
            does = Does(*seconds_of(record, self._typical[stage]), slots, record.recomputes)
            way_s = self._there_and_back_s(stage - 1, above, peer) + self._there_and_back_s(stage, peer, below)
            return (*does.price(taken[peer], way_s), peer)

        return min(looked_at(able, m + stage), key=price)

    @cached_property
    def _typical(self) -> dict[Stage, tuple[float, float]]:
        return typical_s(record for record in self._view.records.values() if record.is_routable)

    def _there_and_back_s(self, k: int, above: PeerId, below: PeerId) -> float:
        """An activation over hop k and its gradient back, idle; nothing where one of the two is not there."""
        view = self._view
        ends = [view.records.get(peer) for peer in (above, below)]
        lines = [record.line_bytes_per_s or float("inf") for record in ends if record is not None]
        if len(lines) < len(ends):
            return 0.0
        forth, back = view.link(above, below), view.link(below, above)
        return (
            forth.latency_s
            + self._hops.forth(k) / min(forth.bandwidth_bytes_per_s, *lines)
            + back.latency_s
            + self._hops.back(k) / min(back.bandwidth_bytes_per_s, *lines)
        )
