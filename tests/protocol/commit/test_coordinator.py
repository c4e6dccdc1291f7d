"""The coordinator: when it inquires, when it sends out a `Prepare`, what ends an attempt, whom it tells."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.roster import PASSED_FOR_S, PATIENCE_S, PATIENCE_TIMES
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Ballot
from gwtf_p2p.protocol.wire.receipts import digest_of
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

# ---- towards an attempt


def test_a_coordinator_that_has_not_led_before_asks_everybody_first() -> None:
    driven = finished()
    assert driven.sent_to(msg.Inquire) == [D, A, B]
    assert not driven.did(ef.Average)


def test_an_attempt_begins_when_everybody_has_answered_in_a_number_above_the_question() -> None:
    driven = finished()
    driven.hears(A, msg.Standing(Stage(1), 0, promised=Ballot(1, D)))
    assert not driven.sent(msg.Prepare)
    driven.hears(B, msg.Standing(Stage(2), 0, promised=Ballot(1, D)))
    prepares = dict(zip(driven.sent_to(msg.Prepare), driven.sent(msg.Prepare), strict=True))
    assert {to: (m.stage, m.ballot) for to, m in prepares.items()} == {to: (STAGE_OF[to], Ballot(2, D)) for to in (D, A, B)}
    assert all(m.share_of(to) == {M} for to, m in prepares.items())


def test_a_late_answer_is_asked_for_again_and_a_lost_peer_is_waited_for_no_more() -> None:
    driven = finished()
    driven.hears(A, msg.Standing(Stage(1), 0, promised=Ballot(1, D)))
    driven.fires(ev.Timer.INQUIRE)
    assert driven.sent_to(msg.Inquire) == [B] and driven.is_armed(ev.Timer.INQUIRE)
    driven.sees([D, A, record(B), PeerId("two_1")])
    driven.loses(B)
    assert not driven.did(ef.Average), "what B did has to be done again"
    assert driven.reported("inquired")


def test_all_data_peers_are_waited_for_and_asked_when_they_are_late() -> None:
    driven = leading(A, B, D2, microbatches=1)
    for _ in ("D takes the lead", "D2 asks to be admitted"):
        driven.hears(D2, msg.Standing(DATA_STAGE, 0, joining=True))
    all_answer(driven)
    goes_round(driven, M, LINE)
    assert driven.reported("close_waits") == [{"iteration": 0, "for_data_peers": [D2], "for_redo": []}]
    driven.fires(ev.Timer.WAIT)
    assert D2 in driven.sent_to(msg.Inquire)
    assert not driven.sent(msg.Prepare)


def waiting_for_another() -> Driven:
    """All is done but what D2 has, which answers and does not finish."""
    driven = leading(A, B, D2, microbatches=1)
    for _ in ("D takes the lead", "D2 asks to be admitted"):
        driven.hears(D2, msg.Standing(DATA_STAGE, 0, joining=True))
    all_answer(driven)
    goes_round(driven, M, LINE)
    return driven


def test_a_data_peer_that_never_finishes_is_passed_over_when_the_others_have_waited_long_enough() -> None:
    driven = waiting_for_another()
    driven.fires(ev.Timer.WAIT)
    assert not driven.reported("data_peer_passed_over")
    driven.now += PATIENCE_TIMES * PATIENCE_S
    driven.fires(ev.Timer.WAIT)
    [told] = driven.reported("data_peer_passed_over")
    assert (told["peer"], told["iteration"], told["for_s"]) == (D2, 0, PASSED_FOR_S)
    all_answer(driven)
    prepares = {m.stage: m for m in driven.sent(msg.Prepare)}
    assert {m for prepare in prepares.values() for m in prepare.share_of(D2)} == set()
    assert all(prepare.data_peers == (D,) for prepare in prepares.values())


def test_whose_work_is_being_done_again_is_waited_for_however_long() -> None:
    driven = leading(A, B, D2, microbatches=1, me=D)
    for _ in ("D takes the lead", "D2 asks to be admitted"):
        driven.hears(D2, msg.Standing(DATA_STAGE, 0, joining=True))
    all_answer(driven)
    ledger = (msg.Credit(0, (A, B)),)
    driven.hears(D2, msg.Finished(0, ledger, 1.0, receipt=receipt_of(D2, ledger)))
    goes_round(driven, M, (A, B2))
    driven.loses(B)
    driven.now += PATIENCE_TIMES * PATIENCE_S
    driven.fires(ev.Timer.WAIT)
    assert not driven.reported("data_peer_passed_over")


def test_whoever_is_passed_over_again_has_less_patience_and_is_left_out_for_longer() -> None:
    driven = waiting_for_another()
    roster = driven.machine.coordinator.roster  # type: ignore[union-attr]
    assert roster.patience_s(D2, 1.0) == PATIENCE_S and roster.patience_s(D2, 100.0) == PATIENCE_TIMES * 100.0
    assert roster.pass_over(D2) == PASSED_FOR_S and D2 not in roster.data_peers()
    driven.now += PASSED_FOR_S
    driven.hears(A, msg.Check(()))
    assert D2 in roster.data_peers() and roster.patience_s(D2, 1.0) == PATIENCE_S / 2
    assert roster.pass_over(D2) == 4 * PASSED_FOR_S
    assert all(roster.pass_over(D2) <= 3600.0 for _ in range(20)) and roster.patience_s(D2, 1.0) == 2.0
    driven.now += 40 * 3600.0
    driven.hears(A, msg.Check(()))
    assert roster.patience_s(D2, 1.0) == PATIENCE_S, "in time it is forgotten"


def test_a_report_of_another_iteration_closes_nothing_and_an_old_one_is_shown_the_way() -> None:
    driven = leading(microbatches=1, version=3)
    all_answer(driven)
    driven.hears(D2, msg.Finished(4, (), 0.0))
    assert not driven.out
    driven.hears(D2, msg.Finished(2, (), 0.0))
    assert driven.sent(msg.Standing, D2)[0].version == 3


def test_who_does_not_lead_says_so_to_a_data_peer_that_reports_to_it() -> None:
    driven = leading(A, B, D, me=D2, microbatches=1)
    driven.hears(D, msg.Admit(0, data_peers=(D, D2)))
    driven.hears(D3, msg.Finished(0, (), 0.0))
    assert driven.sent(msg.Standing, D3)[0].coordinator == D
    assert not driven.sent(msg.Inquire)


# ---- an attempt under way


def test_an_attempt_is_committed_when_all_have_prepared() -> None:
    driven = preparing()
    average(driven, A)
    assert not driven.sent(msg.Commit)
    driven.hears(A, msg.Prepared(0, 2, Stage(1), "stage 1"))
    assert driven.sent_to(msg.Commit) == [D, A, B]
    assert [(step.iteration, step.attempt) for step in driven.did(ef.Step)] == [(0, 2)]
    assert set(driven.sent(msg.Commit)) == {msg.Commit(0, 2, D, 2.0)}


@pytest.mark.parametrize(("of_stage_2", "norm"), [(144.0, 13.0), (-1.0, -1.0)])
def test_the_commit_has_the_whole_models_norm_and_every_step_is_clipped_by_it(of_stage_2: float, norm: float) -> None:
    driven = preparing()
    driven.handle(ev.AverageDone(0, 2, "stage 0", 0.1, squared_norm=9.0))
    driven.hears(A, msg.Prepared(0, 2, Stage(1), "stage 1", 16.0))
    driven.hears(B, msg.Prepared(0, 2, Stage(2), "stage 2", of_stage_2))
    assert set(driven.sent(msg.Commit)) == {msg.Commit(0, 2, D, 2.0, norm)}
    assert [step.gradient_norm for step in driven.did(ef.Step)] == [norm]


def test_a_group_that_says_different_norms_of_one_average_is_aborted() -> None:
    driven = leading(A, A2, B, microbatches=1)
    goes_round(driven, M, LINE)
    all_answer(driven)
    driven.handle(ev.AverageDone(0, 2, "stage 0", 0.1))
    for peer, squared in ((A, 1.0), (A2, 100.0), (B, 1.0)):
        driven.hears(peer, msg.Prepared(0, 2, Stage(STAGE_OF[peer]), f"stage {STAGE_OF[peer]}", squared))
    assert driven.reported("average_failed")[0]["reason"] == "participants of stage 1 ended with different norms of one average"
    assert not driven.sent(msg.Commit)


def test_what_is_said_of_an_attempt_that_is_over_does_not_count() -> None:
    driven = preparing()
    average(driven, A)
    for old in (msg.Prepared(0, 1, Stage(1), "x"), msg.Prepared(1, 2, Stage(1), "x"), msg.NotPrepared(0, 1, Stage(1), "x")):
        driven.hears(A, old)
        assert not driven.sent(msg.Commit) and not driven.sent(msg.Abort)


def test_an_attempt_whose_groups_disagree_is_aborted_and_tried_again() -> None:
    driven = leading(A, A2, B, microbatches=1)
    goes_round(driven, M, LINE)
    all_answer(driven)
    driven.handle(ev.AverageDone(0, 2, "stage 0", 0.1))
    for peer, digest in ((A, "one"), (A2, "another"), (B, "b")):
        driven.hears(peer, msg.Prepared(0, 2, Stage(STAGE_OF[peer]), digest))
    assert driven.reported("average_failed")[0]["reason"] == "participants of stage 1 ended with different averages"
    assert set(driven.sent_to(msg.Abort)) == {D, A, A2, B} and not driven.sent(msg.Commit)
    driven.fires(ev.Timer.PREPARE)
    assert {m.attempt for m in driven.sent(msg.Prepare)} == {3}


def test_a_participant_that_failed_ends_the_attempt_and_its_suspect_is_asked() -> None:
    driven = preparing()
    driven.hears(A, msg.NotPrepared(0, 2, Stage(1), "silent", B))
    assert set(driven.sent_to(msg.Abort)) == {D, A, B}
    assert [ask.peer for ask in driven.did(ef.Ask)] == [B]


def test_no_attempt_begins_while_it_is_open_whether_the_suspect_of_the_last_one_lives() -> None:
    driven = preparing()
    driven.hears(A, msg.NotPrepared(0, 2, Stage(1), "silent", B))
    driven.fires(ev.Timer.PREPARE)
    assert not driven.sent(msg.Prepare), "it would fail on the same peer"
    driven.handle(ev.CheckAnswered(B, frozenset(), 0.1))
    assert {m.attempt for m in driven.sent(msg.Prepare)} == {3}


def test_a_suspect_that_is_found_to_be_lost_is_left_out_of_the_next_attempt() -> None:
    driven = leading(A, B, B2, microbatches=1)
    goes_round(driven, M, LINE)
    all_answer(driven)
    driven.hears(A, msg.NotPrepared(0, 2, Stage(1), "silent", B2))
    driven.fires(ev.Timer.PREPARE)
    assert not driven.sent(msg.Prepare)
    driven.loses(B2)
    assert set(driven.sent_to(msg.Prepare)) == {D, A, B}


def test_what_a_participant_lacks_has_to_be_redone_before_the_next_attempt() -> None:
    driven = preparing()
    driven.hears(A, msg.NotPrepared(0, 2, Stage(1), "missing", None, (M,)))
    assert driven.sent(msg.Abort)
    assert driven.sent(msg.Missing, D) == [msg.Missing(A, Stage(1), (M,))], "its data peer is told, which is this one"
    driven.fires(ev.Timer.PREPARE)
    assert not driven.sent(msg.Prepare)


def test_a_participant_that_is_late_is_asked_and_sent_its_prepare_again() -> None:
    driven = preparing()
    average(driven, A)
    driven.fires(ev.Timer.AVERAGE)
    assert driven.sent_to(msg.Prepare) == [A] and [a.peer for a in driven.did(ef.Ask)] == [A]
    assert driven.is_armed(ev.Timer.AVERAGE)


def test_a_lost_participant_ends_the_attempt_and_those_concerned_hear_of_it() -> None:
    driven = preparing()
    driven.loses(B)
    assert set(driven.sent_to(msg.Abort)) == {D, A, B}
    assert driven.sent(msg.Lost, A)[0].peer == B


def test_a_participant_that_leaves_ends_the_attempt() -> None:
    driven = preparing()
    driven.hears(A, msg.Standing(Stage(1), 0, leaving=True))
    assert driven.reported("average_failed")[0]["reason"] == "one_0 leaves"


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (msg.Standing(Stage(1), 0, joining=True), "one_0 is not at iteration 0"),
        (msg.Standing(Stage(1), 0, promised=Ballot(9, D2)), "one_0 is not free for it"),
    ],
    ids=["it has started again", "it has promised somebody else"],
)
def test_a_participant_that_cannot_take_part_ends_the_attempt(standing: msg.Standing, reason: str) -> None:
    driven = preparing()
    driven.hears(A, standing)
    assert [r["reason"] for r in driven.reported("average_failed")] == [reason]


def test_a_committed_attempt_is_not_given_up() -> None:
    driven = preparing()
    average(driven)
    driven.hears(A, msg.NotPrepared(0, 2, Stage(1), "late"))
    driven.loses(B)
    assert not driven.sent(msg.Abort)


# ---- other coordinators


def test_a_higher_promise_makes_the_coordinator_wait_and_ask_in_a_higher_number() -> None:
    driven = finished()
    all_answer(driven, one_0={"promised": Ballot(4, D2)})
    assert not driven.sent(msg.Prepare) and driven.reported("inquired")
    driven.fires(ev.Timer.PREPARE)
    assert {m.attempt for m in driven.sent(msg.Inquire)} == {5}


def test_an_attempt_that_all_who_answer_have_prepared_is_committed_for_its_dead_coordinator() -> None:
    driven = leading(A, B, D, me=D2, microbatches=1)
    driven.hears(D, msg.Admit(0, data_peers=(D, D2)))
    mine = microbatch(of=D2)
    goes_round(driven, mine, LINE)
    ballot = Ballot(7, D)
    receipts = (receipt_of(D2, (msg.Credit(0, LINE),)),)
    shares = (msg.Share(D, ()), msg.Share(D2, (mine,)))
    driven.hears(D, msg.Prepare(0, 7, D, DATA_STAGE, shares, receipts=receipts, receipts_digest=digest_of(receipts)))
    driven.handle(ev.AverageDone(0, 7, "stage 0", 0.1))
    assert driven.sent(msg.Prepared, D) == [msg.Prepared(0, 7, DATA_STAGE, "stage 0")]
    driven.loses(D)
    assert driven.sent_to(msg.Inquire) == [D2, A, B], "the former coordinator may have committed already"
    [number] = {m.attempt for m in driven.sent(msg.Inquire)}
    assert number == 8
    for peer in (A, B):
        own = prepare_of(STAGE_OF[peer], ballot)
        promised = Ballot(number, D2)
        stands = msg.Standing(Stage(STAGE_OF[peer]), 0, promised=promised, prepare=own, prepared=True, digest=f"{peer}")
        driven.hears(peer, stands)
    assert set(driven.sent(msg.Commit)) == {msg.Commit(0, 7, D, 0.0)}
    assert driven.did(ef.Step) == [ef.Step(0, 7, receipts=receipts)], "though nobody has told it of them again"


def test_a_participant_of_an_attempt_without_a_future_is_freed() -> None:
    driven = preparing()
    driven.hears(A, msg.NotPrepared(0, 2, Stage(1), "silent"))
    driven.hears(B, msg.Standing(Stage(2), 0, prepare=prepare_of(2, Ballot(2, D)), promised=Ballot(2, D)))
    assert driven.sent(msg.Abort, B) == [msg.Abort(0, 2)]
    driven.hears(B, msg.Standing(Stage(2), 0, prepare=prepare_of(2, Ballot(1, D2)), promised=Ballot(1, D2)))
    assert driven.sent(msg.Inquire, B) == [msg.Inquire(0, 2)], "of another coordinator: it must be asked first"


def test_of_two_data_peers_that_have_started_alone_the_lower_id_leads() -> None:
    driven = leading(A, B, me=D2, microbatches=1, version=3)
    all_answer(driven)
    driven.hears(D, msg.Standing(DATA_STAGE, 3, active=True, taking_part=True, coordinator=D))
    assert driven.machine.participant.standing().coordinator == D
    lower = leading(A, B, me=D, microbatches=1, version=3)
    all_answer(lower)
    lower.hears(D2, msg.Standing(DATA_STAGE, 3, active=True, taking_part=True, coordinator=D2))
    assert lower.machine.participant.standing().coordinator == D and lower.sent(msg.Standing, D2)


# ---- peers that are elsewhere


def test_a_peer_that_has_missed_a_commit_gets_it_or_is_told_where_to_catch_up() -> None:
    driven = preparing()
    average(driven)
    driven.handle(ev.Stepped(0))
    own = prepare_of(1, Ballot(2, D))
    driven.hears(A, msg.Standing(Stage(1), 0, prepare=own, prepared=True, promised=Ballot(2, D)))
    assert driven.sent(msg.Commit, A) == [msg.Commit(0, 2, D, 0.0)]
    driven.hears(A, msg.Standing(Stage(1), 0, promised=Ballot(2, D)))
    assert not driven.sent(msg.Commit) and driven.sent(msg.Standing, A)[0].version == 1


def test_who_led_one_iteration_need_not_ask_in_the_next() -> None:
    driven = preparing()
    average(driven)
    driven.handle(ev.Stepped(0))
    goes_round(driven, microbatch(0, 1), LINE)
    assert not driven.sent(msg.Inquire)
    assert {m.attempt for m in driven.sent(msg.Prepare)} == {1} and {m.base for m in driven.sent(msg.Prepare)} == {Ballot(2, D)}


def test_a_lost_peer_that_is_back_is_asked_where_it_stands() -> None:
    driven = leading(microbatches=1)
    driven.loses(B)
    driven.handle(ev.CheckAnswered(B, (), 0.01))
    assert driven.sent(msg.Inquire, B) == [msg.Inquire(0)]


def test_a_coordinator_that_finds_itself_behind_catches_up() -> None:
    driven = leading(microbatches=1, version=3)
    ahead = {"version": 4, "promised": None}
    all_answer(driven, one_0=ahead, two_0=ahead)
    assert not driven.reported("out_of_step"), "nobody of stage 0 is ahead"
    driven = leading(A, B, D2, microbatches=1, version=3)
    driven.hears(D2, msg.Standing(DATA_STAGE, 3, joining=True))
    all_answer(driven, one_0=ahead, two_0=ahead, data_1=ahead)
    assert driven.reported("out_of_step")
