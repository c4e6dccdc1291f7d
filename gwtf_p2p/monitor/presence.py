"""Which peers have stopped answering, before their records expire (a record outlives its peer by up to three periods, 45 s).

The observer sends nothing to find out: it looks at the connections that its own p2pd has anyway, from reading the DHT. A peer
is suspected when such a connection has ended, or when every data peer has taken it out of its published plan. A suspect is
dialled once; one that cannot be dialled is *silent*, until it publishes a newer record. Peers behind a NAT that nobody can dial
are not suspected because of the plan alone: that this observer cannot reach them says nothing about them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from gwtf_p2p.live.libp2p.dialling import connect, connections
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.view.plans import TAG_DIGITS, tag
from gwtf_p2p.protocol.wire.records import PathType, StageRecord

DIAL_S = 3.0
DIALS_AT_ONCE = 8
"""A monitor must not become a burden: so many suspects are dialled in one look at most."""

Connected = Callable[[], Awaitable[frozenset[PeerId]]]
Dial = Callable[[PeerId, Sequence[str]], Awaitable[str]]
"""Connects; returns why not, or nothing."""


class Presence:
    """Remembers who was connected, who was planned on, and who is silent since which record."""

    def __init__(self, connected: Connected, dial: Dial) -> None:
        self._connected, self._dial = connected, dial
        self._met: set[PeerId] = set()
        self._planned: frozenset[str] = frozenset()
        self._suspects: set[PeerId] = set()
        self._silent: dict[PeerId, int] = {}

    async def silent(self, records: Sequence[StageRecord]) -> frozenset[PeerId]:
        """The peers of these records that do not answer."""
        newest = _newest(records)
        here = await self._connected()
        self._suspect(newest, here)
        asked = sorted(self._suspects)[:DIALS_AT_ONCE]
        whys = await asyncio.gather(*(self._dial(peer, newest[peer].maddrs) for peer in asked))
        for peer, why in zip(asked, whys, strict=True):
            self._suspects.discard(peer)
            if why:
                self._silent[peer] = newest[peer].sequence_number
                self._met.discard(peer)
        return frozenset(self._silent)

    def _suspect(self, newest: dict[PeerId, StageRecord], here: frozenset[PeerId]) -> None:
        heard = {peer for peer, at in self._silent.items() if peer not in newest or newest[peer].sequence_number != at}
        for peer in heard:
            del self._silent[peer]
        planned = _planned_tags(newest.values())
        left = self._planned - planned if planned else frozenset()
        self._planned = planned or self._planned
        online = {peer for peer, record in newest.items() if record.is_routable and peer not in self._silent}
        unplanned = {peer for peer in online if left and newest[peer].path is PathType.PUBLIC and tag(peer) in left}
        self._suspects = {
            peer for peer in (self._suspects | self._met | unplanned | heard) if peer in online and peer not in here
        }
        self._met = (self._met | here) & newest.keys()


def presence_of(control_path: str) -> Presence:
    """Asks the observer's own p2pd, whose control socket this is."""

    async def connected() -> frozenset[PeerId]:
        return frozenset(await connections(control_path))

    async def dial(peer: PeerId, maddrs: Sequence[str]) -> str:
        return await connect(control_path, peer, maddrs, DIAL_S)

    return Presence(connected, dial)


def _newest(records: Sequence[StageRecord]) -> dict[PeerId, StageRecord]:
    found: dict[PeerId, StageRecord] = {}
    for record in records:
        held = found.get(record.peer)
        if held is None or record.sequence_number > held.sequence_number:
            found[record.peer] = record
    return found


def _planned_tags(records: Iterable[StageRecord]) -> frozenset[str]:
    """The tags of all stage peers in the published plans."""
    texts = (flow.partition(":")[2] for record in records if record.stage == DATA_STAGE for flow in record.flows)
    return frozenset(text[i : i + TAG_DIGITS] for text in texts for i in range(0, len(text), TAG_DIGITS))
