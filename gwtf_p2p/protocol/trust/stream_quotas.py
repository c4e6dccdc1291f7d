"""How many of the streams that a peer accepts may be one sender's, and how much memory what has come half may take.

An identity costs nothing, so a bound for each does not bound them all.
- A *member* has a record that counts. Strangers have few streams each and few together: what they take, they take from each
  other. Records get about within seconds, so whoever comes to take part is soon no stranger any more.
- When there are as many streams as there may be in all, a sender that has fewer than its equal share gets one at the cost of
  the sender with the most, equal ones by id. So a thousand identities leave every other one its share.
- Streams that only watch say nothing for hours. Nobody needs more than a few.
- A frame that has come half takes its whole length; a payload that was accepted too. Both are bounded for each sender, for all
  strangers together, and in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId

IsMember = Callable[[PeerId], bool]


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a thing one member, one stranger, all strangers together and everybody together may have."""

    member: int
    stranger: int
    strangers: int
    everybody: int


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """`greetings`, `streams`, `watches` and `direct` are numbers: of streams whose opener has not said yet what they are for,
    of those it has, and among them of those that watch, and of those that came over connections of their own. `frame_bytes` are
    of frames that have come half."""

    greetings: Share
    streams: Share
    watches: Share
    direct: Share
    frame_bytes: Share


STREAM_LIMITS = StreamLimits(
    greetings=Share(member=64, stranger=16, strangers=256, everybody=1024),
    streams=Share(member=64, stranger=16, strangers=256, everybody=4096),
    watches=Share(member=8, stranger=2, strangers=64, everybody=2048),
    direct=Share(member=32, stranger=0, strangers=0, everybody=512),
    frame_bytes=Share(member=4 << 20, stranger=1 << 20, strangers=8 << 20, everybody=64 << 20),
)


@dataclass(frozen=True, slots=True)
class Admission:
    """`refused` says why not, empty when it is let in; `at_cost_of` is the sender that has to give one up for it."""

    refused: str = ""
    at_cost_of: PeerId | None = None


ADMITTED = Admission()


def over(share: Share, taken: Mapping[PeerId, int], sender: PeerId, more: int, is_member: IsMember) -> str:
    """Why the sender may not have so much `more`; empty when it may. `taken`: what each sender has."""
    member = is_member(sender)
    most = share.member if member else share.stranger
    has = taken.get(sender, 0)
    if has + more > most:
        return f"{has} of {most} are its own already"
    if not member and (all_ := sum(n for peer, n in taken.items() if not is_member(peer))) + more > share.strangers:
        return f"{all_} of {share.strangers} are strangers' already"
    if (all_ := sum(taken.values())) + more > share.everybody:
        return f"{all_} of {share.everybody} are taken"
    return ""


def admission(share: Share, taken: Mapping[PeerId, int], sender: PeerId, is_member: IsMember) -> Admission:
    """May the sender have one more? When only everybody's bound is in the way, perhaps in the place of another's."""
    unbounded = Share(share.member, share.stranger, share.strangers, sum(taken.values()) + 1)
    refused = over(unbounded, taken, sender, 1, is_member)
    if refused or sum(taken.values()) < share.everybody:
        return Admission(refused)
    greediest = max(taken, key=lambda peer: (taken[peer], peer))
    if taken.get(sender, 0) + 1 < taken[greediest]:
        return Admission(at_cost_of=greediest)
    return Admission(f"all {share.everybody} are taken")
