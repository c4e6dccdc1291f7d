"""Whoever handed a microbatch to a lost peer hands it to another one. A (stage 1) has handed M to B (stage 2), then comes C."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Verdict
from tests.protocol.peers import (
    A2,
    B2,
    C2,
    A,
    B,
    C,
    D,
    Driven,
    DrivenStagePeer,
    goes_round,
    in_step,
    leading,
    microbatch,
    record,
)

M = microbatch()


def waiting(**how: object) -> DrivenStagePeer:
    """B has the output of A."""
    driven = in_step(A, **how)  # type: ignore[arg-type]
    driven.is_accepted(driven.hands_on(M, D, (7, 0), (B, C)))
    return driven


def done(**how: object) -> DrivenStagePeer:
    """A has done both passes, and has handed the gradient back."""
    driven = waiting(**how)
    driven.is_accepted(driven.finishes(M, B, (7, 0, 0), (B, C)))
    return driven


def kinds(driven: Driven) -> list[object]:
    return [report["kind"] for report in driven.reported("recovery")]


# ---- crashes of the next peer


def test_a_forward_crash_hands_the_output_to_another_peer_with_the_plan_behind_it() -> None:
    driven = waiting()
    driven.loses(B)
    assert kinds(driven) == ["forward"]
    assert (driven.pushed().to, driven.pushed().message.ahead) == (B2, (C,))
    assert driven.pushed().message.attempt == (7, 0, 1)
    assert driven.sent(msg.Superseded, B) == [msg.Superseded(M, (7, 0, 1))], "should it live after all"


def test_a_backward_crash_leads_the_replacement_to_the_peer_that_has_the_forward_already() -> None:
    driven = waiting()
    driven.hears(B, msg.Complete(M, C2, 0.4))
    driven.loses(B)
    assert kinds(driven) == ["backward"]
    assert (driven.pushed().to, driven.pushed().message.ahead) == (B2, (C2,)), "where B went, not where it was planned to go"


def test_a_crash_after_the_backward_is_redone_with_exact_recovery_and_left_alone_without() -> None:
    driven = done()
    driven.loses(B)
    assert kinds(driven) == ["aggregation"] and driven.pushed().to == B2
    assert driven.pushed().message.ahead == (C,)
    fast = done(exact=False)
    fast.loses(B)
    assert not fast.did(ef.Push) and not kinds(fast)


def test_a_failed_push_goes_another_way_at_once_and_the_peer_is_asked() -> None:
    driven = in_step(A)
    push = driven.hands_on(M, D, (7, 0), (B, C))
    driven.handle(ev.PushFailed(push.token, "reset"))
    assert [ask.peer for ask in driven.did(ef.Ask)] == [B] and driven.pushed().to == B2


def test_a_failed_push_to_the_data_peer_is_tried_again() -> None:
    driven = in_step(A, stages=1)
    push = driven.hands_on(M, D, (7, 0))
    driven.handle(ev.PushFailed(push.token, "reset"))
    assert driven.is_armed(ev.Timer.ROUTE, M) and not driven.did(ef.Push)
    driven.loses(A2)
    assert not driven.did(ef.Push), "who hands to the data peer repairs nothing"


def test_a_peer_that_leaves_gets_nothing_more_and_what_is_on_its_way_there_goes_elsewhere() -> None:
    driven = in_step(A)
    push = driven.hands_on(M, D, (7, 0), (B, C))
    driven.hears(B, msg.Standing(Stage(2), 0, leaving=True))
    assert ef.CancelPush(push.token) in driven.out and driven.did(ef.Push)[-1].to == B2
    assert driven.reported("peer_left") == [{"peer": B}]


def test_the_time_from_the_silence_of_a_lost_peer_to_its_replacement_is_reported() -> None:
    driven = waiting()
    driven.handle(ev.WatchBroken(B, "reset"))
    driven.handle(ev.CheckFailed(B, "refused", silent=False), after_s=3.0)
    push = driven.pushed()
    driven.handle(ev.PushAnswered(push.token, Verdict.DUPLICATE), after_s=1.0)
    assert driven.reported("recovered") == [{"microbatch": str(M), "seconds": pytest.approx(4.0)}]


# ---- peers that forgot


def test_a_living_peer_that_says_that_it_does_not_hold_a_microbatch_gets_it_again() -> None:
    driven = waiting()
    driven.handle(ev.WatchBroken(B, "reset"), after_s=1.0)
    driven.handle(ev.CheckAnswered(B, (M,), 0.01), after_s=1.0)
    assert driven.pushed().to == B and driven.pushed().message.attempt == (7, 0, 1)


def test_an_offer_that_a_question_has_overtaken_is_not_made_again_before_it_is_late_twice() -> None:
    driven = in_step(A)
    driven.hands_on(M, D, (7, 0), (B, C))
    driven.handle(ev.WatchBroken(B, "reset"))
    driven.handle(ev.CheckAnswered(B, (M,), 0.01))
    assert not driven.did(ef.Push)
    for _ in range(2):
        driven.fires(ev.Timer.PUSH, M)
        driven.handle(ev.CheckAnswered(B, (M,), 0.01), after_s=1.0)
    assert driven.pushed().to == B


def test_a_peer_that_has_forgotten_what_is_done_is_missing_in_the_ledger_of_the_data_peer() -> None:
    driven = done()
    driven.handle(ev.WatchBroken(B, "reset"))
    driven.handle(ev.CheckAnswered(B, (M,), 0.01), after_s=1.0)
    assert driven.sent(msg.Missing, D) == [msg.Missing(B, Stage(2), (M,))] and not driven.did(ef.Push)
    fast = done(exact=False)
    fast.handle(ev.WatchBroken(B, "reset"))
    fast.handle(ev.CheckAnswered(B, (M,), 0.01), after_s=1.0)
    assert not fast.sent(msg.Missing)


# ---- what the data peer asks for


def redo(stage: int = 2, lost: object = B, **changes: object) -> msg.Redo:
    return msg.Redo(M, Stage(stage), lost, **changes)  # type: ignore[arg-type]


def test_a_redo_of_the_next_stage_hands_it_to_another_peer_with_those_that_did_the_rest() -> None:
    driven = done()
    driven.hears(D, redo(ahead=(C2,)))
    assert driven.pushed().to == B2 and driven.pushed().message.ahead == (C2,)
    driven.hears(D, redo(ahead=(C2,)))
    assert not driven.did(ef.Push), "it is under way"


def test_somebody_else_than_the_lost_peer_may_have_done_it_and_is_asked_instead() -> None:
    driven = done()
    driven.hears(D, redo(lost=B2))
    assert driven.sent(msg.Redo, B) == [redo(lost=B2)] and not driven.did(ef.Push)


def test_who_has_done_the_stage_says_so_and_who_does_not_hold_it_says_so() -> None:
    driven = done()
    driven.hears(D, redo(1, A))
    assert driven.sent(msg.Done, D) == [msg.Done(M, Stage(1))]
    other = in_step(A2)
    other.hears(D, redo(1, A))
    assert other.sent(msg.Missing, D) == [msg.Missing(A2, Stage(1), (M,))]
    unfinished = waiting()
    unfinished.hears(D, redo(1, A))
    assert not unfinished.sent(msg.Done), "it will say so when it has"


def test_a_redo_of_a_stage_that_is_no_neighbour_or_of_another_iteration_is_nobodys_here() -> None:
    driven = done()
    driven.hears(D, redo(3, C))
    assert not driven.out
    driven.hears(D, msg.Redo(microbatch(0, 5), Stage(2), B))
    assert driven.sent(msg.Standing, D), "it seems to be behind: say where it stands"


def test_a_redo_in_a_higher_generation_replaces_the_attempt_and_walks_the_way_again() -> None:
    driven = waiting()
    driven.hears(D, redo(generation=8))
    assert driven.pushed().to == B and driven.pushed().message.attempt == (8, 0, 1)
    driven.hears(D, redo(generation=8))
    assert not driven.did(ef.Push)


def test_a_data_peer_that_started_again_is_shown_the_way_to_what_is_computed_already() -> None:
    driven = waiting()
    driven.handle(ev.Offered(D, msg.Forward(M, (9, 0), Stage(1), (B, C))))
    assert driven.verdict()[0] is Verdict.DUPLICATE
    assert driven.pushed().to == B and driven.pushed().message.attempt == (9, 0, 1)
    driven.handle(ev.Offered(B, msg.Backward(M, (9, 0, 1), Stage(1), (B, C))))
    driven.handle(ev.Delivered(B, msg.Backward(M, (9, 0, 1), Stage(1), (B, C))))
    assert not driven.did(ef.CancelPush), "the next peer is yet to hear of it"


# ---- superseded attempts


def test_who_is_superseded_forgets_what_it_has_not_done_and_tells_the_peer_before_if_it_comes_from_below() -> None:
    driven = in_step(B)
    driven.is_accepted(driven.hands_on(M, A, (7, 0, 0), (C,)))
    driven.hears(C, msg.Superseded(M, (7, 1, 0, 0)))
    assert driven.sent(msg.Superseded, A) == [msg.Superseded(M, (7, 1, 0, 0))]
    assert driven.did(ef.Discard) == [ef.Discard(M)]


def test_who_is_superseded_while_it_computes_forgets_when_it_is_done() -> None:
    driven = in_step(B)
    driven.takes(M, A, (7, 0, 0), (C,))
    driven.hears(A, msg.Superseded(M, (7, 1)))
    assert not driven.did(ef.Discard) and not driven.sent(msg.Superseded)
    driven.computes(ev.Work.FORWARD, M)
    assert driven.did(ef.Discard) == [ef.Discard(M)] and not driven.did(ef.Push)


def test_what_is_counted_stays_counted_and_a_redo_of_it_stops() -> None:
    driven = done()
    driven.loses(B)
    push = driven.pushed()
    driven.hears(B2, msg.Superseded(M, (7, 1, 0)))
    assert driven.did(ef.CancelPush) == [ef.CancelPush(push.token)] and not driven.did(ef.Discard)
    assert not driven.is_armed(ev.Timer.PUSH, M)
    driven.hears(B2, msg.Superseded(M, (7, 2, 0)))
    assert not driven.did(ef.CancelPush)


@pytest.mark.parametrize("attempt", [(7, 0), (6, 9, 9), (7, 0, 3)])
def test_a_lower_or_equal_attempt_supersedes_nothing(attempt: msg.Attempt) -> None:
    driven = waiting()
    driven.hears(B, msg.Superseded(M, attempt))
    driven.hears(B, msg.Superseded(microbatch(9), (99,)))
    assert not driven.did(ef.Discard)


def test_an_attempt_of_a_time_that_was_forgotten_raises_the_number_of_the_next_one() -> None:
    driven = waiting()
    driven.hears(B, msg.Superseded(M, (7, 0, 6)))
    driven.loses(B)
    assert driven.pushed().message.attempt == (7, 0, 6)


def test_a_data_peers_own_microbatch_is_superseded_by_nobody() -> None:
    driven = leading(microbatches=1)
    driven.hears(A, msg.Superseded(M, (99, 0)))
    assert not driven.did(ef.Discard)


# ---- a data peer insists


def test_a_data_peer_walks_the_way_again_when_the_way_back_knows_a_loss_that_it_does_not() -> None:
    driven = leading(microbatches=1)
    driven.computes(ev.Work.EMBED, M)
    driven.is_accepted(driven.pushed())
    gradient = msg.Backward(M, (7, 0), Stage(0), (A, B))
    driven.handle(ev.Offered(A, gradient))
    assert driven.verdict()[0] is Verdict.BUSY and not driven.did(ef.Push)
    driven.handle(ev.Offered(A, gradient), after_s=1.0)
    assert not driven.did(ef.Push), "the result may be on its way"
    driven.handle(ev.Offered(A, gradient), after_s=1.5)
    assert driven.pushed().to == A and driven.pushed().message.attempt == (8, 1)


def test_a_data_peer_that_is_pushing_does_not_insist() -> None:
    driven = leading(microbatches=1)
    driven.computes(ev.Work.EMBED, M)
    for _ in range(2):
        driven.handle(ev.Offered(A, msg.Backward(M, (7, 0), Stage(0), (A, B))), after_s=9.0)
        assert not driven.did(ef.Push)


# ---- the ledger of a data peer, and its redos


def redoing(exact: bool = True) -> Driven:
    """One of two microbatches is back, by (A, B)."""
    driven = leading(A, A2, B, record(B2), microbatches=2, exact=exact)
    goes_round(driven, M, (A, B))
    return driven


def test_a_data_peer_has_a_lost_stage_redone_by_the_peer_before_it() -> None:
    driven = redoing()
    driven.loses(B)
    assert driven.sent(msg.Redo, A) == [msg.Redo(M, Stage(2), B, (), 7)]
    driven.fires(ev.Timer.REDO)
    assert driven.sent(msg.Redo, A)[0].generation == 8, "a request may be lost: the second one starts anew"
    assert [ask.peer for ask in driven.did(ef.Ask)] == [A], "or nobody may be there to do it"


def test_who_is_to_take_up_the_result_of_a_late_redo_is_asked_whether_it_lives() -> None:
    """The peer that does it may have found out, while it took the data peer for lost, and told nobody."""
    driven = redoing()
    driven.loses(A)
    driven.fires(ev.Timer.REDO)
    assert [ask.peer for ask in driven.did(ef.Ask)] == [B]


def test_the_result_of_a_redo_counts_whatever_numbers_the_peer_before_it_remembers_of_an_earlier_life() -> None:
    """A data peer that has started again numbers from nothing what others have from before: they hand on by their own numbers,
    in the generation that it has named to them."""
    driven = redoing()
    result = msg.Forward(M, (7, 12, 0, 1), Stage(3))
    driven.handle(ev.Offered(B2, result))
    assert driven.verdict()[0] is Verdict.REFUSED, "nobody was asked to hand it on"
    driven.loses(B)
    assert driven.sent(msg.Redo, A)
    driven.handle(ev.Offered(B2, result))
    assert driven.verdict()[0] is Verdict.DUPLICATE
    assert driven.pushed().to == B2, "with the gradient for who did it now"
    for above in (8, 10**9):
        driven.handle(ev.Offered(B2, msg.Forward(M, (above, 0, 0, 0), Stage(3))))
        assert driven.verdict()[0] is Verdict.REFUSED


def test_a_lost_first_stage_is_redone_by_the_data_peer_itself() -> None:
    driven = redoing()
    driven.loses(A)
    assert any(push.to == A2 and push.message.ahead == (B,) for push in driven.did(ef.Push))


def test_who_redid_the_stage_is_credited() -> None:
    for wrong in (
        msg.Done(M, Stage(3)),
        msg.Done(M, Stage(0)),
        msg.Done(microbatch(0, 4), Stage(1)),
        msg.Done(M, Stage(2), (C,)),
    ):
        driven = redoing()
        driven.loses(B)
        driven.hears(B2, msg.Done(M, Stage(2)))
        assert driven.machine.finishing.ledger.credits()[0].peers == (A, B2)
        driven.hears(B2, wrong)
        assert driven.machine.finishing.ledger.credits()[0].peers == (A, B2)


def test_what_a_peer_says_that_it_lacks_is_redone_and_what_others_say_of_it_is_a_question() -> None:
    driven = redoing()
    driven.hears(A, msg.Missing(B, Stage(2), (M,)))
    assert driven.sent(msg.Redo, B) == [msg.Redo(M, Stage(2), B)]
    driven.hears(B, msg.Missing(B, Stage(2), (M,)))
    assert driven.machine.finishing.ledger.credits()[0].peers == (A, "")
    assert driven.sent(msg.Redo, B), "it lives: it is asked once whether it has it still"


def test_fast_recovery_drops_what_a_lost_peer_did_unless_the_stage_would_have_nothing() -> None:
    driven = redoing(exact=False)
    driven.loses(B)
    assert not driven.reported("dropped") and driven.sent(msg.Redo, A), "nobody else did stage 2"


def test_a_data_peer_that_is_asked_to_redo_what_it_does_not_hold_says_nothing() -> None:
    driven = leading(microbatches=1)
    driven.hears(D, msg.Redo(microbatch(5), Stage(1), A))
    assert not driven.sent(msg.Missing) and not driven.did(ef.Push)


def test_a_data_peer_that_started_again_before_the_forward_was_done_needs_no_other_way() -> None:
    driven = in_step(A)
    driven.takes(M, D, (7, 0), (B, C))
    driven.handle(ev.Offered(D, msg.Forward(M, (9, 0), Stage(1), (B, C))))
    assert driven.verdict()[0] is Verdict.DUPLICATE and not driven.did(ef.Push)
    driven.computes(ev.Work.FORWARD, M)
    assert driven.pushed().message.attempt == (9, 0, 0)


def test_a_gradient_from_the_replacement_ends_the_recovery() -> None:
    driven = waiting()
    driven.loses(B)
    driven.gets_gradient(M, B2, (7, 0, 1), (B2, C))
    assert driven.reported("recovered")


def test_the_newest_completion_says_where_the_repair_joins_the_path_again() -> None:
    driven = waiting()
    for successor in (C, C2):
        driven.hears(B, msg.Complete(M, successor, 0.4))
    driven.loses(B)
    assert driven.pushed().message.ahead == (C2,)
