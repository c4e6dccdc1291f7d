"""What peers say to each other when they negotiate flows (`negotiation`), over the same transport as all small messages.

A *hop* of a flow has two ends: the peer before (upstream) and the peer after (downstream). It keeps its name, `link`, for life;
its ends may change hands. Whoever holds an end announces itself with a version that grows with every announcement of that end,
whoever makes it. So messages may overtake each other: an older announcement is ignored.

Costs are in integer microseconds, or whatever unit the problem has. A *path* leads from a peer to a data peer, its sink.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval, Len

from gwtf_p2p.protocol.limits import MOST_PEERS
from gwtf_p2p.protocol.wire.bounds import Costs, Count, Microseconds, Name, Peer, PeerCosts

Choice = Annotated[int, Interval(ge=-1, le=MOST_PEERS)]
Links = Annotated[tuple[Name, ...], Len(0, MOST_PEERS)]

NONE_QUOTED = -1
"""Quoted by whoever has seen no path: it asks the receiver to look for one."""


@dataclass(frozen=True, slots=True)
class HopEnd:
    """One end of a hop, as its holder knows it: `peer` holds the other end; `said` and `heard` are the versions of the last
    announcement of this end and of the other one."""

    link: Name
    peer: Peer
    said: Count = 0
    heard: Count = 0


@dataclass(frozen=True, slots=True)
class RequestFlow:
    """To a peer of the next stage: give me a path to `sink` under the name `link`, at the cost that I saw.

    `takes_over`: one that another data peer's flow uses now; the quote is then a price (see `negotiation_offers`). To a data
    peer: the flow has become its own on the way, so it is taken even if no more were wanted.
    """

    link: Name
    sink: Peer
    quoted_us: Microseconds
    takes_over: bool = False


@dataclass(frozen=True, slots=True)
class FlowAnswer:
    """To who requested. The true costs come with either answer: `offers` and `prices` are what records say too."""

    link: Name
    accepted: bool
    sink: Peer
    cost_us: Microseconds = 0
    others: Costs = field(default_factory=dict)
    offers: Costs = field(default_factory=dict)
    prices: Costs = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CancelFlow:
    """To the downstream end: nobody uses this hop any more."""

    link: Name
    version: Count


@dataclass(frozen=True, slots=True)
class UpstreamIs:
    """To the downstream end: `holder` is before you on this hop, and the flow is `sink`'s. Answered with `PathIs`."""

    link: Name
    version: Count
    holder: Peer
    sink: Peer


@dataclass(frozen=True, slots=True)
class PathIs:
    """To the upstream end: `holder` is after you on this hop, and from it the path to `sink` costs `cost_us`.

    `others`: what it would cost if it ended at another data peer.
    """

    link: Name
    version: Count
    holder: Peer
    sink: Peer
    cost_us: Microseconds
    others: Costs = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PathLost:
    """To the upstream end (push-back): there is no path after this hop any more; find another."""

    link: Name
    version: Count


@dataclass(frozen=True, slots=True)
class Passage:
    """A flow through one peer: where it comes from, where it goes, and what the two hops and the path beyond them cost."""

    sink: Peer
    inflow: HopEnd
    outflow: HopEnd
    before_us: Microseconds
    after_us: Microseconds
    beyond_us: Microseconds
    others: Costs = field(default_factory=dict)


Passages = Annotated[tuple[Passage, ...], Len(0, MOST_PEERS)]


@dataclass(frozen=True, slots=True)
class RequestChange:
    """To a peer of the own stage: exchange next hops, or both hops, of one of my flows with one of yours.

    `before_us`, `after_us`: the sender's costs to peers of the stages before and after, for the receiver to judge.
    """

    token: Count
    passages: Passages
    before_us: PeerCosts
    after_us: PeerCosts


@dataclass(frozen=True, slots=True)
class ChangeAnswer:
    """`chosen` of the passages changes: `outflow` is the receiver's from now on, with what lies beyond it; with `inflow`, that
    is exchanged as well.

    Without `outflow` it is a refusal. `sink` is where the path given ends now; whoever has a flow of another data peer takes it
    there.
    """

    token: Count
    chosen: Choice = -1
    outflow: HopEnd | None = None
    inflow: HopEnd | None = None
    sink: Peer | None = None
    beyond_us: Microseconds = 0
    others: Costs = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestRedirect:
    """To a peer of the own stage with room: take one of these flows over, if it is cheaper through you."""

    token: Count
    passages: Passages


@dataclass(frozen=True, slots=True)
class RedirectAnswer:
    """Taken over: the inflow of one passage and the outflow of one, perhaps another; -1 and -1 for a refusal.

    `keeps_path`: that outflow stays with the receiver, without a flow; the sender had a cheaper path of its own.
    """

    token: Count
    inflow: Choice = -1
    outflow: Choice = -1
    keeps_path: bool = False


@dataclass(frozen=True, slots=True)
class CheckFlows:
    """CHECK_FLOW: I hold the upstream (or downstream) end of these hops, and you the other. Answered if you do not."""

    links: Links
    upstream: bool


@dataclass(frozen=True, slots=True)
class UnknownFlows:
    """These hops, whose upstream (or downstream) end you believe to hold, do not lead here (or come from here)."""

    links: Links
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
