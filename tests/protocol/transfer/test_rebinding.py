"""A (stage 1) has handed several microbatches to B (stage 2), where they wait; then another peer of stage 2 comes."""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.plans import IterationPlan, PlanRequest
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Verdict
from gwtf_p2p.protocol.wire.records import StageRecord, Timing
from tests.protocol.peers import B2, A, B, C, D, Driven, FirstFree, in_step, microbatch, record

WAITING = tuple(microbatch(i) for i in range(4))


class Planning(FirstFree):
    """A router that plans, of which a stage peer only needs to know that it does."""

    @property
    def flows(self) -> tuple[int, tuple[str, ...]]:
        return 0, ()

    @property
    def counts(self) -> dict[str, int]:
        return {}

    def revised(self, microbatch: object, stage: Stage) -> tuple[PeerId, ...]:
        return ()

    def planning(self, without: frozenset[PeerId], now: float) -> PlanRequest | None:
        return None

    def planned(self, plan: IterationPlan | None) -> None:
        pass


def timed(peer: PeerId, each_s: float) -> StageRecord:
    return record(peer, forward=Timing(each_s / 3, 3, 0.0), backward=Timing(2 * each_s / 3, 3, 0.0))


def plan_with(driven: Driven) -> None:
    driven.machine.ctx.use_router(Planning([A, B, B2, C]))


def queued(plans: bool = True, each_s: float = 0.6) -> Driven:
    """B takes 0.6 s for each of the four that A has handed to it."""
    driven = in_step(A)
    if plans:
        plan_with(driven)
    driven.sees([D, A, timed(B, each_s), C])
    for m in WAITING:
        driven.is_accepted(driven.hands_on(m, D, (7, 0), (B, C)))
    driven.now += 0.1
    return driven


def rebound(driven: Driven) -> list[object]:
    return [report["microbatch"] for report in driven.reported("rebound")]


def test_a_newcomer_gets_the_last_of_those_that_wait_elsewhere_until_both_are_done_at_about_the_same_time() -> None:
    driven = queued()
    driven.sees([D, A, timed(B, 0.6), timed(B2, 0.6), C])
    assert rebound(driven) == [str(WAITING[3]), str(WAITING[2])]
    pushes = driven.did(ef.Push)
    assert {(push.to, push.message.microbatch) for push in pushes} == {(B2, m) for m in WAITING[2:]}
    assert {push.message.attempt for push in pushes} == {(7, 0, 1)}, "above the one that it had"
    assert all(isinstance(push.message, msg.Forward) and push.message.ahead == (C,) for push in pushes)
    assert driven.sent(msg.Superseded, B) == [msg.Superseded(m, (7, 0, 1)) for m in (WAITING[3], WAITING[2])]


def test_what_has_been_handed_on_already_stays_and_so_does_the_first_of_a_queue() -> None:
    driven = queued()
    for m in WAITING[:3]:
        driven.hears(B, msg.Complete(m, C, 0.1))
    driven.sees([D, A, timed(B, 60.0), timed(B2, 0.6), C])
    assert rebound(driven) == []


def test_a_peer_whose_own_record_is_not_seen_hands_on_as_well() -> None:
    driven = queued()
    driven.sees([D, timed(B, 0.6), timed(B2, 0.6), C])
    assert rebound(driven)


def test_a_newcomer_that_is_too_slow_gets_nothing_and_one_that_was_there_before_neither() -> None:
    slow = queued()
    slow.sees([D, A, timed(B, 0.6), timed(B2, 3.0), C])
    assert rebound(slow) == []
    known = in_step(A)
    plan_with(known)
    known.sees([D, A, timed(B, 0.6), timed(B2, 0.6), C])
    for m in WAITING:
        known.is_accepted(known.hands_on(m, D, (7, 0), (B, C)))
    known.sees([D, A, timed(B, 0.7), timed(B2, 0.6), C])
    assert rebound(known) == [], "the plan knew of it"


def test_routers_that_do_not_plan_keep_what_they_have_chosen() -> None:
    driven = queued(plans=False)
    driven.sees([D, A, timed(B, 0.6), timed(B2, 0.6), C])
    assert rebound(driven) == []


def test_should_the_newcomer_not_take_it_the_former_one_may_be_asked_again() -> None:
    driven = queued()
    driven.sees([D, A, timed(B, 0.6), timed(B2, 0.6), C])
    driven.handle(ev.PushAnswered(driven.did(ef.Push)[0].token, Verdict.BUSY))
    assert driven.pushed().to == B
