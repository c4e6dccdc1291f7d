"""What a restarted peer fetches: nothing where its checkpoint is of the iteration that the swarm is at."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, small_swarm

PEER = PeerId("relay_1_1")


@pytest.mark.parametrize(("fresh", "away_s", "fetches"), [(False, 0.01, False), (True, 0.01, True), (False, 5.0, True)])
def test_it_fetches_its_state_only_where_its_disk_lacks_it(fresh: bool, away_s: float, fetches: bool) -> None:
    """It is killed as iteration 1 begins, and comes back in it with its disk, without it, or iterations later."""
    swarm = small_swarm(SmallConfig(), [Fault("restart", PEER, at_event=(1, 1), for_s=away_s, fresh=fresh)])
    swarm.run(iterations=8)
    assert swarm.faults.fired and swarm.world.peers[PEER].machine.membership.serves
    assert (swarm.world.weights.bytes_sent > 0) is fetches
