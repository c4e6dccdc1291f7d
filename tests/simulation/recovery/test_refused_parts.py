"""Parts of averages that are not taken, in whole swarms: whoever sends them is left out, and the run goes on."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.messages import Prepare
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

ITERATIONS = 6
ONE = [PeerId(f"relay_1_{number}") for number in range(3)]
DATA = [PeerId(f"data_{number}") for number in range(2)]


def contributed(swarm: SmallSwarm) -> dict[PeerId, int]:
    """Microbatches of each peer in committed averages, as the data peers that are well have them."""
    found: dict[PeerId, int] = {}
    for peer in swarm.world.peers.values():
        sums = peer.contributions.get(peer.machine.participant.weights)
        for (_, of), contribution in (sums.of if sums is not None else {}).items():
            found[of] = max(found.get(of, 0), contribution.microbatches)
    return found


def trained(refuses: object, *faults: Fault, stage_peers: int = 3) -> SmallSwarm:
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=stage_peers, data_peers=2), [*faults])
    swarm.world.rounds.refuses = refuses  # type: ignore[assignment]
    swarm.run(ITERATIONS)
    assert not swarm.reported("peer_barred") and not swarm.reported("out_of_step"), "nobody is struck, nobody falls behind"
    return swarm


def skipped(swarm: SmallSwarm) -> set[object]:
    return {report.fields["iteration"] for _, report, _ in swarm.reported("stepped") if report.fields["skipped"]}


def left_out(swarm: SmallSwarm) -> set[object]:
    return {peer for _, report, _ in swarm.reported("left_out") for peer in report.fields["peers"]}  # type: ignore[attr-defined]


@pytest.mark.parametrize("bad", [ONE[1], DATA[1]])
def test_one_whose_parts_nobody_takes_is_left_out_of_every_average_and_credited_with_nothing(bad: PeerId) -> None:
    swarm = trained(lambda member, of, prepare: of == bad)
    sums = contributed(swarm)
    assert not sums.get(bad) and all(sums.get(other) for other in (*ONE, *DATA) if other != bad)
    assert not skipped(swarm) and bad in left_out(swarm)


def test_one_that_says_so_of_another_alone_is_left_out_as_well_and_training_goes_on() -> None:
    liar, honest, third = ONE
    swarm = trained(lambda member, of, prepare: (member, of) == (liar, honest))
    assert left_out(swarm) == {liar, honest} and not skipped(swarm) and contributed(swarm)[third]


def test_of_two_that_refuse_each_other_the_step_is_skipped() -> None:
    def refuses(member: PeerId, of: PeerId, prepare: Prepare) -> bool:
        return prepare.iteration == 2 and {member, of} == {*ONE[:2]}

    swarm = trained(refuses, stage_peers=2)
    assert skipped(swarm) == {2}


def test_a_coordinator_that_dies_meanwhile_leaves_all_of_one_mind() -> None:
    bad, steps = ONE[1], set()
    for moment in range(20, 60, 8):
        swarm = trained(lambda member, of, prepare: of == bad, Fault("kill", DATA[0], at_event=(1, moment)))
        steps.add(frozenset(map(str, skipped(swarm))))
    assert steps == {frozenset()}
