"""The interface of every router: which peers does a microbatch visit next?

One `Router` lives in each peer that routes. It learns from views (records) and from hops (what sends and computations took),
and it answers requests. The same object serves first routing and repair: a repair is a request with an exclusion.
Routers are pure: time is an argument, RNG is given at construction, and what it has been told and asked decides its answers.

A router may answer with the whole rest of the route (`gwtf`: the plan is known) or with one hop (`swarm`: each holder
chooses the next); the peer that holds the microbatch asks again when the answer runs out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.negotiation.offers import Advert
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import IterationPlan, PlanRequest
from gwtf_p2p.protocol.wire.negotiation_messages import NegotiationMessage


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """Which peers should hold `microbatch` in stages `first_stage`..`last_stage`, coming from `after`?

    `rejoin` is the peer after `last_stage` that already holds the microbatch (a repair in the middle), if any.
    `is_new`: the data peer sends the microbatch on its way by the answer, which so takes a place in flight until `observe_end`.
    All else is a repair and takes none. A repair may be asked for from stage 1 on, and after `observe_end`, when a peer is lost
    that had done its part: a router that counted it as new would wait for an end that has been.
    """

    microbatch: MicrobatchId
    after: PeerId
    first_stage: Stage
    last_stage: Stage
    excluding: frozenset[PeerId] = frozenset()
    rejoin: PeerId | None = None
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Peers for `first_stage`, `first_stage + 1`, …; at least one, possibly fewer than asked for. `reason` is for the log."""

    peers: tuple[PeerId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class NoRoute:
    """Nothing can take the microbatch now, or it is not its time. `retry_s`: ask again after so long, or when the view or an
    own microbatch changes; None leaves the time to the asker."""

    reason: str
    retry_s: float | None = None


@dataclass(frozen=True, slots=True)
class HopObservation:
    """What one hop did to one microbatch, as its sender saw it.

    `seconds` runs from the start of the transfer to the receiver's notice that it computed (None: it failed).
    `is_backward` tells the pass. Refusals (BUSY, STALE) come with `seconds=None` and the verdict as `failure`.
    """

    microbatch: MicrobatchId
    sender: PeerId
    receiver: PeerId
    stage: Stage
    is_backward: bool
    seconds: float | None
    failure: str = ""


class Router(Protocol):
    """See the module docstring. `now` is in seconds and only compared with other values of `now`."""

    def observe_view(self, view: NetworkView, now: float) -> None:
        """The records changed."""

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        """A hop finished, failed or was refused."""

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        """A microbatch that this router routed from its data peer is done or withdrawn: its flow is free again."""

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        """Choose. Where the request `is_new`, the answer also decides whether to inject now."""


@runtime_checkable
class PlanningRouter(Router, Protocol):
    """A router whose plans take so long to make that it must not happen in `route`."""

    @property
    def flows(self) -> tuple[int, tuple[str, ...]]:
        """An iteration, and what this data peer's record says of its plan."""

    @property
    def counts(self) -> dict[str, int]:
        """`plans_made`, `flows_changed` and `record_updates`: views that changed what a plan goes by."""

    def revised(self, microbatch: MicrobatchId, stage: Stage) -> tuple[PeerId, ...]:
        """The stage peers from `stage` on by what is published now; empty to stay with the route that the microbatch has."""

    def planning(self, without: frozenset[PeerId], now: float) -> PlanRequest | None:
        """A plan to be made wherever it disturbs nobody, or None. `without`: peers that must not be used."""

    def planned(self, plan: IterationPlan | None) -> None:
        """What was asked for, when it is there; None when there is no such plan."""


@runtime_checkable
class TalkingRouter(Router, Protocol):
    """A router whose peers negotiate. The peer's machine carries its messages and wakes it every `tick_s` (`negotiating`)."""

    tick_s: float

    def hear(self, sender: PeerId, message: NegotiationMessage, now: float) -> None:
        """From another peer's router."""

    def tick(self, now: float) -> None:
        """Look around."""

    def lost(self, peers: frozenset[PeerId], now: float) -> None:
        """These, and no others, are lost now."""

    def passed(self, microbatch: MicrobatchId) -> None:
        """A stage peer's backward of it is done: its flow is free here."""

    def take_out(self) -> list[tuple[PeerId, NegotiationMessage]]:
        """What is to be said since the last call."""

    def news(self) -> Advert | None:
        """What this peer's record should say from now on; None when nothing has changed since the last call."""

    @property
    def advert(self) -> Advert:
        """What this peer's record should say."""

    @property
    def flow_count(self) -> int:
        """Flows of this data peer that have a path; 0 for stage peers."""
