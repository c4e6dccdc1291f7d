"""The way back: a gradient is handed to whoever sent the input, kept while nobody takes it, and sent again to a replacement."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Verdict
from tests.protocol.peers import A2, A, B, C, D, Driven, DrivenStagePeer, in_step, leading, microbatch

M = microbatch()


def returning() -> tuple[Driven, ef.Push]:
    """B has done its backward and pushes the gradient to A."""
    driven = in_step(B)
    driven.is_accepted(driven.hands_on(M, A, (7, 0, 0), (C,)))
    return driven, driven.finishes(M, C, (7, 0, 0, 0), (C,))


def answers(driven: Driven, push: ef.Push, verdict: Verdict) -> None:
    driven.handle(ev.PushAnswered(push.token, verdict))


def offers_again(driven: Driven, sender: object, attempt: msg.Attempt) -> None:
    driven.handle(ev.Offered(sender, msg.Forward(M, attempt, Stage(2), (C,))))  # type: ignore[arg-type]
    assert driven.verdict()[0] is Verdict.DUPLICATE


def test_the_gradient_goes_to_the_sender_of_the_input_with_who_did_the_stages_from_here_on() -> None:
    _, push = returning()
    assert (push.to, push.slot) == (A, ev.Slot.INPUT_GRADIENT)
    assert push.message == msg.Backward(M, (7, 0, 0), Stage(1), (B, C))


def test_the_gradient_of_a_loss_credits_nobody_yet() -> None:
    driven = leading(microbatches=1)
    driven.computes(ev.Work.EMBED, M)
    driven.is_accepted(driven.pushed())
    result = msg.Forward(M, (7, 0, 0, 0), Stage(3))
    driven.handle(ev.Offered(B, result))
    driven.handle(ev.Delivered(B, result))
    driven.computes(ev.Work.LOSS, M, 1.0)
    assert driven.pushed().message == msg.Backward(M, (7,), Stage(2), ())


def test_a_predecessor_that_has_the_gradient_already_leaves_the_credit_to_be_told() -> None:
    driven, push = returning()
    answers(driven, push, Verdict.DUPLICATE)
    assert driven.sent(msg.Done, D) == [msg.Done(M, Stage(2), (C,))]
    assert not driven.is_armed(ev.Timer.RETURN, M)


def test_a_predecessor_whose_forward_is_not_done_is_tried_again_and_one_that_does_not_hold_it_is_not() -> None:
    driven, push = returning()
    answers(driven, push, Verdict.BUSY)
    driven.fires(ev.Timer.RETURN, M)
    push = driven.pushed()
    assert push.to == A
    answers(driven, push, Verdict.REFUSED)
    assert not driven.is_armed(ev.Timer.RETURN, M), "whoever does will announce itself"
    offers_again(driven, A2, (7, 1, 0))
    assert driven.pushed().to == A2


@pytest.mark.parametrize("event", [ev.PushAnswered(2, Verdict.BUSY), ev.PushDelivered(2, 0.1), ev.PushFailed(2, "reset")])
def test_what_becomes_of_a_return_that_was_replaced_says_nothing(event: ev.Event) -> None:
    driven, push = returning()
    assert push.token == 2
    offers_again(driven, A2, (7, 1, 0))
    assert driven.did(ef.CancelPush) == [ef.CancelPush(2)] and driven.pushed().to == A2
    driven.handle(event)
    assert not driven.did(ef.Push) and not driven.did(ef.Ask)


def test_a_failed_return_is_kept_and_the_predecessor_asked() -> None:
    driven, push = returning()
    driven.handle(ev.PushFailed(push.token, "reset"))
    assert [ask.peer for ask in driven.did(ef.Ask)] == [A] and not driven.did(ef.Push)
    driven.handle(ev.CheckAnswered(A, (), 0.01))
    assert driven.pushed().to == A, "it lives: what could not be handed back can"


def test_a_blocked_return_waits_while_its_predecessor_is_lost_and_goes_to_the_replacement() -> None:
    driven, push = returning()
    driven.loses(A)
    assert ef.CancelPush(push.token) in driven.log and not driven.is_armed(ev.Timer.RETURN, M)
    offers_again(driven, A2, (7, 1, 0))
    assert driven.pushed() == ef.Push(driven.pushed().token, A2, msg.Backward(M, (7, 1, 0), Stage(1), (B, C)), push.slot)


def test_a_gradient_that_was_handed_back_is_handed_back_again_to_a_replacement() -> None:
    driven, push = returning()
    driven.is_accepted(push)
    offers_again(driven, A2, (7, 1, 0))
    assert driven.pushed().to == A2


def test_the_same_predecessor_does_not_start_a_return_that_is_under_way_anew() -> None:
    driven, _ = returning()
    offers_again(driven, A, (7, 0, 1))
    assert not driven.did(ef.Push)


def test_a_late_return_is_asked_about_and_begun_anew_when_its_predecessor_has_answered() -> None:
    driven, push = returning()
    driven.fires(ev.Timer.RETURN, M)
    assert [ask.peer for ask in driven.did(ef.Ask)] == [A]
    driven.handle(ev.CheckAnswered(A, (), 0.01))
    driven.fires(ev.Timer.RETURN, M)
    assert driven.did(ef.CancelPush) == [ef.CancelPush(push.token)] and driven.pushed().to == A


def test_a_late_return_goes_on_while_its_predecessor_has_not_answered() -> None:
    """A busy machine's peer takes it later, and would have been sent it twice."""
    driven, push = returning()
    for _ in range(4):
        driven.fires(ev.Timer.RETURN, M)
        assert not driven.did(ef.Push) and not driven.did(ef.CancelPush)
    driven.handle(ev.CheckAnswered(A, (), 2.0))
    driven.handle(ev.PushDelivered(push.token, 2.1))
    assert not driven.is_armed(ev.Timer.RETURN, M)


# ---- orphans


def unfinished() -> DrivenStagePeer:
    driven = in_step(B)
    driven.is_accepted(driven.hands_on(M, A, (7, 0, 0), (C,)))
    return driven


def test_work_whose_predecessor_is_lost_is_dropped_unless_a_replacement_announces_itself() -> None:
    driven = unfinished()
    driven.loses(A)
    driven.fires(ev.Timer.ORPHAN, M)
    assert driven.did(ef.Discard) == [ef.Discard(M)]
    driven = unfinished()
    driven.loses(A)
    offers_again(driven, A2, (7, 1, 0))
    assert not driven.is_armed(ev.Timer.ORPHAN, M)


def test_work_that_its_predecessor_does_not_know_of_is_an_orphan() -> None:
    driven = unfinished()
    driven.handle(ev.WatchBroken(A, "reset"))
    driven.handle(ev.CheckAnswered(A, (M,), 0.01))
    assert driven.is_armed(ev.Timer.ORPHAN, M)


def test_finished_work_is_no_orphan() -> None:
    driven, push = returning()
    driven.is_accepted(push)
    driven.loses(A)
    assert not driven.is_armed(ev.Timer.ORPHAN, M) and not driven.did(ef.Discard)


def test_an_orphan_that_was_finished_meanwhile_is_kept() -> None:
    driven = unfinished()
    driven.loses(A)
    driven.finishes(M, C, (7, 0, 0, 0), (C,))
    driven.fires(ev.Timer.ORPHAN, M)
    assert not driven.did(ef.Discard)


def test_unfinished_work_of_a_lost_data_peer_and_half_an_input_of_a_lost_peer_are_dropped() -> None:
    driven = unfinished()
    half = microbatch(1)
    driven.handle(ev.Offered(A, msg.Forward(half, (7, 0, 0), Stage(2), (C,))))
    driven.loses(A)
    assert driven.did(ef.Discard) == [ef.Discard(half)]
    driven.loses(D)
    assert driven.did(ef.Discard) == [ef.Discard(M)]


def test_a_loss_whose_gradient_is_there_already_credits_nobody() -> None:
    driven = leading(microbatches=1)
    driven.computes(ev.Work.EMBED, M)
    driven.is_accepted(driven.pushed())
    result = msg.Forward(M, (7, 0, 0, 0), Stage(3))
    driven.handle(ev.Offered(B, result))
    driven.handle(ev.Delivered(B, result))
    driven.computes(ev.Work.LOSS, M, 1.0)
    answers(driven, driven.pushed(), Verdict.DUPLICATE)
    assert not driven.sent(msg.Done)


def test_a_blocked_return_is_not_tried_again_while_its_predecessor_is_lost() -> None:
    driven, push = returning()
    answers(driven, push, Verdict.BUSY)
    driven.loses(A)
    driven.fires(ev.Timer.RETURN, M)
    assert not driven.did(ef.Push)
