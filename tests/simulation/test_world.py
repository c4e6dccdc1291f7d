"""What the simulated world charges: star hops, stale records, downloads, crashes and returns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.membership.rebalancing import choose_stage
from gwtf_p2p.protocol.view.idle_links import FIRST_BYTES
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from gwtf_p2p.simulation.lines.averaging import round_seconds
from gwtf_p2p.simulation.lines.downloads import Downloads, Request
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import Links, LinkSpec
from gwtf_p2p.simulation.scenario.scenario import ChurnSpec, Scenario
from gwtf_p2p.simulation.world.directory import Directory
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, small_swarm
from tests.simulation.stories import simulation, story

A, B, C, D = (PeerId(name) for name in "abcd")


# ---- time


def test_ties_are_broken_by_the_order_of_scheduling() -> None:
    kernel, said = Kernel(), []
    for word in ("first", "second", "third"):
        kernel.at(1.0, lambda word=word: said.append(word))
    kernel.run(lambda: False, 2.0)
    assert said == ["first", "second", "third"] and kernel.now == 1.0


def test_a_run_ends_at_its_condition_or_its_deadline() -> None:
    kernel = Kernel()
    kernel.at(5.0, lambda: None)
    assert not kernel.run(lambda: False, 4.0)
    assert kernel.run(lambda: kernel.now >= 5.0, 6.0)


# ---- records


def record(sequence: int) -> StageRecord:
    return StageRecord(A, RunId("r"), Stage(1), PeerState.ONLINE, 1, sequence_number=sequence)


def test_a_record_is_seen_after_the_delay_and_until_it_expires() -> None:
    directory = Directory(1, 1000, 1000, delay_s=1.0, tick_s=0.5, expiry_s=45.0)
    directory.publish(record(1), 0.2)
    assert A not in directory.view(1.0).records
    seen_at = directory.visible_at(0.2)
    assert 1.2 <= seen_at <= 1.7 and A in directory.view(seen_at).records
    assert A not in directory.view(seen_at + 45.5).records


def test_the_record_of_a_peer_that_publishes_all_the_time_stays_visible() -> None:
    directory = Directory(1, 1000, 1000, delay_s=1.0, tick_s=0.5)
    for sequence in range(100):
        directory.publish(record(sequence), sequence * 0.05)
    seen = directory.view(5.0).records
    assert A in seen and seen[A].sequence_number == 80, "the newest that is a second old"


def test_readers_share_a_view_while_nothing_is_new() -> None:
    directory = Directory(1, 1000, 1000)
    directory.publish(record(1), 0.0)
    first = directory.view(2.0)
    assert directory.view(3.0) is first
    directory.publish(record(2), 3.0)
    assert directory.view(5.0).records[A].sequence_number == 2


# ---- the average


def test_a_butterfly_takes_what_its_slowest_line_takes() -> None:
    """Three members of lines 100, 50 and 100 bytes/s: each moves 4/3 of 300 bytes, the slowest at 50."""
    links = Links(Kernel(), lambda s, r: LinkSpec(0.5, 1e9), {A: 100.0, B: 50.0, C: 100.0})
    assert round_seconds(links, [A, B, C], 300) == pytest.approx(400 / 50 + 2 * 0.5)
    assert round_seconds(links, [A], 300) == 0.0


# ---- the star


def test_in_the_star_every_hop_between_stage_peers_passes_the_data_peer(tmp_path: Path) -> None:
    """Three stages: four hops each way, two of them between stage peers. Bytes grow by half, and so does the time of one."""
    scenario = story(tmp_path, microbatches=1, stage_peers=1)
    direct, star = (simulation(scenario, name).run() for name in ("swarm", "swarm-hub"))
    of_star, of_direct = (float(each.extra["bytes_sent"]) - float(each.extra["probe_bytes"]) for each in (star, direct))
    assert of_star == 1.5 * of_direct
    hop_s = 0.001 + 100_000 / 1e9
    assert star.mean_iteration_s - direct.mean_iteration_s == pytest.approx(4 * hop_s, rel=0.05)


# ---- crashes and returns


def churning(folder: Path, crash: float, rejoin: float, **changes: object) -> Scenario:
    return replace(story(folder, iterations=10, stage_peers=3, **changes), churn=ChurnSpec(crash, rejoin))


def test_stage_peers_crash_and_come_back_and_nothing_is_lost(tmp_path: Path) -> None:
    outcome = simulation(churning(tmp_path, 0.1, 0.5)).run()
    assert outcome.extra["crashes"] and outcome.extra["returns"]
    assert outcome.microbatches_lost == outcome.double_counted == 0
    assert sum(outcome.recoveries.values()) > 0 and 0 < outcome.wasted_compute_fraction < 0.3


def test_the_last_peer_of_a_stage_is_spared(tmp_path: Path) -> None:
    """Everybody is to crash in every iteration, and nobody to come back: one stage peer per stage stays."""
    run = simulation(churning(tmp_path, 1.0, 0.0))
    outcome = run.run()
    left = [p for p in run.world.peers.values() if p.alive and p.machine.ctx.stage > 0]
    assert sorted(p.machine.ctx.stage for p in left) == [1, 2, 3]
    assert outcome.extra["crashes"] == 6 and float(outcome.extra["spared"]) > 0


def test_a_returning_stage_peer_serves_only_after_its_download(tmp_path: Path) -> None:
    """Its state is 1 MB over a line of 1 MB/s: at least a second passes between its start and its first forward."""
    scenario = churning(tmp_path, 0.1, 1.0)
    scenario = replace(scenario, links=replace(scenario.links, line_bytes_per_s=(1e6,)))
    run = simulation(scenario)
    began: dict[PeerId, float] = {}
    waits: list[float] = []

    def listen(peer: PeerId, event: ev.Event, now: float) -> None:
        heard(peer, event, now)
        if isinstance(event, ev.Started) and now > 0:
            began[peer] = now
        elif isinstance(event, ev.Computed) and peer in began:
            waits.append(now - began.pop(peer))

    heard, run.world.on_event = run.world.on_event, listen
    run.run()
    assert waits and min(waits) >= 1.0


def test_the_plan_of_crashes_is_the_same_for_every_arm(tmp_path: Path) -> None:
    """Paired by seed: the same crashes, whatever the router does, but for those of the last iteration, whose moment may come
    after the end; and as many returns, but for one: who crashes past the end of its iteration is not down when the next begins,
    and comes back later."""
    stories, returns = [], []
    for router in ("swarm", "random"):
        run = simulation(churning(tmp_path, 0.1, 0.5), router)
        killed: list[tuple[PeerId, int]] = []

        def kill(peer: PeerId, kill=run.world.kill, peers=run.world.peers, killed=killed) -> None:  # type: ignore[no-untyped-def]
            iteration = max(p.machine.participant.version for p in peers.values())
            killed.append((peer, iteration))
            kill(peer)

        run.world.kill = kill  # type: ignore[method-assign]
        outcome = run.run()
        last = run.scenario.iterations - 1
        stories.append({peer for peer, iteration in killed if iteration < last})
        returns.append(outcome.extra["returns"])
    assert stories[0] == stories[1] and stories[0]
    assert min(returns) > 0 and max(returns) - min(returns) <= 1


# ---- downloads


def downloading(*donors: PeerId, size: int = 300) -> tuple[Links, Downloads, list[tuple[float, bool]], set[PeerId]]:
    """A download by c, in pieces of 30 bytes, over its line of 100 bytes/s; the donors' lines carry 60, and d's 6. Donors in
    the returned set are gone."""
    links = Links(Kernel(), lambda s, r: LinkSpec(0.5, 1e9), {A: 60.0, B: 60.0, C: 100.0, D: 6.0})
    downloads, ends, gone = Downloads(links, piece_bytes=30), [], set[PeerId]()
    request = Request(C, size, donors, lambda donor: donor not in gone)
    downloads.start(request, lambda whole: ends.append((links.kernel.now, whole)))
    return links, downloads, ends, gone


def leave(links: Links, downloads: Downloads, gone: set[PeerId], donor: PeerId) -> None:
    """A donor dies after a second."""

    def die() -> None:
        gone.add(donor)
        downloads.donor_gone(donor)

    links.kernel.at(1.0, die)


def test_a_download_shares_the_lines_of_its_donors_and_its_own() -> None:
    for donors, rate in (((A,), 60), ((A, B), 100)):
        links, downloads, ends, _ = downloading(*donors)
        links.kernel.run(lambda: False, 1e6)
        assert ends == [(pytest.approx(300 / rate + 0.5), True)]
        twice = links.bytes_sent - 300
        assert twice == 0 if len(donors) == 1 else 0 <= twice <= 2 * 30, "pieces that another donor is late with"
        assert downloads.bytes_sent == links.bytes_sent


def test_a_slow_donor_sends_less_and_what_it_is_late_with_comes_from_another() -> None:
    """In 5 s its line carries one piece of the ten. An equal part, half of all, would take 25 s."""
    links, _, ends, _ = downloading(A, D)
    links.kernel.run(lambda: False, 1e6)
    assert ends == [(pytest.approx(5.0 + 0.5), True)]
    assert 300 < links.bytes_sent < 300 + 3 * 30, "what it was late with was sent twice"


def test_what_a_dying_donor_was_sending_is_sent_by_another() -> None:
    """Both send 50 bytes/s; after 1 s b dies in its second piece, and a, in its own second one, sends the rest at 60."""
    links, downloads, ends, gone = downloading(A, B)
    leave(links, downloads, gone, B)
    links.kernel.run(lambda: False, 1e6)
    assert ends == [(pytest.approx(1.0 + (300 - 2 * 50 + 20) / 60 + 0.5), True)]
    assert links.bytes_sent == 300 + 20, "the part of its second piece that it had sent is of no use"


def test_without_a_donor_left_the_download_fails() -> None:
    links, downloads, ends, gone = downloading(A)
    leave(links, downloads, gone, A)
    links.kernel.run(lambda: False, 1e6)
    assert ends == [(1.0, False)]


def test_a_new_download_replaces_the_old_one_in_silence() -> None:
    links, downloads, ends, _ = downloading(A)
    request = Request(C, 60, (B,), lambda donor: True)
    links.kernel.at(1.0, lambda: downloads.start(request, lambda whole: ends.append((links.kernel.now, whole))))
    links.kernel.run(lambda: False, 1e6)
    assert ends == [(pytest.approx(1.0 + 1.0 + 0.5), True)]


def test_a_newcomer_goes_where_others_have_died_while_their_records_live_on() -> None:
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=3, data_peers=2))
    world, me = swarm.world, PeerId("newcomer")
    swarm.run(3)
    dead = [PeerId("relay_2_0"), PeerId("relay_2_1")]
    for peer in dead:
        world.kill(peer)
    world.kernel.run(lambda: False, world.kernel.now + 8.0)
    view = world.directory.view(world.kernel.now)
    assert all(view.records[peer].is_routable for peer in dead) and view.said_lost == set(dead)
    assert choose_stage(view, me).stage == 2
    for peer in dead:
        swarm.faults.restart(peer, fresh=False)
    swarm.run(world.peers[PeerId("data_0")].machine.participant.version + 3)
    assert not world.directory.view(world.kernel.now).said_lost


# ---- links without traffic


def test_who_starts_probes_its_neighbours_once_and_what_that_takes_is_counted(tmp_path: Path) -> None:
    iterations, microbatches = 6, 8
    run = simulation(story(tmp_path, iterations=iterations, microbatches=microbatches), "gwtf")
    outcome = run.run()
    links = 2 * (1 * 2 + 2 * 2 + 2 * 2 + 2 * 1)  # in a ring of one data peer and three stages of two, both ways
    assert outcome.extra["probe_bytes"] == links * FIRST_BYTES
    hops = 4 * 2 * microbatches * iterations
    assert outcome.extra["bytes_sent"] == links * FIRST_BYTES + hops * 100_000


def test_a_link_is_probed_anew_by_who_comes_back_and_no_probe_outlives_its_ends(tmp_path: Path) -> None:
    run = simulation(story(tmp_path), "gwtf")
    world, probes, alone = run.world, run.idle_probes, PeerId("relay_2_0")
    for peer in list(world.peers.values()):
        world.start(peer)
    probes.start()
    world.kernel.run(lambda: probes.bytes_sent > 0, 60.0)
    begun, before = probes.bytes_sent, world.links.bytes_sent
    world.kill(alone)
    assert 0 < begun - probes.bytes_sent == before - world.links.bytes_sent, "to it, and from it"
    world.kernel.run(lambda: False, world.kernel.now + 4.0)
    at_rest = probes.bytes_sent
    run.swarm.restart(alone)
    world.kernel.run(lambda: False, world.kernel.now + 4.0)
    assert probes.bytes_sent == at_rest + 4 * FIRST_BYTES, "to two in each of the stages beside its own"
