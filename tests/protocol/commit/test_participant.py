"""One peer's part in closing an iteration: promises, shares, averages, the step. A stage peer is driven through its events."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Ballot
from tests.protocol.commit.participating import M0, M1, counted, prepare, prepared, standing
from tests.protocol.peers import A2, D2, B, C, D, in_step, record

# ---- the promise


def test_a_participant_takes_part_in_rising_attempts_of_one_coordinator() -> None:
    driven = in_step()
    driven.hears(D, prepare(2))
    assert standing(driven).promised == Ballot(2, D)
    driven.hears(D, prepare(1))
    assert not driven.did(ef.Average) and driven.sent(msg.Standing, D)[0].promised == Ballot(2, D), "a lower number"
    driven.hears(D, prepare(3))
    assert driven.did(ef.CancelAverage) == [ef.CancelAverage(0, 2)] and driven.did(ef.Average)


def test_a_participant_takes_part_in_no_attempt_of_a_coordinator_that_has_not_asked() -> None:
    driven = in_step()
    driven.hears(D, prepare(1))
    driven.hears(D2, prepare(9, D2))
    assert not driven.did(ef.Average) and driven.sent(msg.Standing, D2)[0].prepare == prepare(1)


def test_a_question_with_a_higher_number_ends_what_is_not_prepared_and_bars_all_lower_attempts() -> None:
    driven = in_step()
    driven.hears(D, prepare(1))
    driven.hears(D2, msg.Inquire(0, 2))
    assert driven.did(ef.CancelAverage) == [ef.CancelAverage(0, 1)]
    [told] = driven.sent(msg.Standing, D2)
    assert (told.promised, told.prepare, told.prepared) == (Ballot(2, D2), None, False)
    for late in (prepare(1), prepare(2), prepare(9)):
        driven.hears(D, late)
        assert not driven.did(ef.Average), "of another coordinator than the one that has asked"
    driven.hears(D2, prepare(2, D2))
    assert driven.did(ef.Average)


def test_what_is_prepared_is_kept_and_told_when_another_coordinator_asks() -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    driven.hears(D2, msg.Inquire(0, 2))
    [told] = driven.sent(msg.Standing, D2)
    assert (told.promised, told.prepare, told.prepared, told.digest) == (Ballot(2, D2), prepare(1), True, "bytes")
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    assert driven.did(ef.Step) == [ef.Step(0, 1)], "it may have been committed before"


@pytest.mark.parametrize(("number", "by"), [(1, D2), (2, D), (0, D2)])
def test_a_promise_is_not_lowered(number: int, by: PeerId) -> None:
    driven = in_step()
    driven.hears(D2, msg.Inquire(0, 2))
    driven.hears(by, msg.Inquire(0, number))
    assert driven.sent(msg.Standing, by)[0].promised == Ballot(2, D2)


def test_of_equal_numbers_the_higher_id_gets_the_promise() -> None:
    driven = in_step()
    driven.hears(D, msg.Inquire(0, 2))
    driven.hears(D2, msg.Inquire(0, 2))
    assert driven.sent(msg.Standing, D2)[0].promised == Ballot(2, D2)


def test_a_question_about_another_iteration_binds_nobody() -> None:
    driven = in_step()
    driven.hears(D2, msg.Inquire(1, 5))
    assert driven.sent(msg.Standing, D2)[0].promised is None


def test_a_prepare_of_another_iteration_or_group_is_answered_with_where_it_stands() -> None:
    driven = in_step()
    others = msg.Prepare(0, 1, D, Stage(1), (msg.Share(A2, ()),))
    wrong = {"not mine": others, "later": prepare(iteration=3), "epoch": prepare(epoch=1)}
    for why, message in wrong.items():
        driven.hears(D, message)
        assert not driven.did(ef.Average) and driven.sent(msg.Standing, D), why
    assert standing(driven).promised is None


def test_a_repeated_prepare_is_answered_again_and_averaged_once() -> None:
    driven = in_step()
    driven.hears(D, prepare(1))
    driven.hears(D, prepare(1))
    assert not driven.did(ef.Average) and not driven.sent(msg.Prepared)
    driven.handle(ev.AverageDone(0, 1, "bytes", 0.1))
    driven.hears(D, prepare(1))
    assert driven.sent(msg.Prepared, D) == [msg.Prepared(0, 1, Stage(1), "bytes")]


# ---- the share


def test_the_gradient_is_made_equal_to_the_share_before_it_is_averaged() -> None:
    """What is not credited is taken out; what an earlier attempt took out is put back."""
    driven = counted(M0, M1)
    driven.hears(D, prepare(1, share=(M0,)))
    assert driven.did(ef.Compute) == [ef.Compute(ev.Work.UNCOUNT, M1)] and not driven.did(ef.Average)
    driven.computes(ev.Work.UNCOUNT, M1)
    assert driven.did(ef.Average) == [ef.Average(prepare(1, share=(M0,)))]
    driven.hears(D, msg.Abort(0, 1))
    driven.hears(D, prepare(2, share=(M0, M1)))
    assert driven.did(ef.Compute) == [ef.Compute(ev.Work.RECOUNT, M1)]
    driven.computes(ev.Work.RECOUNT, M1)
    assert driven.did(ef.Average)


def test_a_participant_that_lacks_what_it_is_credited_with_refuses_and_names_it() -> None:
    driven = counted(M0)
    driven.hears(D, prepare(1, share=(M0, M1)))
    assert driven.sent(msg.NotPrepared, D) == [msg.NotPrepared(0, 1, Stage(1), "missing", None, (M1,))]
    assert not driven.did(ef.Average) and standing(driven).prepare is None


def test_nothing_is_averaged_while_a_backward_changes_the_gradient() -> None:
    driven = in_step()
    driven.is_accepted(driven.hands_on(M0, D, (7, 0), (B, C)))
    driven.gets_gradient(M0, B, (7, 0, 0), (B, C))
    driven.hears(D, prepare(1))
    assert not driven.did(ef.Average)
    driven.computes(ev.Work.BACKWARD, M0)
    assert driven.did(ef.Compute) == [ef.Compute(ev.Work.UNCOUNT, M0)]
    driven.computes(ev.Work.UNCOUNT, M0)
    assert driven.did(ef.Average)


def test_no_backward_begins_while_the_gradient_is_fixed() -> None:
    driven = in_step()
    driven.is_accepted(driven.hands_on(M0, D, (7, 0), (B, C)))
    driven.hears(D, prepare(1))
    driven.gets_gradient(M0, B, (7, 0, 0), (B, C))
    assert not driven.did(ef.Compute)
    driven.handle(ev.AverageDone(0, 1, "bytes", 0.1))
    assert driven.did(ef.Compute) == [ef.Compute(ev.Work.BACKWARD, M0)], "a prepared average is apart from the gradient"


# ---- the average


def test_an_average_that_fails_is_told_with_its_suspect_and_leaves_the_peer_free() -> None:
    driven = in_step()
    driven.hears(D, prepare(1))
    driven.handle(ev.AverageFailed(0, 1, "silent", A2))
    assert driven.sent(msg.NotPrepared, D) == [msg.NotPrepared(0, 1, Stage(1), "silent", A2)]
    assert standing(driven).prepare is None
    driven.hears(D, prepare(2))
    assert driven.did(ef.Average)


@pytest.mark.parametrize("event", [ev.AverageDone(0, 1, "old", 0.1), ev.AverageFailed(0, 1, "old")])
def test_the_end_of_an_attempt_that_was_given_up_says_nothing(event: ev.Event) -> None:
    driven = in_step()
    driven.hears(D, prepare(1))
    driven.hears(D, prepare(2))
    driven.handle(event)
    assert not driven.sent(msg.Prepared) and not driven.sent(msg.NotPrepared)
    assert standing(driven).prepare == prepare(2)


def test_only_the_coordinator_of_an_attempt_aborts_it() -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    for sender, abort in ((D2, msg.Abort(0, 1)), (D, msg.Abort(0, 2)), (D, msg.Abort(1, 1))):
        driven.hears(sender, abort)
        assert standing(driven).prepared
    driven.hears(D, msg.Abort(0, 1))
    assert not standing(driven).prepared


def test_a_long_average_makes_the_peer_say_where_it_stands() -> None:
    driven = in_step()
    driven.hears(D, prepare(1))
    driven.fires(ev.Timer.AVERAGING)
    assert driven.sent_to(msg.Standing) == [D] and driven.is_armed(ev.Timer.AVERAGING)


def test_a_long_average_is_told_to_who_wants_it_to_who_leads_and_to_the_other_data_peers_in_turn() -> None:
    driven = in_step()
    others = [PeerId(f"data_x{n}") for n in range(5)]
    driven.sees([record(peer, stage=0) for peer in (D, D2, *others)] + [record(driven.me)])
    driven.hears(D2, prepare(1, D2))
    told = []
    for _ in others:
        driven.fires(ev.Timer.AVERAGING)
        told.append(driven.sent_to(msg.Standing))
    assert all(peers[:2] == [D, D2] for peers in told)
    assert sorted(peer for peers in told for peer in peers[2:]) == others


# ---- the commit


def test_a_commit_is_one_step_however_often_it_is_said() -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    assert driven.did(ef.Step) == [ef.Step(0, 1)]
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    assert not driven.did(ef.Step)
    driven.handle(ev.Stepped(0))
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    told = standing(driven)
    assert (told.version, told.committed, told.syncing) == (1, Ballot(1, D), False) and not driven.did(ef.Step)


def test_while_it_steps_a_participant_neither_promises_nor_prepares_nor_aborts() -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    driven.hears(D2, msg.Inquire(0, 9))
    assert driven.sent(msg.Standing, D2)[0].promised == Ballot(1, D)
    driven.hears(D, prepare(2))
    assert driven.sent(msg.Standing, D)
    driven.hears(D, msg.Abort(0, 1))
    driven.handle(ev.Stepped(0))
    assert standing(driven).version == 1


def test_the_prepare_of_the_next_iteration_waits_for_the_step_of_this_one() -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    following = prepare(1, iteration=1, base=Ballot(1, D))
    driven.hears(D, following)
    assert not driven.did(ef.Average) and driven.sent(msg.Standing, D), "the commit has not come: say so"
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    driven.handle(ev.Stepped(0))
    assert driven.did(ef.Average) == [ef.Average(following)]


@pytest.mark.parametrize("commit", [msg.Commit(0, 2, D, 0.0), msg.Commit(0, 1, D2, 0.0), msg.Commit(3, 1, D, 0.0)])
def test_a_commit_of_what_it_has_not_prepared_leaves_a_participant_behind(commit: msg.Commit) -> None:
    driven = counted(M0)
    prepared(driven, prepare(1, share=(M0,)))
    driven.hears(D, commit)
    assert driven.reported("out_of_step") and driven.did(ef.Discard) == [ef.Discard(M0)]
    assert standing(driven).joining
    driven.hears(D, prepare(3))
    assert not driven.did(ef.Average), "it must catch up first"
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    assert not driven.did(ef.Step)


def test_weights_of_another_average_of_the_same_iteration_belong_to_no_version() -> None:
    """Two ways to find out: a commit of the former iteration with another ballot, and the base of a `Prepare`."""
    for told in (msg.Commit(0, 2, D2, 0.0), prepare(1, iteration=1, base=Ballot(2, D2))):
        driven = in_step()
        prepared(driven, prepare(1))
        driven.hears(D, msg.Commit(0, 1, D, 0.0))
        driven.handle(ev.Stepped(0))
        driven.hears(D, told)
        assert driven.reported("out_of_step") and standing(driven).version == -1


def test_a_commit_of_long_ago_says_nothing() -> None:
    driven = in_step(iteration=5)
    driven.hears(D, msg.Commit(3, 1, D, 0.0))
    assert not driven.reported("out_of_step")


# ---- what others say of later iterations


def test_somebody_at_the_next_iteration_shows_the_commit_of_what_is_prepared() -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    driven.hears(B, msg.Standing(Stage(2), 1, committed=Ballot(1, D)))
    assert driven.did(ef.Step) == [ef.Step(0, 1)]


@pytest.mark.parametrize(
    "ahead",
    [
        msg.Standing(Stage(2), 1, committed=Ballot(2, D)),
        msg.Standing(Stage(2), 2, committed=Ballot(1, D)),
        msg.Standing(Stage(2), 0, epoch=1),
    ],
    ids=["another average", "two iterations", "a later epoch"],
)
def test_somebody_further_than_one_prepared_commit_leaves_a_participant_behind(ahead: msg.Standing) -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    driven.hears(B, ahead)
    assert not driven.reported("out_of_step"), "one peer's word is not enough"
    assert driven.sent(msg.Inquire, D) == [msg.Inquire(0)], "but a reason to ask"
    driven.hears(D, replace(ahead, stage=Stage(0)))
    assert driven.reported("out_of_step") and not driven.did(ef.Step)


def test_who_steps_is_not_left_behind_by_those_that_have_stepped() -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    driven.hears(B, msg.Standing(Stage(2), 2))
    assert not driven.reported("out_of_step")


# ---- what meets a participant in between


def test_a_prepare_of_the_next_iteration_during_the_step_needs_no_answer() -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    driven.hears(D, prepare(1, iteration=1, base=Ballot(1, D)))
    assert not driven.sent(msg.Standing)
    driven.handle(ev.Stepped(0))
    assert driven.did(ef.Average)


def test_an_attempt_that_is_aborted_while_the_gradient_is_corrected_has_no_average_to_cancel() -> None:
    driven = counted(M0, M1)
    driven.hears(D, prepare(1, share=(M0,)))
    driven.hears(D, msg.Abort(0, 1))
    assert not driven.did(ef.CancelAverage)
    driven.computes(ev.Work.UNCOUNT, M1)
    assert not driven.did(ef.Average)


def test_a_correction_that_ends_after_the_peer_has_fallen_behind_counts_nothing() -> None:
    driven = counted(M0, M1)
    driven.hears(D, prepare(1, share=(M0,)))
    driven.hears(B, msg.Standing(Stage(2), 2))
    driven.hears(D, msg.Standing(Stage(0), 2))
    assert driven.reported("out_of_step")
    driven.computes(ev.Work.UNCOUNT, M1)
    assert not driven.did(ef.Average) and not driven.machine.participant.share.counted
