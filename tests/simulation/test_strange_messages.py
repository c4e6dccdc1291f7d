"""Whatever well-formed message comes from whomever, at whatever moment: nothing ends, and training goes on."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.fuzz import fuzz_bytes
from experiments.support.hostile_simulated import Attacked, flood, simulated
from experiments.support.strange_messages import OUTSIDERS, SENDERS, strange_run
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, small_swarm


@pytest.mark.parametrize("senders", SENDERS)
@settings(derandomize=True, max_examples=25, deadline=None)
@example(seed=2078)  # an attempt that the data peer has not begun was taken for its newest
@example(seed=8183)  # a peer that serves one stage was taken into another by its own word
@given(seed=st.integers(0, 10**9))
def test_a_strange_message_ends_nobody_and_training_goes_on(senders: str, seed: int) -> None:
    assert strange_run(seed, senders).sent > 20


@pytest.mark.slow
@pytest.mark.parametrize("senders", SENDERS)
@settings(derandomize=True, max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_hundreds_of_strange_runs_end_nobody(senders: str, seed: int) -> None:
    strange_run(seed, senders)


def test_outsiders_that_break_the_rules_are_barred_and_no_peer_of_the_swarm_is() -> None:
    barred: set[str] = set()
    for seed in range(5):
        reports = strange_run(seed, "outsiders", messages=300).swarm.reported("peer_barred")
        barred |= {str(report.fields["peer"]) for _, report, _ in reports}
    assert barred and barred <= set(OUTSIDERS)


def test_a_flood_of_an_outsiders_questions_leaves_a_swarm_its_pace() -> None:
    line = simulated("flood", flood, seed=0)
    assert line["per_minute"] == line["per_minute_in_peace"] and line["sender_barred"]
    assert (line["ended"], line["lost"], line["double_counted"]) == (False, 0, 0)


@pytest.mark.parametrize("kind", ["ghosts", "silent_ghosts"])
def test_hundreds_of_records_of_nobody_leave_a_swarm_its_pace(kind: str) -> None:
    line = simulated(kind, None, seed=0, ghosts=300)
    assert (line["ended"], line["lost"], line["double_counted"]) == (False, 0, 0)
    assert line["per_minute"] == line["per_minute_in_peace"]


def test_a_coordinator_that_starts_again_amid_silent_ghosts_finds_its_swarm() -> None:
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=2, data_peers=2, microbatches=4))
    Attacked(swarm, None, ghosts=200, silent=True).begin()
    swarm.inject(Fault("restart", PeerId("data_0"), at_s=5.0, for_s=2.0))
    tally = swarm.run(30)
    assert (tally.lost, tally.double) == (0, 0)
    assert swarm.world.peers[PeerId("data_0")].machine.participant.version >= 30


def test_damaged_bytes_are_refused_by_every_decoder() -> None:
    assert fuzz_bytes(400, seed=1) == 0
