"""Who is credited with what has been redone."""

from __future__ import annotations

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.wire.messages import Done
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, small_swarm


def peers(*names: str) -> tuple[PeerId, ...]:
    return tuple(PeerId(name) for name in names)


def test_neighbouring_stages_that_were_redone_together_are_credited_together() -> None:
    """The way back of both ends where the first of them meets a peer that has the gradient: its `Done` speaks for both."""
    swarm = small_swarm(SmallConfig())
    swarm.run(iterations=1)
    data = swarm.world.peers[PeerId("data_0")].machine
    assert isinstance(data, DataPeer)
    finishing, microbatch = data.finishing, MicrobatchId(data.ctx.me, data.participant.version, 0)
    finishing.ledger.clear()
    finishing.ledger.back(0, peers("relay_1_0", "relay_2_0", "relay_3_0"))
    for lost in peers("relay_2_0", "relay_3_0"):
        finishing.ledger.void(lost)
    redone = peers("relay_2_1", "relay_3_1")
    finishing.stands_in(redone[0], Done(microbatch, Stage(2), (*redone[1:], PeerId("one_too_many"))))
    assert finishing.ledger.has_gaps, "there is no such stage"
    finishing.stands_in(redone[0], Done(microbatch, Stage(2), redone[1:]))
    assert not finishing.ledger.has_gaps
    assert finishing.ledger.credits()[0].peers == peers("relay_1_0", *redone)
