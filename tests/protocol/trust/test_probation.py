"""A crowd of records of peers that have never answered changes nothing; who is there is used, whatever crowd it comes with."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.trust.probation import AGAIN_AFTER_S, AT_ONCE, CROWD, FEW, MOST_SILENT, OF_A_FEW, SAMPLE, SAMPLE_TO_PLAN
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from tests.protocol.peers import A2, A, B, D, Driven, data_peer, in_step, record, stage_peer

SMALL = [record(D), record(A), record(B)]
MANY = 3 * AT_ONCE


def ghosts(number: int, sequence_number: int = 0, begin: int = 0) -> list[StageRecord]:
    names = (PeerId(f"ghost_{n}") for n in range(begin, begin + number))
    return [record(name, stage=1 + n % 3, sequence_number=sequence_number) for n, name in enumerate(names)]


def counts(driven: Driven) -> set[PeerId]:
    """Whose records this peer goes by."""
    view = driven.machine.ctx.view
    return {*view.records} if view is not None else set()


def fail(driven: Driven, peers: Iterable[PeerId]) -> list[PeerId]:
    """None of these is there; returns who is greeted because of that."""
    greeted: list[PeerId] = []
    for peer in peers:
        driven.handle(ev.CheckFailed(peer, "refused", silent=False))
        greeted += [ask.peer for ask in driven.did(ef.Ask)]
    return greeted


def attacked() -> Driven:
    """In a small swarm, when the crowd's records have just come."""
    driven = in_step()
    driven.sees(SMALL)
    driven.sees([*SMALL, *ghosts(MANY)])
    return driven


def test_a_few_newcomers_count_at_once_and_are_not_even_greeted() -> None:
    driven = in_step()
    driven.sees(SMALL)
    driven.sees([*SMALL, *ghosts(FEW - 1)])  # B has not said anything either
    assert len(counts(driven)) == 3 + FEW - 1 and not driven.did(ef.Ask)


def test_of_a_crowd_nobody_counts_and_those_from_before_it_all_do() -> None:
    driven = attacked()
    assert counts(driven) == {D, A, B}
    asked = [ask.peer for ask in driven.did(ef.Ask)]
    assert len(asked) == AT_ONCE and asked[0] == B, "who was there before is proven first"


def test_greetings_go_out_in_rounds_once_to_each_and_nothing_is_lost_or_planned_with() -> None:
    driven = attacked()
    asked = [ask.peer for ask in driven.did(ef.Ask)]
    every = list(asked)
    while asked:
        asked = fail(driven, asked)
        every += asked
        assert len(asked) <= AT_ONCE
    assert len(every) == len({*every}) == MANY + 1, "and B"
    assert counts(driven) == {D, A, B}
    assert not driven.machine.ctx.liveness.lost
    driven.sees([*SMALL, *ghosts(MANY, sequence_number=1)])
    assert not driven.did(ef.Ask), "another record so soon is no reason to greet again"
    driven.now += AGAIN_AFTER_S
    driven.sees([*SMALL, *ghosts(MANY, sequence_number=1)])
    assert len(driven.did(ef.Ask)) == AT_ONCE
    fail(driven, [ask.peer for ask in driven.did(ef.Ask)])
    driven.now += AGAIN_AFTER_S
    driven.sees([*SMALL, *ghosts(MANY, sequence_number=2)])
    assert not {ask.peer for ask in driven.did(ef.Ask)} & {f"ghost_{n}" for n in range(64)}, (
        "twice as long after a second failure"
    )


def test_who_answers_its_greeting_counts_from_the_end_of_its_round_on() -> None:
    driven = attacked()
    first, *others = [ask.peer for ask in driven.did(ef.Ask) if ask.peer != B]
    driven.handle(ev.CheckAnswered(first, (), 0.01))
    driven.handle(ev.CheckAnswered(B, (), 0.01))
    fail(driven, others)
    assert counts(driven) == {D, A, B, first}


def test_a_newcomer_amid_a_crowd_counts_as_soon_as_it_says_something() -> None:
    driven = attacked()
    newcomer = record(A2, PeerState.ONLINE)
    driven.sees([*SMALL, newcomer, *ghosts(MANY)])
    assert A2 not in counts(driven)
    driven.hears(A2, msg.Lost(B, "gone"))
    assert A2 in counts(driven)
    assert not driven.reported("message_refused"), "its record says that it may say this"


def test_a_message_of_somebody_without_a_record_proves_nothing() -> None:
    driven = attacked()
    driven.hears(PeerId("stranger"), msg.Inquire(0, 1))
    assert counts(driven) == {D, A, B}


def test_who_starts_amid_a_crowd_sees_no_records_until_all_have_been_greeted() -> None:
    driven = stage_peer()
    driven.handle(ev.Started(0, incarnation=7))
    driven.sees([*SMALL, *ghosts(MANY)])
    asked = [ask.peer for ask in driven.did(ef.Ask)]
    assert driven.machine.ctx.view is None and driven.machine.state is PeerState.JOINING
    while asked:
        assert driven.machine.ctx.view is None
        for peer in sorted({*asked} & {D, B}):
            driven.handle(ev.CheckAnswered(peer, (), 0.01))
        asked = fail(driven, [peer for peer in asked if peer not in (D, B)])
    assert counts(driven) == {D, A, B}
    assert driven.sent(msg.Standing, D) or [e for e in driven.log if isinstance(e, ef.Send) and e.to == D], "it joins them"


def crowd_of_a_stage_peer(ghosts_are: int) -> Driven:
    """A stage peer of a small swarm that sees so many records at once."""
    driven = in_step()
    driven.sees(SMALL)
    driven.sees([*SMALL, *ghosts(ghosts_are)])
    return driven


def greeted(driven: Driven) -> list[PeerId]:
    return [ask.peer for ask in driven.did(ef.Ask) if ask.peer.startswith("ghost")]


def test_a_large_crowd_is_vouched_for_by_a_sample_that_answers() -> None:
    driven = crowd_of_a_stage_peer(2 * CROWD)
    sample = greeted(driven)
    assert len(sample) == SAMPLE and counts(driven) == {D, A, B}
    for n, peer in enumerate(sample):
        driven.handle(ev.CheckFailed(peer, "refused", silent=False) if n < MOST_SILENT else ev.CheckAnswered(peer, (), 0.01))
    assert len(counts(driven)) == 3 + 2 * CROWD
    driven.sees([*SMALL, *ghosts(2 * CROWD, sequence_number=1)])
    assert not greeted(driven) and len(counts(driven)) == 3 + 2 * CROWD


def test_a_large_crowd_whose_sample_is_silent_is_greeted_one_by_one() -> None:
    driven = crowd_of_a_stage_peer(2 * CROWD)
    asked = {ask.peer for ask in driven.did(ef.Ask)}
    waiting: list[PeerId] = []
    for n, peer in enumerate(sorted(asked)):
        assert not waiting and counts(driven) == {D, A, B}, "it is told when all of a round have answered or failed"
        driven.handle(ev.CheckFailed(peer, "refused", silent=False) if n <= MOST_SILENT else ev.CheckAnswered(peer, (), 0.01))
        waiting = [ask.peer for ask in driven.did(ef.Ask)]
    assert len(counts(driven)) == 3 + SAMPLE - MOST_SILENT - 1, "those that have answered"
    while waiting:
        asked |= {*waiting}
        waiting = fail(driven, waiting)
    assert len(asked) == 2 * CROWD + 1


def test_of_a_large_swarm_newcomers_count_by_the_sixteenth_and_more_are_vouched_for_by_a_sample() -> None:
    """What each peer does for newcomers does not grow with how many there are."""
    driven = crowd_of_a_stage_peer(2 * CROWD)
    for peer in greeted(driven):
        driven.handle(ev.CheckAnswered(peer, (), 0.01))
    few = (3 + 2 * CROWD) // OF_A_FEW
    driven.sees([*SMALL, *ghosts(2 * CROWD + few - 1)])  # B has not said anything either
    assert not greeted(driven) and len(counts(driven)) == 3 + 2 * CROWD + few - 1
    driven.sees([*SMALL, *ghosts(2 * CROWD + few + 9)])
    sample = [ask.peer for ask in driven.did(ef.Ask)]
    assert len(sample) == SAMPLE and {*sample} <= {B, *(ghost.peer for ghost in ghosts(few + 9, begin=2 * CROWD))}
    assert len(counts(driven)) == 3 + 2 * CROWD + few - 1, "those that counted still do"
    for peer in sample:
        driven.handle(ev.CheckAnswered(peer, (), 0.01))
    assert len(counts(driven)) == 3 + 2 * CROWD + few + 9
    assert not driven.did(ef.Ask)


def test_a_sample_is_decided_though_some_of_it_go_or_speak_before_they_are_asked() -> None:
    """It is asked when the round under way has ended."""
    driven = attacked()
    first = [ask.peer for ask in driven.did(ef.Ask)]
    late = ghosts(2 * CROWD, begin=MANY)
    driven.sees([*SMALL, *ghosts(MANY), *late])
    sample = driven.machine.gate.probation._sample
    assert sample is not None and not driven.did(ef.Ask)
    gone, speaks = [peer for peer in sample.peers if peer not in first][:2]
    driven.sees([*SMALL, *(one for one in (*ghosts(MANY), *late) if one.peer != gone)])
    driven.hears(speaks, msg.Inquire(0, 1))
    assert speaks in counts(driven) and gone not in sample.open and speaks not in sample.open
    for peer in first:
        driven.handle(ev.CheckAnswered(peer, (), 0.01))
    for peer in [ask.peer for ask in driven.did(ef.Ask)]:
        driven.handle(ev.CheckAnswered(peer, (), 0.01))
    assert sample.vouched and len(counts(driven)) == 3 + MANY + 2 * CROWD - 1


def test_who_was_silent_and_has_no_record_any_more_is_not_greeted() -> None:
    """Its record expires while the sample that it is in is asked."""
    driven = crowd_of_a_stage_peer(2 * CROWD)
    silent, *others = greeted(driven)
    driven.handle(ev.CheckFailed(silent, "refused", silent=False))
    driven.sees([*SMALL, *(one for one in ghosts(2 * CROWD, sequence_number=1) if one.peer != silent)])
    assert silent not in greeted(driven)
    for peer in others:
        driven.handle(ev.CheckAnswered(peer, (), 0.01))
    assert len(counts(driven)) == 3 + 2 * CROWD - 1


def test_who_has_answered_counts_before_the_end_of_its_round_when_it_says_something() -> None:
    driven = attacked()
    ghost = ghosts(1)[0].peer
    driven.handle(ev.CheckAnswered(ghost, (), 0.01))
    driven.sees([*SMALL, *ghosts(MANY, sequence_number=1)])
    assert counts(driven) == {D, A, B}
    driven.hears(ghost, msg.Inquire(0, 1))
    assert counts(driven) == {D, A, B, ghost} and not driven.reported("message_refused")


def test_a_data_peer_vouches_for_a_large_crowd_by_a_larger_sample() -> None:
    driven = data_peer()
    driven.handle(ev.Started(0, incarnation=7))
    driven.sees([record(D), *ghosts(2 * CROWD)])
    sample = greeted(driven)
    assert len(sample) == SAMPLE_TO_PLAN > SAMPLE and not counts(driven)
    for n, peer in enumerate(sample):
        driven.handle(ev.CheckFailed(peer, "refused", silent=False) if n < MOST_SILENT else ev.CheckAnswered(peer, (), 0.01))
        assert not greeted(driven)
    assert len(counts(driven)) == 1 + 2 * CROWD


def test_a_data_peer_greets_all_of_a_crowd_whose_sample_is_silent() -> None:
    driven = data_peer()
    driven.handle(ev.Started(0, incarnation=7))
    driven.sees([record(D), *ghosts(2 * CROWD)])
    every = waiting = [ask.peer for ask in driven.did(ef.Ask)]
    while waiting:
        waiting = fail(driven, waiting)
        every = [*every, *waiting]
    assert len({*every}) == 2 * CROWD


@pytest.mark.parametrize(("is_data_peer", "ghosts_are"), [(False, MANY), (False, 2 * CROWD), (True, 2 * CROWD)])
def test_each_of_a_crowd_that_says_something_counts_at_once_and_former_views_stay(is_data_peer: bool, ghosts_are: int) -> None:
    driven = data_peer() if is_data_peer else in_step()
    driven.handle(ev.Started(0, incarnation=7))
    driven.sees(SMALL)
    crowd = ghosts(ghosts_are)
    driven.sees([*SMALL, *crowd])
    expected, seen = {D, A, B}, []
    for n in (5, 3, 99, 300):
        driven.hears(crowd[n].peer, msg.Inquire(0, 1))
        expected |= {crowd[n].peer}
        view = driven.machine.ctx.view
        assert view is not None and counts(driven) == expected and len(view.records) == len(expected)
        assert crowd[n].peer in view.records and crowd[7].peer not in view.records
        assert view.records.get(crowd[7].peer) is None and view.records[crowd[n].peer] is crowd[n]
        in_stage = {peer for peer in expected if view.records[peer].stage == 1}
        assert view.peers_of_stage(Stage(1)) == tuple(sorted(in_stage))
        seen.append((view, {*expected}))
    assert all({*view.records} == then for view, then in seen)
