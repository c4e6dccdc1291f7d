"""Which idle links are probed, with how many bytes, and what that costs at most."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
from gwtf_p2p.protocol.view.idle_links import (
    BANDWIDTH_AGAIN_S,
    BANDWIDTH_BYTES,
    BANDWIDTH_PAUSE_S,
    FIRST_BYTES,
    LINE_AGAIN_S,
    LINE_PAUSE_S,
    LINE_S,
    LINE_TRIES,
    MOST_PUT_OFF,
    MOST_ROUND_TRIP_AGAIN_S,
    PROBES_PER_LOOK,
    QUOTA_PART,
    ROUND_TRIP_AGAIN_S,
    ROUND_TRIP_BYTES,
    IdleLinks,
    LinkAge,
    Probe,
    Spare,
    takes,
)
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

ME, A, B, C = PeerId("QmMe"), PeerId("QmA"), PeerId("QmB"), PeerId("QmC")
OWN, NEXT, FAR = Stage(1), Stage(2), Stage(3)
FREE = Spare()
LOOK_S = 2.0


def view_of(stages: dict[PeerId, Stage]) -> NetworkView:
    records = [
        StageRecord(peer=peer, run_id=RunId("r"), stage=stage, state=PeerState.ONLINE, capacity=2, sequence_number=1)
        for peer, stage in stages.items()
    ]
    return NetworkView.of(records, 3, 1000)


VIEW = view_of({ME: OWN, A: NEXT, B: DATA_STAGE, C: NEXT, PeerId("QmFar"): FAR, PeerId("QmBeside"): OWN})


def test_neighbours_that_nobody_has_measured_come_first_and_nobody_twice() -> None:
    links = IdleLinks(ME, OWN)
    assert links.due(VIEW, {}, 0.0, FREE) == tuple(Probe(peer, FIRST_BYTES) for peer in (B, A, C))
    links.sent(Probe(B, FIRST_BYTES), 0.0)
    assert [probe.to for probe in links.due(VIEW, {}, 1.0, FREE)] == [A, C], "it may not answer"
    assert [probe.to for probe in links.due(VIEW, {}, ROUND_TRIP_AGAIN_S, FREE)] == [B, A, C]


def test_a_link_in_use_is_left_alone_and_an_idle_one_has_its_round_trip_measured() -> None:
    ages = {A: LinkAge(ROUND_TRIP_AGAIN_S, 100.0), B: LinkAge(1.0, 100.0), C: LinkAge(1.0, 1.0)}
    assert IdleLinks(ME, OWN).due(VIEW, ages, 1e4, FREE) == (Probe(A, ROUND_TRIP_BYTES),)


def test_a_round_trip_that_stays_as_it_is_told_is_measured_more_and_more_rarely_until_the_link_is_used_again() -> None:
    links, view = IdleLinks(ME, OWN), view_of({ME: OWN, A: NEXT})
    used_at, found, now = 0.0, [], 0.0
    while now < 20 * MOST_ROUND_TRIP_AGAIN_S:
        for probe in links.due(view, {A: LinkAge(now - used_at, 0.0)}, now, FREE):
            assert probe.size == ROUND_TRIP_BYTES
            links.sent(probe, now)
            links.ended(probe, as_told=True)
            used_at, found = now, [*found, now]
        now += LOOK_S
    pauses = [later - earlier for earlier, later in pairwise(found)]
    assert pauses[0] == 2 * ROUND_TRIP_AGAIN_S and pauses[-1] == MOST_ROUND_TRIP_AGAIN_S and pauses == sorted(pauses)
    used_at = now  # by traffic
    assert not links.due(view, {A: LinkAge(0.0, 0.0)}, now, FREE)
    [probe] = links.due(view, {A: LinkAge(ROUND_TRIP_AGAIN_S, 0.0)}, now + ROUND_TRIP_AGAIN_S, FREE)
    links.sent(probe, now + ROUND_TRIP_AGAIN_S)
    links.ended(probe, as_told=False)
    later = now + 2 * ROUND_TRIP_AGAIN_S
    assert links.due(view, {A: LinkAge(ROUND_TRIP_AGAIN_S, 0.0)}, later, FREE), "it was found to be another one"


def test_the_bandwidth_that_was_seen_longest_ago_is_measured_anew_one_after_the_other() -> None:
    links = IdleLinks(ME, OWN)
    ages = {A: LinkAge(1.0, BANDWIDTH_AGAIN_S), B: LinkAge(100.0, BANDWIDTH_AGAIN_S + 1), C: LinkAge(1.0, 1.0)}
    assert links.due(VIEW, ages, 0.0, FREE) == (Probe(B, BANDWIDTH_BYTES),)
    links.sent(Probe(B, BANDWIDTH_BYTES), 0.0)
    ages[B] = LinkAge(0.0, 0.0)
    assert links.due(VIEW, ages, BANDWIDTH_PAUSE_S - 1, FREE) == ()
    assert links.due(VIEW, ages, BANDWIDTH_PAUSE_S, FREE) == (Probe(A, BANDWIDTH_BYTES),)


def test_none_goes_while_the_line_is_busy_nor_takes_much_of_what_is_left_of_a_quota() -> None:
    ages = {A: LinkAge(1.0, BANDWIDTH_AGAIN_S), B: LinkAge(1.0, 1.0), C: LinkAge(1.0, 1.0)}
    enough = BANDWIDTH_BYTES / QUOTA_PART
    assert IdleLinks(ME, OWN).due(VIEW, ages, 0.0, Spare(quota_bytes=enough)) == (Probe(A, BANDWIDTH_BYTES),)
    for spare in (Spare(is_busy=True), Spare(quota_bytes=enough - 1e4), Spare(quota_bytes=0)):
        assert IdleLinks(ME, OWN).due(VIEW, ages, 0.0, spare) == ()


def test_what_was_put_off_is_due_at_the_next_look_and_insists_in_the_end() -> None:
    links = IdleLinks(ME, OWN)
    for _ in range(MOST_PUT_OFF):
        probe = links.due(VIEW, {}, 0.0, FREE)[0]
        assert probe == Probe(B, FIRST_BYTES)
        links.sent(probe, 0.0)
        links.put_off(probe)
        assert links.has_put_off
    probe = links.due(VIEW, {}, 0.0, FREE)[0]
    assert probe == Probe(B, FIRST_BYTES, insists=True)
    links.sent(probe, 0.0)
    links.ended(probe)
    assert [probe.to for probe in links.due(VIEW, {}, 1.0, FREE)] == [A, C] and not links.has_put_off


def test_nothing_is_put_off_any_more_when_traffic_has_measured_it() -> None:
    links = IdleLinks(ME, OWN)
    links.put_off(links.due(VIEW, {}, 0.0, FREE)[0])
    links.due(VIEW, {B: LinkAge(0.0, 0.0)}, 0.0, FREE)
    assert not links.has_put_off


def test_a_probe_of_bandwidth_is_taken_where_nothing_else_arrives_or_when_it_insists() -> None:
    cases = {(size, insists, busy) for size in (ROUND_TRIP_BYTES, FIRST_BYTES) for insists in (0, 1) for busy in (0, 1)}
    assert {case for case in cases if not takes(*case)} == {(FIRST_BYTES, 0, 1)}
    assert not takes(BANDWIDTH_BYTES + 1, True, False)


def test_the_widest_links_are_filled_together_in_equal_times_once_they_are_known() -> None:
    links, carries = IdleLinks(ME, OWN), {A: 4e5, B: 2e5, C: 1e5}
    together = links.line_due(VIEW, carries, 4e5, 0.0, FREE)
    assert together == tuple(Probe(peer, round(carries[peer] * LINE_S)) for peer in (A, B, C))
    for spare in (Spare(is_busy=True), Spare(quota_bytes=1e6)):
        assert not links.line_due(VIEW, carries, 4e5, 0.0, spare)
    assert not links.line_due(VIEW, carries, 7e5, 0.0, FREE), "the line is known to carry that"
    links.line_sent(False, carries, 0.0)
    assert links.has_put_off and links.line_due(VIEW, carries, 4e5, 1.0, FREE) == together
    for number in range(LINE_TRIES):
        at = number * LINE_PAUSE_S
        assert links.line_due(VIEW, carries, 4e5, at, FREE) == together
        links.line_sent(True, carries, at)
        assert not links.has_put_off and not links.line_due(VIEW, carries, 4e5, at + LINE_PAUSE_S - 1, FREE)
    assert not links.line_due(VIEW, carries, 4e5, at + LINE_AGAIN_S - 1, FREE)
    assert links.line_due(VIEW, carries, 4e5, at + LINE_AGAIN_S, FREE) == together


def test_the_line_is_filled_again_when_somebody_has_come_and_not_for_ever_where_one_never_takes_it() -> None:
    links = IdleLinks(ME, OWN)
    for _ in range(LINE_TRIES):
        links.line_sent(True, {A: 4e5, B: 2e5}, 0.0)
    assert not links.line_due(VIEW, {A: 4e5, B: 2e5}, 4e5, LINE_PAUSE_S, FREE)
    assert not links.line_due(VIEW, {A: 4e5, B: 2e5, C: 2e5}, 4e5, 1.0, FREE)
    assert links.line_due(VIEW, {A: 4e5, B: 2e5, C: 2e5}, 4e5, LINE_PAUSE_S, FREE)
    for _ in range(LINE_TRIES * (MOST_PUT_OFF + 1)):
        links.line_sent(False, {A: 4e5, B: 2e5, C: 2e5}, 1.0)
    assert not links.has_put_off and not links.line_due(VIEW, {A: 4e5, C: 2e5}, 4e5, LINE_AGAIN_S, FREE)


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("neighbours", [1, 9, 30])
def test_an_idle_hour_costs_little_however_many_neighbours_there_are(neighbours: int, answers: bool) -> None:
    peers = [PeerId(f"Qm{number:03}") for number in range(neighbours)]
    view = view_of({ME: OWN, **dict.fromkeys(peers, NEXT)})
    links, seen = IdleLinks(ME, OWN), {}
    passed: Counter[PeerId] = Counter()
    for look in range(1800):
        now = look * LOOK_S
        ages = {peer: LinkAge(now - used, now - bandwidth) for peer, (used, bandwidth) in seen.items()}
        due = links.due(view, ages, now, FREE)
        assert len(due) <= PROBES_PER_LOOK + 1
        for probe in due:
            links.sent(probe, now)
            passed[probe.to] += probe.size
            if answers:
                seen[probe.to] = (now, now if probe.size > ROUND_TRIP_BYTES else seen[probe.to][1])
    if answers:
        anew = sum(passed.values()) - neighbours * FIRST_BYTES - 61 * neighbours * ROUND_TRIP_BYTES
        assert anew <= 28 * BANDWIDTH_BYTES
        again = [peer for peer in peers if passed[peer] >= FIRST_BYTES + BANDWIDTH_BYTES]
        assert len(again) >= min(neighbours, 27), "nobody comes twice to its turn before all"
    else:
        assert max(passed.values()) <= 60 * FIRST_BYTES
