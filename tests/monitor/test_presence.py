"""A peer that has stopped answering is noticed before its record expires, and nobody is accused who only cannot be dialled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gwtf_p2p.monitor.presence import DIALS_AT_ONCE, Presence
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import PathType
from tests.monitor.watched import A1, A2, B1, DATA, planned, record, swarm


@dataclass
class Network:
    """Who is connected, who can be dialled, and who was dialled."""

    connected: set[PeerId] = field(default_factory=lambda: {DATA, A1, A2, B1})
    alive: set[PeerId] = field(default_factory=lambda: {DATA, A1, A2, B1})
    dialled: list[PeerId] = field(default_factory=list)

    async def connections(self) -> frozenset[PeerId]:
        return frozenset(self.connected)

    async def dial(self, peer: PeerId, maddrs: Sequence[str]) -> str:
        self.dialled.append(peer)
        return "" if peer in self.alive else "refused"

    def presence(self) -> Presence:
        return Presence(self.connections, self.dial)

    def crash(self, peer: PeerId) -> None:
        self.connected.discard(peer)
        self.alive.discard(peer)


async def test_a_lost_connection_to_a_peer_that_cannot_be_dialled_makes_it_silent() -> None:
    network = Network()
    presence = network.presence()
    assert await presence.silent(swarm()) == frozenset()
    network.crash(A1)
    assert await presence.silent(swarm()) == {A1}
    assert await presence.silent(swarm()) == {A1} and network.dialled == [A1], "it is dialled once"


async def test_a_connection_that_was_only_closed_accuses_nobody() -> None:
    network = Network()
    presence = network.presence()
    await presence.silent(swarm())
    network.connected.discard(A1)
    assert await presence.silent(swarm()) == frozenset() and network.dialled == [A1]


async def test_a_peer_that_publishes_again_is_not_silent() -> None:
    network = Network()
    presence = network.presence()
    await presence.silent(swarm(3))
    network.crash(A1)
    assert await presence.silent(swarm(3)) == {A1}
    network.alive.add(A1)
    assert await presence.silent(swarm(4)) == frozenset()


async def test_a_record_that_arrives_after_the_crash_does_not_hide_it() -> None:
    network = Network()
    presence = network.presence()
    await presence.silent(swarm(3))
    network.crash(A1)
    await presence.silent(swarm(3))
    assert await presence.silent(swarm(4)) == {A1}


async def test_a_peer_that_all_plans_have_left_is_dialled_and_one_behind_a_nat_is_not() -> None:
    for path, silent in ((PathType.PUBLIC, {A2}), (PathType.RELAYED, set())):
        network = Network(connected={DATA, A1, B1}, alive={DATA, A1, B1})
        presence = network.presence()
        for flows in (planned(A1, A2), planned(A1, A1)):
            records = [r for r in swarm(flows=flows) if r.peer != A2]
            found = await presence.silent([*records, record(A2, 1, path=path)])
        assert found == silent


async def test_a_monitor_dials_few_at_once() -> None:
    peers = [PeerId(f"Qmpeer{n:02d}") for n in range(3 * DIALS_AT_ONCE)]
    network = Network(connected=set(peers))
    presence = network.presence()
    records = [record(peer, 1) for peer in peers]
    await presence.silent(records)
    network.connected.clear()
    assert len(await presence.silent(records)) == DIALS_AT_ONCE
    assert len(await presence.silent(records)) == 2 * DIALS_AT_ONCE
