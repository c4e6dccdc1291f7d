"""The way down: routes, refusals, waits, and what a push that is over still says. A (stage 1) hands on to B."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.transfer.send_activation import RETRY_S
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Verdict
from tests.protocol.peers import B2, A, B, C, D, Driven, DrivenStagePeer, goes_round, in_step, leading, microbatch

M = microbatch()


def pushing(**how: object) -> tuple[Driven, ef.Push]:
    driven = in_step(A, **how)  # type: ignore[arg-type]
    return driven, driven.hands_on(M, D, (7, 0), (B, C))


def waiting() -> DrivenStagePeer:
    driven, push = pushing()
    driven.is_accepted(push)
    return driven


def answers(driven: Driven, push: ef.Push, verdict: Verdict, detail: str = "") -> None:
    driven.handle(ev.PushAnswered(push.token, verdict, detail))


def test_the_planned_peer_gets_the_output_with_the_rest_of_the_plan() -> None:
    _, push = pushing()
    assert (push.to, push.slot) == (B, ev.Slot.OUTPUT)
    assert push.message == msg.Forward(M, (7, 0, 0), Stage(2), (C,), 0)


@pytest.mark.parametrize("verdict", [Verdict.BUSY, Verdict.STALE, Verdict.REFUSED])
def test_who_refuses_is_passed_over_and_the_router_hears_of_it(verdict: Verdict) -> None:
    driven, push = pushing()
    answers(driven, push, verdict)
    assert driven.pushed().to == B2 and driven.pushed().message.attempt == (7, 0, 1)
    [hop] = driven.router.hops
    assert (hop.receiver, hop.seconds, hop.failure) == (B, None, verdict.name)


def test_a_plan_goes_on_behind_the_peer_that_took_the_place_of_one_that_refused() -> None:
    driven, push = pushing()
    answers(driven, push, Verdict.BUSY)
    assert driven.pushed().message.ahead == (C,)


def test_where_everybody_refuses_it_is_tried_again_after_a_while() -> None:
    driven, push = pushing()
    answers(driven, push, Verdict.BUSY)
    answers(driven, driven.pushed(), Verdict.BUSY)
    assert driven.timers[ev.Timer.ROUTE, str(M)] == driven.now + RETRY_S
    driven.fires(ev.Timer.ROUTE, M)
    assert driven.pushed().to == B2
    answers(driven, driven.pushed(), Verdict.BUSY)
    assert driven.pushed().to == B, "who refused before is asked anew"


def test_a_microbatch_that_nobody_had_room_for_goes_to_the_first_peer_that_has() -> None:
    driven, push = pushing()
    answers(driven, push, Verdict.BUSY)
    answers(driven, driven.pushed(), Verdict.BUSY)
    driven.hears(B2, msg.CapacityAvailable(1))
    assert driven.pushed().to == B2
    driven.is_accepted(driven.pushed())
    driven.hears(B, msg.CapacityAvailable(1))
    assert not driven.did(ef.Push), "it has found room"


def test_one_more_than_there_is_room_for_is_offered_so_that_the_other_remembers() -> None:
    driven = in_step(A, peers=(A, B, C))
    for index in range(3):
        answers(driven, driven.hands_on(microbatch(index), D, (7, 0), (B, C)), Verdict.BUSY)
    driven.hears(B, msg.CapacityAvailable(1))
    assert [push.message.microbatch.index for push in driven.did(ef.Push)] == [0, 1]


def test_a_duplicate_is_as_good_as_a_delivery() -> None:
    driven, push = pushing()
    answers(driven, push, Verdict.DUPLICATE)
    assert driven.sent(msg.Complete, D) == [msg.Complete(M, B, 0.5)] and driven.is_armed(ev.Timer.COMPLETE, M)


def test_the_predecessor_hears_who_comes_after_this_peer_once_it_has_the_output() -> None:
    driven, push = pushing()
    answers(driven, push, Verdict.ACCEPTED)
    assert not driven.sent(msg.Complete)
    driven.handle(ev.PushDelivered(push.token, 0.2))
    assert driven.sent(msg.Complete, D) == [msg.Complete(M, B, 0.5)]


@pytest.mark.parametrize("event", [ev.PushAnswered(1, Verdict.BUSY), ev.PushDelivered(1, 0.1), ev.PushFailed(1, "reset")])
def test_what_becomes_of_a_push_that_was_given_up_says_nothing(event: ev.Event) -> None:
    driven, push = pushing()
    assert push.token == 1
    answers(driven, push, Verdict.BUSY)
    assert driven.pushed().to == B2
    driven.handle(event)
    assert not driven.did(ef.Push) and not driven.did(ef.Ask) and not driven.sent(msg.Complete)


def test_a_superseded_output_waits_for_its_successor_to_say_by_what() -> None:
    driven, push = pushing()
    answers(driven, push, Verdict.REFUSED, msg.SUPERSEDED)
    assert driven.is_armed(ev.Timer.ROUTE, M) and not driven.did(ef.Push) and not driven.did(ef.Discard)


def test_a_finished_microbatch_that_is_superseded_keeps_its_count_and_its_data_peer_learns_of_it() -> None:
    driven = waiting()
    driven.is_accepted(driven.finishes(M, B, (7, 0, 0), (B, C)))
    driven.loses(B)
    assert driven.pushed().to == B2
    answers(driven, driven.pushed(), Verdict.REFUSED, msg.SUPERSEDED)
    assert driven.sent(msg.Redo, B2) == [msg.Redo(M, Stage(2), B2)] and not driven.did(ef.Discard)


def test_the_last_stage_forgets_what_its_data_peer_does_not_want() -> None:
    driven = in_step(A, stages=1)
    push = driven.hands_on(M, D, (7, 0))
    assert push.to == D
    answers(driven, push, Verdict.REFUSED, "not a microbatch of this data peer and iteration")
    assert driven.did(ef.Discard) == [ef.Discard(M)]


def test_the_last_stage_waits_for_its_data_peer_whom_nobody_can_replace() -> None:
    driven = in_step(A, stages=1)
    push = driven.hands_on(M, D, (7, 0))
    answers(driven, push, Verdict.BUSY)
    assert driven.is_armed(ev.Timer.ROUTE, M) and not driven.did(ef.Push)
    driven.handle(ev.WatchBroken(D, "reset"))
    driven.fires(ev.Timer.ROUTE, M)
    assert not driven.did(ef.Push) and driven.is_armed(ev.Timer.ROUTE, M), "it is asked first whether it lives"
    driven.handle(ev.CheckAnswered(D, (), 0.01))
    assert driven.pushed().to == D


def test_a_data_peer_whose_output_is_superseded_insists_in_a_higher_attempt() -> None:
    driven = leading(microbatches=1)
    driven.computes(ev.Work.EMBED, M)
    push = driven.pushed()
    assert push.message.attempt == (7, 0)
    answers(driven, push, Verdict.REFUSED, msg.SUPERSEDED)
    driven.fires(ev.Timer.ROUTE, M)
    assert driven.pushed().message.attempt[0] == 8


# ---- waiting for the next peer


def test_what_the_next_peer_has_computed_is_measured_and_told_to_the_router() -> None:
    driven = waiting()
    driven.hears(B, msg.Complete(M, C, 0.4))
    assert driven.is_armed(ev.Timer.BACKWARD, M) and not driven.is_armed(ev.Timer.COMPLETE, M)
    assert (driven.router.hops[-1].receiver, driven.router.hops[-1].seconds) == (B, pytest.approx(0.5))


def test_a_completion_overtakes_the_acknowledgement_of_its_own_transfer() -> None:
    driven, _ = pushing()
    driven.hears(B, msg.Complete(M, C, 0.4))
    assert driven.sent(msg.Complete, D) and driven.is_armed(ev.Timer.BACKWARD, M)


def test_a_completion_of_somebody_else_or_of_what_is_not_held_says_nothing() -> None:
    driven = waiting()
    driven.hears(B2, msg.Complete(M, C, 0.4))
    driven.hears(B, msg.Complete(microbatch(9), C, 0.4))
    assert driven.is_armed(ev.Timer.COMPLETE, M) and not driven.router.hops


def test_a_wait_that_is_over_leads_to_questions_to_both_neighbours_and_a_longer_wait() -> None:
    driven = in_step(B)
    driven.is_accepted(driven.hands_on(M, A, (7, 0, 0), (C,)))
    first = driven.timers[ev.Timer.COMPLETE, str(M)] - driven.now
    driven.fires(ev.Timer.COMPLETE, M)
    assert [ask.peer for ask in driven.did(ef.Ask)] == [C, A]
    assert driven.timers[ev.Timer.COMPLETE, str(M)] - driven.now == 2 * first


def test_what_is_late_for_the_third_time_at_a_living_peer_is_handed_to_it_anew() -> None:
    driven = waiting()
    for _ in range(2):
        driven.fires(ev.Timer.COMPLETE, M)
        driven.handle(ev.CheckAnswered(B, (), 0.01))
        assert not driven.did(ef.Push)
    driven.fires(ev.Timer.COMPLETE, M)
    assert driven.pushed().to == B and driven.pushed().message.attempt == (7, 0, 1)


def test_what_is_late_at_a_peer_that_has_not_answered_is_not_handed_to_it_anew() -> None:
    """Whether it holds it is not known yet."""
    driven = waiting()
    for _ in range(3):
        driven.fires(ev.Timer.COMPLETE, M)
        assert not driven.did(ef.Push)
    driven.handle(ev.CheckAnswered(B, (), 2.0))
    driven.fires(ev.Timer.COMPLETE, M)
    assert not driven.did(ef.Push), "it has been late for an even number of times"
    driven.handle(ev.CheckAnswered(B, (), 0.01))
    driven.fires(ev.Timer.COMPLETE, M)
    assert driven.pushed().to == B


def test_what_is_late_is_handed_anew_to_a_peer_that_has_answered_though_it_is_being_asked_again() -> None:
    """Two deadlines that pass together each time would wait for each other for ever."""
    driven = waiting()
    for _ in range(2):
        driven.fires(ev.Timer.COMPLETE, M)
        driven.handle(ev.CheckAnswered(B, (), 0.01))
    driven.now = driven.machine.ctx.now = driven.now + 1.0
    driven.machine.ctx.suspect(B, "an inquiry is late")
    assert B in driven.machine.ctx.liveness.suspected
    driven.fires(ev.Timer.COMPLETE, M)
    assert driven.pushed().to == B


def test_a_transfer_that_is_late_is_asked_about_and_waited_for_longer() -> None:
    driven, _ = pushing()
    first = driven.timers[ev.Timer.PUSH, str(M)] - driven.now + 0.0
    driven.fires(ev.Timer.PUSH, M)
    assert [ask.peer for ask in driven.did(ef.Ask)] == [B, D]
    assert driven.timers[ev.Timer.PUSH, str(M)] - driven.now == 2 * first


def test_a_gradient_from_a_replacement_frees_the_former_successor() -> None:
    driven = waiting()
    driven.gets_gradient(M, B2, (7, 0, 5), (B2, C))
    assert driven.sent(msg.Superseded, B) == [msg.Superseded(M, (7, 0, 1))]
    assert not driven.is_armed(ev.Timer.COMPLETE, M)


def test_a_gradient_that_comes_before_the_acknowledgement_cancels_the_push() -> None:
    driven, push = pushing()
    driven.gets_gradient(M, B, (7, 0, 0), (B, C))
    assert driven.did(ef.CancelPush) == [ef.CancelPush(push.token)]


def test_a_router_hears_when_a_microbatch_that_it_routed_is_back() -> None:
    driven = leading(microbatches=2)
    assert driven.router.ended == []
    goes_round(driven, M, (A, B))
    assert driven.router.ended == [M]


def test_room_is_offered_to_nobody_for_what_was_dropped_meanwhile() -> None:
    driven, push = pushing()
    answers(driven, push, Verdict.BUSY)
    answers(driven, driven.pushed(), Verdict.BUSY)
    driven.loses(D)
    assert driven.did(ef.Discard) == [ef.Discard(M)]
    driven.hears(B, msg.CapacityAvailable(1))
    assert not driven.did(ef.Push)


def test_a_neighbour_on_both_sides_is_asked_once() -> None:
    driven = in_step(A, stages=1)
    driven.is_accepted(driven.hands_on(M, D, (7, 0)))
    driven.fires(ev.Timer.BACKWARD, M)
    assert [ask.peer for ask in driven.did(ef.Ask)] == [D]


def test_a_route_that_opens_is_used_before_the_time_of_the_next_try() -> None:
    driven, push = pushing(peers=(A, B, C))
    answers(driven, push, Verdict.BUSY)
    assert not driven.did(ef.Push)
    driven.sees([D, A, B, C])
    assert driven.pushed().to == B and not driven.is_armed(ev.Timer.ROUTE, M)
