"""Audits in whole simulated runs: who cheats is found, who does not is left alone, and training goes on."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwtf_p2p.protocol.core.router import NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.world.audits import Cheat
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import RoundRobin, SmallConfig, SmallSwarm, small_swarm

CHEAT = PeerId("relay_1_1")


class Mixing(RoundRobin):
    """Every peer of a stage meets every peer of the next."""

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        self._turns[request.last_stage] += request.microbatch.index % 3
        return super().route(request, now)


THREE = SmallConfig(stages=2, stage_peers=3, microbatches=5, audit=0.3, router=Mixing)

CHEATS = {
    "wrong work": Cheat(wrong=1.0),
    "wrong now and then": Cheat(wrong=0.5),
    "accuses": Cheat(accuses=True),
    "covers": Cheat(covers=True),
    "denies": Cheat(wrong=1.0, denies=True),
    "silent": Cheat(wrong=1.0, silent=True),
    "misquotes": Cheat(misquotes=True),
}


def run(config: SmallConfig, cheats: dict[PeerId, Cheat], iterations: int, faults: tuple[Fault, ...] = ()) -> SmallSwarm:
    swarm = small_swarm(config, faults)
    swarm.world.audits.cheats.update(cheats)
    swarm.run(iterations, deadline_s=90.0)
    return swarm


def named(swarm: SmallSwarm, *reports: str) -> set[str]:
    """The peers that these reports are about."""
    return {str(report.fields["peer"]) for _, report, _ in swarm.reports if report.name in reports}


def counts(swarm: SmallSwarm, report: str) -> int:
    return len(swarm.reported(report))


def test_the_work_of_honest_peers_passes() -> None:
    swarm = run(THREE, {}, 12)
    drawn = 12 * 5 * 2 * 0.3
    assert 0.5 * drawn < counts(swarm, "audit_passed") < 1.5 * drawn
    assert not named(swarm, "peer_convicted", "peer_left_out", "peer_lost") and not counts(swarm, "audit_differs")


def test_the_ledger_tells_whose_work_was_done_again_and_is_right() -> None:
    swarm = run(THREE, {}, 12)
    last_told: dict[int, int] = {}
    for peer in swarm.world.peers.values():
        for version, sums in peer.contributions.items():
            last_told[version] = max(last_told.get(version, 0), sum(done.audits for done in sums.of.values()))
    told, passed = last_told[max(last_told)], counts(swarm, "audit_passed")
    assert 0 < told <= passed, "those of the last iteration, and of peers without a line since, are still to be told"
    assert told >= 0.7 * passed


def test_without_a_share_nothing_is_done_again() -> None:
    swarm = run(SmallConfig(stages=2, stage_peers=3), {CHEAT: Cheat(wrong=1.0)}, 4)
    assert not any(report.name.startswith("audit") for _, report, _ in swarm.reports)
    assert swarm.world.audits.bytes == 0


@pytest.mark.parametrize("cheat", ["wrong work", "wrong now and then", "accuses"])
def test_who_is_alone_is_convicted_by_everybody(cheat: str) -> None:
    swarm = run(THREE, {CHEAT: CHEATS[cheat]}, 25)
    assert named(swarm, "peer_convicted", "peer_left_out") == {CHEAT}
    believers = {who for who, _, _ in swarm.reported("peer_convicted")}
    assert believers >= {peer for peer in swarm.world.peers if peer != CHEAT}


@pytest.mark.parametrize("cheat", ["denies", "silent"])
def test_who_evades_is_left_out(cheat: str) -> None:
    swarm = run(THREE, {CHEAT: CHEATS[cheat]}, 25)
    assert named(swarm, "peer_convicted", "peer_left_out") == {CHEAT}


def test_a_neighbour_that_misquotes_is_left_out_and_no_worker_is() -> None:
    swarm = run(THREE, {CHEAT: CHEATS["misquotes"]}, 25)
    assert named(swarm, "peer_convicted", "peer_left_out") == {CHEAT}


def test_a_worker_that_denies_what_its_data_peer_has_sent_is_left_out_by_it() -> None:
    config = SmallConfig(stages=1, stage_peers=3, microbatches=5, audit=0.3)
    assert named(run(config, {CHEAT: CHEATS["denies"]}, 10), "peer_left_out") == {CHEAT}


@pytest.mark.parametrize("cheat", CHEATS)
def test_in_a_stage_of_two_nobody_is_convicted(cheat: str) -> None:
    swarm = run(SmallConfig(stages=2, stage_peers=2, microbatches=4, audit=0.5), {CHEAT: CHEATS[cheat]}, 8)
    assert not named(swarm, "peer_convicted")
    if cheat in ("wrong work", "accuses"):
        assert counts(swarm, "audit_differs") and counts(swarm, "audit_undecided")


def test_a_newcomer_is_told_who_was_convicted() -> None:
    late = PeerId("relay_2_2")
    swarm = small_swarm(THREE, (Fault("restart", late, at_s=0.0, for_s=12.0),))
    swarm.world.audits.cheats[CHEAT] = Cheat(wrong=1.0)
    swarm.run(40)
    told = [now for who, report, now in swarm.reported("peer_convicted") if who == late]
    assert told and told[0] > 12.0


def test_a_worker_that_is_convicted_has_its_work_of_the_iteration_done_again() -> None:
    swarm = run(THREE, {CHEAT: Cheat(wrong=1.0)}, 10)
    _, report, at = swarm.reported("peer_convicted")[0]
    iteration = report.fields["iteration"]
    assert isinstance(iteration, int)
    committed = swarm.invariants.committed(iteration)
    tried = {key: prepare for key, prepare in swarm.invariants.prepares.items() if key[:2] == (iteration, 1)}
    assert not tried[max(tried)].share_of(CHEAT), "nothing of it is in the gradient of the attempt that was committed"
    assert all(sum(microbatches.values()) == THREE.microbatches for microbatches in committed.values())
    assert at > 0


@pytest.mark.parametrize("left_out", ["relay_2_0", "relay_1_0"])
def test_who_is_left_out_by_its_data_peer_alone_keeps_none_of_its_microbatches(left_out: str) -> None:
    """Others hand it some all the same, as they do not know: when those that they know of are gone, say."""
    other = PeerId(left_out[:-1] + "1")
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=3, router=Mixing), (Fault("kill", other, at_s=1.6),))
    swarm.world.audits.cheats[PeerId(left_out)] = Cheat()
    data_peer = swarm.world.peers[PeerId("data_0")].machine
    data_peer.ctx.bars.convict(PeerId(left_out))
    tally = swarm.run(8, deadline_s=90.0)
    assert (tally.lost, tally.double) == (0, 0)


PEERS = [PeerId(f"relay_{k}_{i}") for k in (1, 2) for i in range(3)]


def honest_are_left_alone(seed: int) -> None:
    """One cheat of any kind, and up to two faults of others, at any time. StuckError: and nobody else is convicted."""
    random = Random(seed)
    cheat, who = random.choice(sorted(CHEATS)), random.choice(PEERS)
    config = SmallConfig(stages=2, stage_peers=3, microbatches=random.randint(3, 6), audit=0.4, router=Mixing)
    script = []
    for _ in range(random.randint(0, 2)):
        kind, peer, at_s = random.choice(["restart", "blink", "kill"]), random.choice(PEERS), random.uniform(0.5, 8.0)
        if peer != who:
            script.append(Fault(kind, peer, at_s=at_s, for_s=4.0))
    swarm = small_swarm(config, tuple(script))
    swarm.world.audits.cheats[who] = CHEATS[cheat]
    try:
        swarm.run(10, deadline_s=90.0)
    finally:
        assert named(swarm, "peer_convicted", "peer_left_out") <= {who}


@pytest.mark.parametrize("seed", [65, 91, 1023, *range(6)])
def test_no_honest_peer_is_convicted_whoever_cheats_and_whatever_fails(seed: int) -> None:
    honest_are_left_alone(seed)


@pytest.mark.slow
@settings(derandomize=True, max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_no_honest_peer_is_convicted_and_no_run_stands_still_in_hundreds_of_runs(seed: int) -> None:
    honest_are_left_alone(seed)
