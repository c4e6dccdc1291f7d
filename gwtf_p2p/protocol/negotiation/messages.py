"""What peers say to each other when they negotiate flows (`negotiation`), over the same transport as all small messages.

A *hop* of a flow has two ends: the peer before (upstream) and the peer after (downstream). It keeps its name, `link`, for life;
its ends may change hands. Whoever holds an end announces itself with a version that grows with every announcement of that end,
whoever makes it. So messages may overtake each other: an older announcement is ignored.

Costs are in integer microseconds, or whatever unit the problem has. A *path* leads from a peer to a data peer, its sink.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId

NONE_QUOTED = -1
"""Quoted by whoever has seen no path: it asks the receiver to look for one."""


@dataclass(frozen=True, slots=True)
class HopEnd:
    """One end of a hop, as its holder knows it: `peer` holds the other end; `said` and `heard` are the versions of the last
    announcement of this end and of the other one."""

    link: str
    peer: PeerId
    said: int = 0
    heard: int = 0


@dataclass(frozen=True, slots=True)
class RequestFlow:
    """To a peer of the next stage: give me a path to `sink` under the name `link`, at the cost that I saw.

    `takes_over`: one that another data peer's flow uses now; the quote is then a price (see `negotiation_offers`). To a data
    peer: the flow has become its own on the way, so it is taken even if no more were wanted.
    """

    link: str
    sink: PeerId
    quoted_us: int
    takes_over: bool = False


@dataclass(frozen=True, slots=True)
class FlowAnswer:
    """To who requested. The true costs come with either answer: `offers` and `prices` are what records say too."""

    link: str
    accepted: bool
    sink: PeerId
    cost_us: int = 0
    others: Mapping[str, int] = field(default_factory=dict)
    offers: Mapping[str, int] = field(default_factory=dict)
    prices: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CancelFlow:
    """To the downstream end: nobody uses this hop any more."""

    link: str
    version: int


@dataclass(frozen=True, slots=True)
class UpstreamIs:
    """To the downstream end: `holder` is before you on this hop, and the flow is `sink`'s. Answered with `PathIs`."""

    link: str
    version: int
    holder: PeerId
    sink: PeerId


@dataclass(frozen=True, slots=True)
class PathIs:
    """To the upstream end: `holder` is after you on this hop, and from it the path to `sink` costs `cost_us`.

    `others`: what it would cost if it ended at another data peer.
    """

    link: str
    version: int
    holder: PeerId
    sink: PeerId
    cost_us: int
    others: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PathLost:
    """To the upstream end (push-back): there is no path after this hop any more; find another."""

    link: str
    version: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A flow through one peer: where it comes from, where it goes, and what the two hops and the path beyond them cost."""

    sink: PeerId
    inflow: HopEnd
    outflow: HopEnd
    before_us: int
    after_us: int
    beyond_us: int
    others: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestChange:
    """To a peer of the own stage: exchange next hops, or both hops, of one of my flows with one of yours.

    `before_us`, `after_us`: the sender's costs to peers of the stages before and after, for the receiver to judge.
    """

    token: int
    passages: tuple[Passage, ...]
    before_us: Mapping[PeerId, int]
    after_us: Mapping[PeerId, int]


@dataclass(frozen=True, slots=True)
class ChangeAnswer:
    """`chosen` of the passages changes: `outflow` is the receiver's from now on, with what lies beyond it; with `inflow`, that
    is exchanged as well.

    Without `outflow` it is a refusal. `sink` is where the path given ends now; whoever has a flow of another data peer takes it
    there.
    """

    token: int
    chosen: int = -1
    outflow: HopEnd | None = None
    inflow: HopEnd | None = None
    sink: PeerId | None = None
    beyond_us: int = 0
    others: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestRedirect:
    """To a peer of the own stage with room: take one of these flows over, if it is cheaper through you."""

    token: int
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class RedirectAnswer:
    """Taken over: the inflow of one passage and the outflow of one, perhaps another; -1 and -1 for a refusal.

    `keeps_path`: that outflow stays with the receiver, without a flow; the sender had a cheaper path of its own.
    """

    token: int
    inflow: int = -1
    outflow: int = -1
    keeps_path: bool = False


@dataclass(frozen=True, slots=True)
class CheckFlows:
    """CHECK_FLOW: I hold the upstream (or downstream) end of these hops, and you the other. Answered if you do not."""

    links: tuple[str, ...]
    upstream: bool


@dataclass(frozen=True, slots=True)
class UnknownFlows:
    """These hops, whose upstream (or downstream) end you believe to hold, do not lead here (or come from here)."""

    links: tuple[str, ...]
    upstream: bool


NegotiationMessage = (
    RequestFlow
    | FlowAnswer
    | CancelFlow
    | UpstreamIs
    | PathIs
    | PathLost
    | RequestChange
    | ChangeAnswer
    | RequestRedirect
    | RedirectAnswer
    | CheckFlows
    | UnknownFlows
)
DOWNWARD = (RequestFlow, CancelFlow, UpstreamIs)
"""From the stage before. A data peer gets these as the sink of its flows, all others as their source."""
