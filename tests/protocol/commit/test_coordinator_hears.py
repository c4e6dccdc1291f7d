"""The coordinator: what a report, a timer or a goodbye finds it at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Ballot
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from gwtf_p2p.simulation.world.signatures import key_of, sign, verify
from tests.protocol.commit.coordinating import LINE, M, average, finished, prepare_of, preparing
from tests.protocol.peers import (
    A2,
    B2,
    D2,
    D3,
    STAGE_OF,
    A,
    B,
    D,
    Driven,
    all_answer,
    goes_round,
    leading,
    microbatch,
    receipt_of,
    record,
)


def with_guest(**how: object) -> Driven:
    """D leads, and D2 takes part too."""
    driven = leading(A, B, D2, microbatches=1, **how)  # type: ignore[arg-type]
    for _ in ("D takes the lead", "D2 asks to be admitted"):
        driven.hears(D2, msg.Standing(DATA_STAGE, 0, joining=True))
    all_answer(driven)
    return driven


def test_a_report_that_credits_a_lost_peer_is_void_at_once() -> None:
    driven = with_guest()
    driven.loses(B)
    ledger = (msg.Credit(0, LINE),)
    driven.hears(D2, msg.Finished(0, ledger, 1.0, receipt=receipt_of(D2, ledger)))
    assert driven.sent(msg.Missing, D2) == [msg.Missing(B, Stage(2), (microbatch(of=D2),))]


def test_where_nobody_has_done_anything_there_is_nothing_to_average() -> None:
    driven = leading(microbatches=1)
    driven.hears(D, msg.Finished(0, (), 0.0))
    assert not driven.sent(msg.Inquire) and not driven.sent(msg.Prepare)


def test_late_data_peers_are_not_asked_while_an_inquiry_is_under_way() -> None:
    driven = with_guest()
    goes_round(driven, M, LINE)
    driven.hears(A2, msg.Standing(Stage(1), 5, joining=True))
    assert driven.sent(msg.Inquire)
    driven.fires(ev.Timer.WAIT)
    assert not driven.sent(msg.Inquire) and not driven.did(ef.Ask)


def test_a_coordinator_that_has_just_taken_over_asks_everybody_when_a_data_peer_does_not_finish() -> None:
    """The attempt of the lost coordinator may keep it from finishing."""
    driven = leading(A, B, D, D3, me=D2, microbatches=1)
    driven.hears(D, msg.Admit(0, data_peers=(D, D2, D3)))
    goes_round(driven, microbatch(of=D2), LINE)
    driven.loses(D)
    assert not [m for m in driven.sent(msg.Inquire) if m.attempt]
    driven.fires(ev.Timer.WAIT)
    assert {m.attempt for m in driven.sent(msg.Inquire)} == {0, 1}


def test_a_data_peer_with_the_weights_that_is_not_expected_is_admitted() -> None:
    driven = leading(microbatches=1, version=3)
    all_answer(driven)
    driven.hears(D2, msg.Standing(DATA_STAGE, 3))
    assert driven.sent(msg.Admit, D2)


def test_before_the_first_commit_records_settle_who_leads() -> None:
    driven = leading(A, B, me=D2, microbatches=1)
    driven.hears(D, msg.Standing(DATA_STAGE, 0, active=True, taking_part=True, coordinator=D))
    assert not driven.sent(msg.Abort) and not driven.sent(msg.Standing, D)


def test_who_takes_part_in_a_higher_attempt_of_another_coordinator_is_left_alone() -> None:
    driven = preparing()
    driven.hears(A, msg.NotPrepared(0, 2, Stage(1), "silent"))
    driven.hears(B, msg.Standing(Stage(2), 0, prepare=prepare_of(2, Ballot(9, D2)), promised=Ballot(9, D2)))
    assert not driven.sent(msg.Inquire, B) and not driven.sent(msg.Abort, B)


def test_the_answer_of_a_peer_that_leaves_is_not_waited_for() -> None:
    driven = finished()
    driven.hears(A, msg.Standing(Stage(1), 0, promised=Ballot(1, D)))
    driven.hears(B, msg.Standing(Stage(2), 0, leaving=True))
    assert driven.reported("inquired")


def test_nobody_is_waited_for_once_an_attempt_is_committed() -> None:
    driven = preparing()
    assert driven.machine.coordinator.waits_for() == [D, A, B]
    average(driven)
    assert driven.machine.coordinator.waits_for() == []


def test_who_has_not_heard_that_the_swarm_went_back_is_admitted_when_it_says_where_it_stands() -> None:
    """The first `Admit` was lost: to those that do not know the coordinator yet, it is a stranger."""
    driven = leading(microbatches=1, version=4)
    later = {"version": 6, "kept": (4, 6), "promised": None}
    all_answer(driven, **{A: later, B: later})
    assert sorted(driven.sent_to(msg.Admit)) == sorted([D, A, B])
    driven.handle(ev.Downloaded(4))
    for peer, stage in ((A, 1), (B, 2), (A, 1)):
        driven.hears(peer, msg.Standing(Stage(stage), 6, kept=(4, 6)))
    assert [m.position for m in driven.sent(msg.Admit, A)] == [(1, 4)]


@pytest.mark.parametrize("state", ["", "weights and moments"])
def test_who_averages_for_a_state_that_is_all_there_is_a_donor_though_its_word_of_that_was_lost(state: str) -> None:
    driven = preparing()
    driven.hears(A, msg.Standing(Stage(1), 0, syncing=True, promised=Ballot(2, D)))
    number = driven.machine.coordinator.under_way.ballot.attempt  # type: ignore[union-attr]
    driven.hears(A, msg.Prepared(0, number, Stage(1), "stage 1", state=state))
    assert driven.machine.coordinator.roster.serving(Stage(1)) == ([A] if state else [])  # type: ignore[union-attr]


def test_peers_that_are_back_since_an_attempt_began_hear_of_its_commit_from_whoever_leads() -> None:
    """Most of stage 2 were lost when it began. Nobody has the proof while they are taken to serve, and they know of nothing."""
    back = (B2, PeerId("third"))
    keyed = {peer: record(peer, stage=STAGE_OF.get(peer, 2), signing_key=key_of(peer)) for peer in (D, A, B, *back)}

    def seen(*others: StageRecord) -> None:
        driven.sees([keyed[D], keyed[A], keyed[B], *others])

    driven = preparing()
    driven.machine.ctx.verify = verify
    [mine] = [effect.prepare for effect in driven.log if isinstance(effect, ef.Average)]
    seen(*(keyed[peer] for peer in back))
    driven.handle(ev.AverageDone(0, mine.attempt, "average", 0.1, 1.0, "weights"))
    for peer in (A, B):
        said = msg.Prepared(0, mine.attempt, Stage(STAGE_OF[peer]), "average", 1.0, mine.terms, "weights")
        driven.hears(peer, replace(said, signature=sign(peer, said.statement)))
    [told] = {message for peer in back for message in driven.sent(msg.Commit, peer)}
    assert told.certificate is not None and not driven.did(ef.Step)
    for after_s, again in ((0.5, []), (1.0, list(back))):
        driven.now += after_s
        seen(*(replace(keyed[peer], sequence_number=int(10 * driven.now)) for peer in back))
        assert [peer for peer in driven.sent_to(msg.Commit) if peer != D] == sorted(again), "not with every record"
    seen(*(replace(keyed[peer], state=PeerState.JOINING, sequence_number=1) for peer in back))
    assert driven.did(ef.Step)
