"""A swarm starts while its peers crowd each other, so what they time then is far too slow: `gwtf` does not go by that clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from gwtf_p2p.simulation.run import Simulation
from tests.simulation.stories import simulation, story

CROWDED = 10.0
"""Times what a computation takes alone."""


def timed_in_a_crowd(run: Simulation) -> Simulation:
    """All first figures of compute times are ten times what it takes."""
    for peer in run.world.peers.values():
        peer.machine.measured({work: CROWDED * seconds for work, seconds in peer.speed.seconds.items()})
    return run


@pytest.mark.parametrize("data_peers", [1, 2])
def test_the_first_iteration_is_about_as_fast_as_a_later_one(tmp_path: Path, data_peers: int) -> None:
    scenario = story(tmp_path, iterations=4, microbatches=12, data_peers=data_peers, forward_s=0.1)
    seconds = timed_in_a_crowd(simulation(scenario, "gwtf")).run().iteration_seconds
    assert seconds[0] <= 1.3 * seconds[-1], seconds
