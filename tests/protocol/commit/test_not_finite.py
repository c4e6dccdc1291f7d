"""A step whose gradient is not finite is skipped in all stages alike, whoever finds out, and whoever brings the commit."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.own_share import SKIPPED
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.commit_messages import NOT_FINITE
from tests.protocol.commit.coordinating import preparing
from tests.protocol.commit.participating import M0, prepare, standing
from tests.protocol.peers import A2, STAGE_OF, A, B, C, D, DrivenStagePeer, in_step


def spoilt() -> DrivenStagePeer:
    """A peer of stage 1 that has done one microbatch, whose gradient came out as no numbers."""
    driven = in_step()
    driven.is_accepted(driven.hands_on(M0, D, (7, 0), (B, C)))
    driven.gets_gradient(M0, B, (7, 0, 0), (B, C))
    driven.handle(ev.Computed(ev.Work.BACKWARD, M0, 0.1, finite=False))
    return driven


def test_a_participant_whose_own_gradient_is_not_finite_averages_nothing_and_says_so() -> None:
    driven = spoilt()
    driven.hears(D, prepare(share=(M0,)))
    assert not driven.did(ef.Average)
    assert [(said.finite, said.missing) for said in driven.sent(msg.NotPrepared, D)] == [(False, ())]


def test_a_microbatch_that_another_peer_is_credited_with_spoils_nothing_here() -> None:
    driven = spoilt()
    driven.hears(D, prepare(share=()))
    [work] = driven.did(ef.Compute)
    assert work.work is ev.Work.UNCOUNT
    driven.handle(ev.Computed(ev.Work.UNCOUNT, M0, 0.1))
    assert driven.did(ef.Average)


def test_an_average_that_would_make_weights_that_are_not_finite_is_told_as_such() -> None:
    driven = in_step()
    driven.hears(D, prepare())
    driven.handle(ev.AverageFailed(0, 1, "its gradient is not finite", finite=False))
    assert [said.finite for said in driven.sent(msg.NotPrepared, D)] == [False]


def test_the_next_attempt_names_who_said_so_averages_nothing_and_is_committed_as_skipped() -> None:
    driven = preparing()
    driven.hears(B, msg.NotPrepared(0, 2, Stage(2), "not finite", finite=False))
    driven.fires(ev.Timer.PREPARE)
    asked = driven.sent(msg.Prepare)
    assert {p.skipped_for for p in asked} == {(B,)} and len(asked) == 3
    assert not driven.did(ef.Average)
    [number] = {p.attempt for p in asked}
    for peer in (D, A, B):
        driven.hears(peer, msg.Prepared(0, number, Stage(STAGE_OF[peer]), SKIPPED))
    assert {commit.gradient_norm for commit in driven.sent(msg.Commit)} == {NOT_FINITE}


def test_who_says_so_and_is_lost_skips_nothing() -> None:
    driven = preparing()
    driven.hears(B, msg.NotPrepared(0, 2, Stage(2), "not finite", finite=False))
    driven.machine.coordinator.peer_lost(B, "gone")  # type: ignore[union-attr]
    assert not driven.machine.coordinator.under_way._not_finite  # type: ignore[union-attr]


@pytest.mark.parametrize("by", ["its coordinator", "one that has stepped"])
def test_whoever_has_prepared_to_skip_skips(by: str) -> None:
    """Whatever norm it is told: all that have prepared this attempt know what it is."""
    driven = in_step()
    skip = prepare(skipped_for=(A2,))
    driven.hears(D, skip)
    assert [said.digest for said in driven.sent(msg.Prepared, D)] == [SKIPPED]
    if by == "its coordinator":
        driven.hears(D, msg.commit_of(skip, 0.0))
    else:
        driven.hears(A2, msg.Standing(Stage(1), 1, committed=skip.ballot, gradient_norm=3.0))
    assert driven.did(ef.Step) == [ef.Step(0, 1, NOT_FINITE)]
    driven.handle(ev.Stepped(0))
    assert driven.machine.participant.progress.skipped == 1
    assert [(told["skipped"], told["skipped_for"], told["loss"]) for told in driven.reported("stepped")] == [(True, [A2], None)]
    assert standing(driven).version == 1
