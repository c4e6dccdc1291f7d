"""Stories of orders: who is banned is out at once, and training goes on without it; who is allowed is back."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.signed import EntryTerms, Order
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

RUN, OWNER = RunId("r"), PeerId("data_0")
TERMS = EntryTerms(RUN, OWNER)
BANNED = PeerId("relay_1_0")


def others_have_done(swarm: SmallSwarm, iterations: int, banned: PeerId = BANNED) -> bool:
    """Virtual time goes on until every other peer has committed so many iterations."""

    def done() -> bool:
        others = [peer.machine.participant for peer in swarm.world.peers.values() if peer.id != banned]
        return all(one.version >= iterations and not one.out_of_step for one in others)

    return swarm.world.kernel.run(done, 300.0)


@pytest.mark.parametrize("banned", [BANNED, PeerId("relay_3_1"), PeerId("data_1")])
@pytest.mark.parametrize("at_s", [1.6, 1.9, 2.35])
def test_a_run_goes_on_without_a_peer_that_is_banned_under_way(banned: PeerId, at_s: float) -> None:
    """It goes on saying what it says, and nobody hears it: it has no part in what is committed after."""
    swarm = small_swarm(SmallConfig(terms=TERMS, data_peers=2))
    swarm.world.kernel.at(at_s, lambda: swarm.world.order(Order(RUN, OWNER, 1, (banned,))))
    assert others_have_done(swarm, 6, banned), swarm.story()
    told = {who for who, report, _ in swarm.reported("peer_banned") if report.fields["peer"] == banned}
    assert told == {*swarm.world.peers} - {banned}
    for peer in swarm.world.peers.values():
        view = peer.machine.ctx.view
        assert peer.id == banned or (view is not None and banned not in view.records)
        assert peer.id == banned or not any(held.predecessor == banned for held in peer.machine.ctx.in_order())


def test_who_is_allowed_again_takes_part_again() -> None:
    swarm = small_swarm(SmallConfig(terms=TERMS))
    world = swarm.world
    world.kernel.at(1.0, lambda: world.order(Order(RUN, OWNER, 1, (BANNED,))))
    assert others_have_done(swarm, 3)
    world.order(Order(RUN, OWNER, 2))
    swarm.run(8)
    assert world.peers[BANNED].machine.participant.version >= 8


def test_in_a_listed_run_a_peer_that_is_not_on_the_list_is_nobody() -> None:
    """Its record is there for everybody, and it is in no view, no route and no average until it is allowed."""
    members = tuple(PeerId(f"relay_{stage}_{n}") for stage in (1, 2, 3) for n in (0, 1) if (stage, n) != (1, 0))
    swarm = small_swarm(SmallConfig(terms=EntryTerms(RUN, OWNER, admission="listed", members=members)))
    assert others_have_done(swarm, 3), swarm.story()
    assert not swarm.world.peers[BANNED].machine.participant.version
    swarm.world.order(Order(RUN, OWNER, 1, allowed=(BANNED,)))
    swarm.run(8)
    assert swarm.world.peers[BANNED].machine.participant.version >= 8
