"""What a peer answers to an offered transfer: one row for each rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Verdict
from tests.protocol.peers import A2, B2, D2, A, B, C, D, Driven, in_step, leading, microbatch

M = microbatch()
RING = (B, C)


def offered(driven: Driven, sender: PeerId, message: msg.TensorMessage) -> tuple[Verdict, str]:
    driven.handle(ev.Offered(sender, message))
    return driven.verdict()


def forward(attempt: msg.Attempt = (7, 0), m: MicrobatchId = M, stage: int = 1, epoch: int = 0) -> msg.Forward:
    return msg.Forward(m, attempt, Stage(stage), RING, epoch)


def backward(attempt: msg.Attempt = (7, 0, 0), stage: int = 1) -> msg.Backward:
    return msg.Backward(M, attempt, Stage(stage), RING)


# ---- a stage peer and an activation


def test_an_activation_of_another_stage_is_refused() -> None:
    assert offered(in_step(), D, forward(stage=2)) == (Verdict.REFUSED, "this peer holds stage 1")


@pytest.mark.parametrize(
    ("message", "doubts"),
    [
        (forward(m=microbatch(0, 1)), True),
        (forward(epoch=1), True),
        (forward(m=microbatch(0, -1)), False),
    ],
    ids=["a later iteration", "a later epoch", "an earlier iteration"],
)
def test_an_activation_of_other_weights_is_stale_and_later_ones_raise_a_doubt(message: msg.Forward, doubts: bool) -> None:
    driven = in_step()
    assert offered(driven, D, message)[0] is Verdict.STALE
    assert driven.is_armed(ev.Timer.DOUBT) == doubts == bool(driven.sent(msg.Standing, D))


def test_an_activation_of_the_next_iteration_is_taken_while_this_one_is_closed_and_computed_after_it() -> None:
    driven = in_step()
    prepare = msg.Prepare(0, 1, D, Stage(1), (msg.Share(A, ()),), data_peers=(D,))
    driven.hears(D, prepare)
    early = microbatch(0, 1)
    driven.takes(early, D, (7, 0), RING)
    assert not driven.did(ef.Compute)
    driven.handle(ev.AverageDone(0, 1, "x", 0.1))
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    driven.handle(ev.Stepped(0))
    assert driven.did(ef.Compute) == [ef.Compute(ev.Work.FORWARD, early)]


def test_an_activation_beyond_the_capacity_is_refused_as_busy_and_the_sender_told_when_there_is_room() -> None:
    driven = in_step(capacity=1)
    push = driven.hands_on(M, D, (7, 0), RING)
    assert offered(driven, D, forward(m=microbatch(1)))[0] is Verdict.BUSY
    assert offered(driven, D2, forward(m=microbatch(0, 0, D2)))[0] is Verdict.BUSY
    driven.is_accepted(push)
    driven.gets_gradient(M, B, (7, 0, 0), RING)
    driven.computes(ev.Work.BACKWARD, M)
    assert driven.sent_to(msg.CapacityAvailable) == [D, D2]
    assert driven.sent(msg.CapacityAvailable)[0].microbatches == 1


def test_an_activation_that_memory_has_no_room_for_until_the_commit_is_busy_and_reported_once() -> None:
    driven = in_step(limit=1)
    driven.is_accepted(driven.hands_on(M, D, (7, 0), RING))
    driven.finishes(M, B, (7, 0, 0), RING)
    assert offered(driven, D, forward(m=microbatch(1)))[0] is Verdict.BUSY and driven.reported("memory_full")
    assert offered(driven, D, forward(m=microbatch(2)))[0] is Verdict.BUSY and not driven.reported("memory_full")


def test_a_draining_peer_takes_nothing_new() -> None:
    driven = in_step()
    driven.takes(M, D, (7, 0), RING)
    driven.handle(ev.DrainRequested())
    assert offered(driven, D, forward(m=microbatch(1))) == (Verdict.BUSY, "DRAINING")
    assert offered(driven, D, forward())[0] is Verdict.DUPLICATE, "what it holds it finishes"


def test_a_repeated_activation_is_accepted_until_it_has_arrived_and_a_duplicate_from_then_on() -> None:
    driven = in_step()
    assert offered(driven, D, forward())[0] is Verdict.ACCEPTED
    assert offered(driven, D, forward())[0] is Verdict.ACCEPTED
    driven.handle(ev.Delivered(D, forward()))
    assert offered(driven, D, forward((7, 1)))[0] is Verdict.DUPLICATE


def test_a_lower_attempt_is_refused_as_superseded_and_told_by_what() -> None:
    driven = in_step(B)
    driven.takes(M, A, (7, 1, 0), (C,))
    assert offered(driven, A2, forward((7, 0, 5), stage=2)) == (Verdict.REFUSED, msg.SUPERSEDED)
    assert driven.sent(msg.Superseded, A2) == [msg.Superseded(M, (7, 1, 0))]


def test_a_higher_attempt_of_a_replacement_makes_it_the_predecessor_and_frees_the_former_one() -> None:
    driven = in_step(B)
    driven.takes(M, A, (7, 0, 0), (C,))
    assert offered(driven, A2, forward((7, 1, 0), stage=2))[0] is Verdict.DUPLICATE
    assert driven.sent(msg.Superseded, A) == [msg.Superseded(M, (7, 1))]
    driven.computes(ev.Work.FORWARD, M)
    driven.is_accepted(driven.pushed())
    assert driven.finishes(M, C, (7, 1, 0, 0), (C,)).to == A2


def test_an_input_that_breaks_off_is_forgotten_unless_a_newer_offer_has_taken_its_place() -> None:
    driven = in_step()
    offered(driven, D, forward((7, 0)))
    offered(driven, D, forward((7, 1)))
    driven.handle(ev.DeliveryBroken(D, forward((7, 0)), "reset"))
    assert not driven.did(ef.Discard)
    driven.handle(ev.DeliveryBroken(D, forward((7, 1)), "reset"))
    assert driven.did(ef.Discard) == [ef.Discard(M)]
    driven.handle(ev.Delivered(D, forward((7, 1))))
    assert driven.did(ef.Discard) == [ef.Discard(M)], "what arrives for nothing is freed"


# ---- a stage peer and a gradient


def test_a_gradient_is_refused_before_the_forward_accepted_after_it_and_a_duplicate_when_it_is_there() -> None:
    driven = in_step()
    assert offered(driven, B, backward())[0] is Verdict.REFUSED
    driven.takes(M, D, (7, 0), RING)
    assert offered(driven, B, backward())[0] is Verdict.BUSY
    driven.computes(ev.Work.FORWARD, M)
    driven.is_accepted(driven.pushed())
    assert offered(driven, B, backward(stage=2))[0] is Verdict.REFUSED
    assert offered(driven, B, backward())[0] is Verdict.ACCEPTED
    assert offered(driven, B, backward())[0] is Verdict.ACCEPTED, "the newest offer counts"
    driven.handle(ev.Delivered(B, backward()))
    assert offered(driven, B, backward())[0] is Verdict.DUPLICATE


def test_a_gradient_that_breaks_off_makes_its_sender_suspect_and_may_come_again() -> None:
    driven = in_step()
    driven.is_accepted(driven.hands_on(M, D, (7, 0), RING))
    offered(driven, B, backward())
    driven.handle(ev.DeliveryBroken(B2, backward(), "reset"))
    assert not driven.did(ef.Ask), "of another offer"
    driven.handle(ev.DeliveryBroken(B, backward(), "reset"))
    assert [ask.peer for ask in driven.did(ef.Ask)] == [B]
    assert offered(driven, B, backward())[0] is Verdict.ACCEPTED


def test_a_gradient_that_arrives_whole_counts_though_an_earlier_transfer_of_it_is_heard_to_break_off_meanwhile() -> None:
    """A sender that gives a transfer up and begins another: how the first one ended is known after a while."""
    driven = in_step()
    driven.is_accepted(driven.hands_on(M, D, (7, 0), RING))
    offered(driven, B, backward())
    offered(driven, B, backward())
    driven.handle(ev.DeliveryBroken(B, backward(), "it was not taken up again"))
    driven.handle(ev.Delivered(B2, backward()))
    assert not driven.did(ef.Compute), "from somebody whose offer was not taken"
    driven.handle(ev.Delivered(B, backward()))
    assert driven.did(ef.Compute) == [ef.Compute(ev.Work.BACKWARD, M)]


# ---- a data peer


def travelling() -> Driven:
    driven = leading(microbatches=1)
    driven.computes(ev.Work.EMBED, M)
    driven.is_accepted(driven.pushed())
    return driven


def result(attempt: msg.Attempt = (7, 0, 0, 0), m: MicrobatchId = M, stage: int = 3) -> msg.Forward:
    return msg.Forward(m, attempt, Stage(stage))


def test_a_data_peer_takes_results_of_its_own_microbatches_and_no_others() -> None:
    driven = travelling()
    for wrong in (result(m=microbatch(1)), result(m=microbatch(0, 0, D2)), result(stage=1)):
        assert offered(driven, B, wrong)[0] is Verdict.REFUSED
    assert offered(driven, B, result())[0] is Verdict.ACCEPTED
    assert offered(driven, B, result())[0] is Verdict.ACCEPTED
    driven.handle(ev.Delivered(B, result()))
    assert offered(driven, B, result())[0] is Verdict.DUPLICATE
    assert offered(driven, B2, result((6, 9, 9, 9))) == (Verdict.REFUSED, msg.SUPERSEDED)
    assert driven.sent(msg.Superseded, B2) == [msg.Superseded(M, (7, 0, 0, 0))]


@pytest.mark.parametrize("attempt", [(7, 1, 0, 0), (8, 0, 0, 0), (10**9, 0, 0, 0)])
def test_a_result_of_an_attempt_that_the_data_peer_has_not_begun_changes_nothing(attempt: msg.Attempt) -> None:
    driven = leading(microbatches=1)
    driven.computes(ev.Work.EMBED, M)
    driven.is_accepted(driven.pushed())
    told = offered(driven, B, replace(result(), attempt=attempt))
    assert told == (Verdict.REFUSED, "attempt: not one that this data peer has begun")
    assert offered(driven, B, result())[0] is Verdict.ACCEPTED


def test_a_result_before_the_embedding_is_done_is_too_early() -> None:
    assert offered(leading(microbatches=1), B, result())[0] is Verdict.BUSY


def test_a_result_that_breaks_off_may_come_from_anybody() -> None:
    driven = travelling()
    offered(driven, B, result())
    driven.handle(ev.DeliveryBroken(B, result(), "reset"))
    assert offered(driven, B2, result((7, 0, 1, 0)))[0] is Verdict.ACCEPTED


@pytest.mark.parametrize("done_by", [(A,), (B, A), (A, B, C)])
def test_a_gradient_must_say_who_did_each_stage_with_its_sender_first(done_by: tuple[PeerId, ...]) -> None:
    driven = travelling()
    assert offered(driven, A, msg.Backward(M, (7, 0), DATA_STAGE, done_by))[0] is Verdict.REFUSED
    assert offered(driven, A, msg.Backward(M, (7, 0), Stage(1), (A, B)))[0] is Verdict.REFUSED


def test_a_gradient_is_busy_before_the_loss_and_a_duplicate_when_it_is_there() -> None:
    driven = travelling()
    gradient = msg.Backward(M, (7, 0), DATA_STAGE, (A, B))
    assert offered(driven, A, gradient)[0] is Verdict.BUSY
    offered(driven, B, result())
    driven.handle(ev.Delivered(B, result()))
    driven.computes(ev.Work.LOSS, M, loss=1.0)
    driven.is_accepted(driven.pushed())
    assert offered(driven, A, gradient)[0] is Verdict.ACCEPTED
    driven.handle(ev.DeliveryBroken(A, gradient, "reset"))
    assert [ask.peer for ask in driven.did(ef.Ask)] == [A]
    assert offered(driven, A, gradient)[0] is Verdict.ACCEPTED
    assert offered(driven, A, gradient)[0] is Verdict.ACCEPTED
    driven.handle(ev.Delivered(A, gradient))
    assert offered(driven, A, gradient)[0] is Verdict.DUPLICATE


def test_a_gradient_of_an_embedding_counts_though_an_earlier_transfer_of_it_is_heard_to_break_off_meanwhile() -> None:
    driven = travelling()
    gradient = msg.Backward(M, (7, 0), DATA_STAGE, (A, B))
    offered(driven, B, result())
    driven.handle(ev.Delivered(B, result()))
    driven.computes(ev.Work.LOSS, M, loss=1.0)
    driven.is_accepted(driven.pushed())
    offered(driven, A, gradient)
    offered(driven, A, gradient)
    driven.handle(ev.DeliveryBroken(A, gradient, "it was not taken up again"))
    driven.handle(ev.Delivered(A, gradient))
    assert driven.did(ef.Compute) == [ef.Compute(ev.Work.FINISH, M)]
