"""Which stage peers take the place of those that are gone, where a swarm is large: only flows that lead through these change.

In a small swarm each loss is worth a search (`iteration_plan.revise`). Of `MANY_PEERS` and more, somebody is always coming or
going, a forecast of everybody's microbatches takes longer the more there are, and it would be made by every data peer for every
few losses. So each gap in a flow is closed by itself: by the stage peer that is soonest through with a microbatch, to and from
its neighbours in the flow and after what it is there for already (as first paths of a plan are found, `search`). One whose
slots are all spoken for, and which computes nothing again, comes after all others. Where a stage is very large, some of it are
looked at, others for each microbatch. What a mend takes grows with the gaps, and little with the swarm.

Flows that are whole keep their release. What stage peers repair meanwhile is `repairs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.schedule.from_view import pipeline_of
from gwtf_p2p.protocol.schedule.model import Pipeline
from gwtf_p2p.protocol.view.plans import Flow, PipelineFigures

MANY_PEERS = 200
"""From here on a swarm is large."""

LOOKED_AT = 64
"""Stage peers for one gap."""

GONE = -1
"""The number of a stage peer that is not there."""

STEP = 29
"""From one gap's first stage peer to the next one's: neighbours in a stage are no more alike than others."""

NOBODY: frozenset[PeerId] = frozenset()

T = TypeVar("T")


class Does(NamedTuple):
    """What a stage peer does of a microbatch: its forward and backward, both in one unit of time, in so many slots."""

    before: float
    after: float
    slots: int
    recomputes: bool

    def price(self, taken: int, way: float) -> tuple[bool, float]:
        """Of one more than it is there for already, on a way to and from its neighbours that takes so long: how soon it is
        through. Whoever has no slot left comes after all others."""
        work = self.before * (1 + self.recomputes) + self.after
        return not self.recomputes and taken >= self.slots, way + (1 + taken) * work


def with_gaps(
    pipeline: Pipeline, flows: Sequence[Flow], gone: frozenset[PeerId] = NOBODY
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """The flows in numbers of the pipeline, GONE where a stage peer is not in its stage any more, or among those that are gone;
    and these gaps, each a flow and a stage. The flows' data peers are there."""
    number = {peer: i for i, peer in enumerate(pipeline.peers) if peer not in gone}
    stage_of = {i: k for k, peers in enumerate(pipeline.stage_peers) for i in peers}
    ways: list[list[int]] = []
    gaps: list[tuple[int, int]] = []
    for m, (data_peer, stage_peers) in enumerate(flows):
        way = [number[data_peer]]
        for k, stage_peer in enumerate(stage_peers, start=1):
            i = number.get(stage_peer, GONE)
            if stage_of.get(i, DATA_STAGE) != k:
                gaps.append((m, k))
                i = GONE
            way.append(i)
        ways.append(way)
    return ways, gaps


def mended(figures: PipelineFigures, flows: Sequence[Flow], gone: frozenset[PeerId] = NOBODY) -> list[Flow]:
    """The flows of data peers that are all there, with every stage peer replaced that is gone: not among the figures, or named
    so."""
    pipeline = pipeline_of(figures)
    ways, gaps = with_gaps(pipeline, flows, gone)
    taken = Counter(i for way in ways for i in way[1:] if i != GONE)
    able = {k: [i for i in pipeline.stage_peers[k] if pipeline.peers[i] not in gone] for k in {k for _, k in gaps}}
    for m, k in gaps:
        ways[m][k] = chosen = _soonest(pipeline, ways[m], k, looked_at(able[k], m + k), taken)
        taken[chosen] += 1
    mends = {m for m, _ in gaps}
    return [(flow[0], tuple(pipeline.peers[i] for i in ways[m][1:])) if m in mends else flow for m, flow in enumerate(flows)]


def _soonest(pipeline: Pipeline, way: Sequence[int], k: int, looked: Sequence[int], taken: Counter[int]) -> int:
    """The stage peer for a gap at stage k of a flow; ties to the lowest number. A gap that follows is nowhere yet."""
    above, below = way[k - 1], way[k + 1] if k < pipeline.stages else way[0]

    def price(i: int) -> tuple[bool, float, int]:
        way_us = pipeline.there_and_back_us(k - 1, above, i)
        if below != GONE:
            way_us += pipeline.there_and_back_us(k, i, below)
        does = Does(pipeline.before_us[i], pipeline.after_us[i], pipeline.slots[i], not pipeline.waits_for_slots(i))
        return (*does.price(taken[i], way_us), i)

    return min(looked, key=price)


def looked_at(peers: Sequence[T], gap: int) -> Sequence[T]:
    """All of a stage, or a part of it."""
    if len(peers) <= LOOKED_AT:
        return peers
    first = gap * STEP % len(peers)
    return [*peers[first : first + LOOKED_AT], *peers[: max(0, first + LOOKED_AT - len(peers))]]
