"""What plans of iterations are made of and what they say: plain data, which events and effects carry and logs keep.

`PipelineFigures` is what of a view matters for a plan. It compares by value, so a record that changes nothing else (its
occupancy, its age) calls for no new plan. How a plan follows from a request is `schedule/iteration_plan`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256

from gwtf_p2p.protocol.ids import PeerId, Stage

LinkFigures = tuple[PeerId, float, float]
"""To whom, one-way latency in seconds, bytes/s."""

Swarm = tuple[tuple[PeerId, Stage, int], ...]
"""Who is there, in which stage, and how much each takes: a plan for others is of no use."""

Flow = tuple[PeerId, tuple[PeerId, ...]]
"""Data peer, stage peers; a stage peer that is not known any more is ''."""

TAG_DIGITS = 8
"""Of a stage peer's id in a published flow: ids are long, and a stage peer is only looked for in one stage."""


HASHED_PEERS = 16


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """Seconds of one microbatch: `before_s` is a forward or an embedding, `after_s` a backward or a finish."""

    peer: PeerId
    stage: Stage
    capacity: int
    before_s: float
    after_s: float
    loss_s: float
    line_bytes_per_s: float
    links: tuple[LinkFigures, ...]
    recomputes: bool = False


@dataclass(frozen=True)
class PipelineFigures:
    """`peers` sorted by id; every stage has one at least. Bytes of one hop forwards, of one back, and of one to or from thin
    data peers."""

    stages: int
    microbatch_bytes: int
    gradient_bytes: int
    peers: tuple[PeerFigures, ...]
    end_bytes: int | None = None

    def __hash__(self) -> int:
        """Of some of the peers: to look at all measurements of all would take longer than to compare two that differ."""
        some = self.peers[:: max(1, len(self.peers) // HASHED_PEERS)]
        return hash((self.microbatch_bytes, len(self.peers), tuple((p.peer, p.before_s, p.line_bytes_per_s) for p in some)))

    @cached_property
    def swarm(self) -> Swarm:
        return tuple((p.peer, p.stage, p.capacity) for p in self.peers)


@dataclass(frozen=True, slots=True)
class PlannedFlow:
    """One microbatch of `data_peer`. `release_s`: when it leaves, after its data peer's iteration has begun; `finish_s`: when
    it is forecast to be back."""

    data_peer: PeerId
    stage_peers: tuple[PeerId, ...]
    release_s: float
    finish_s: float


@dataclass(frozen=True)
class IterationPlan:
    """The flows of all data peers in the order of their release. `makespan_s` is the forecast of the whole. A revision is
    for the iteration at hand: of the plan that it `revises`, `begun_ticks` after the beginning, when the peers were those of
    `figures`."""

    figures: PipelineFigures
    flows: tuple[PlannedFlow, ...]
    makespan_s: float
    reason: str
    revises: IterationPlan | None = None
    begun_ticks: int = 0

    def __hash__(self) -> int:
        """Plans that differ, differ in how long they take."""
        return hash((self.makespan_s, self.begun_ticks, len(self.flows)))

    @property
    def is_revision(self) -> bool:
        return self.revises is not None

    def share_of(self, data_peer: PeerId) -> tuple[PlannedFlow, ...]:
        return self._shares.get(data_peer, ())

    @cached_property
    def _shares(self) -> Mapping[PeerId, tuple[PlannedFlow, ...]]:
        shares: dict[PeerId, list[PlannedFlow]] = {}
        for flow in self.flows:
            shares.setdefault(flow.data_peer, []).append(flow)
        return {data_peer: tuple(share) for data_peer, share in shares.items()}

    def changed_from(self, other: IterationPlan) -> int:
        """Flows that came or went."""
        one, two = (Counter((f.data_peer, f.stage_peers) for f in plan.flows) for plan in (self, other))
        return ((one - two) + (two - one)).total()

    def published_by(self, data_peer: PeerId) -> tuple[str, ...]:
        """One text per flow: its place in the plan, and eight digits per stage peer."""
        return self._published.get(data_peer, ())

    @cached_property
    def _published(self) -> Mapping[PeerId, tuple[str, ...]]:
        texts: dict[PeerId, list[str]] = {}
        for n, flow in enumerate(self.flows):
            texts.setdefault(flow.data_peer, []).append(f"{n}:{''.join(map(tag, flow.stage_peers))}")
        return {data_peer: tuple(share) for data_peer, share in texts.items()}


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """All that a plan follows from: of the next iteration, going on from the `published` flows; or of the one at hand, which
    has run for `begun_ticks` by the plan that it `revises`. `of_all`, in a large swarm: with those whom this peer alone must
    not use; others make that plan as well, and each replaces its own in it."""

    figures: PipelineFigures
    seed: int
    published: tuple[Flow, ...] = ()
    revises: IterationPlan | None = None
    begun_ticks: int = 0
    of_all: PipelineFigures | None = None


@lru_cache(maxsize=1 << 14)
def tag(stage_peer: PeerId) -> str:
    return sha256(stage_peer.encode()).hexdigest()[:TAG_DIGITS]
