"""A stage peer whose weights are here and whose moments are on their way: it serves, counts, and steps when it can."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.peer.own_record import OwnMeasurements, stage_record
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.records import PeerState, RunId
from tests.protocol.commit.participating import prepare, prepared, standing
from tests.protocol.peers import A2, B, C, D, DrivenStagePeer, data_peer, in_step, record

M = msg.MicrobatchId(D, 3, 0)


def serving(iteration: int = 3) -> DrivenStagePeer:
    """It has been admitted to an iteration, and has its weights alone."""
    driven = in_step()
    driven.hears(D, msg.Admit(iteration, donors=(A2,), data_peers=(D,)))
    assert [download.weights_first for download in driven.did(ef.Download)] == [True]
    driven.handle(ev.WeightsDownloaded(iteration))
    return driven


def with_a_share(*, averaged: bool = True) -> DrivenStagePeer:
    """It has done a microbatch, which is in the average."""
    driven = serving()
    driven.is_accepted(driven.hands_on(M, D, (7, 0), (B, C)))
    driven.is_accepted(driven.finishes(M, B, (7, 0, 0), (B, C)))
    if averaged:
        prepared(driven, prepare(share=(M,), iteration=3))
    return driven


def test_it_serves_and_says_that_nobody_can_have_the_state_from_it() -> None:
    driven = serving()
    assert driven.machine.membership.published_state is PeerState.ONLINE and driven.did(ef.Publish)
    record = stage_record(driven.machine, OwnMeasurements(RunId("run")), 1)
    assert record.lacks_moments and record.is_routable
    assert standing(driven).syncing and standing(driven).version == 3
    driven.handle(ev.Downloaded(3))
    assert driven.reported("caught_up") and not standing(driven).syncing
    assert not stage_record(driven.machine, OwnMeasurements(RunId("run")), 1).lacks_moments


def test_what_it_has_computed_counts_and_its_step_waits_for_the_moments() -> None:
    driven = with_a_share()
    driven.hears(D, msg.Commit(3, 1, D, 0.0))
    assert not driven.did(ef.Step) and driven.machine.membership.published_state is PeerState.SYNCING
    assert driven.reported("stepped")[0]["microbatches"] == 1 and driven.did(ef.Discard) == [ef.Discard(M)]
    assert not driven.did(ef.Download), "the state that is under way is the one that the kept average is for"
    driven.handle(ev.Downloaded(3))
    assert driven.did(ef.Step) == [ef.Step(3, 1)]
    driven.handle(ev.Stepped(3))
    assert driven.machine.membership.published_state is PeerState.ONLINE and standing(driven).version == 4
    assert not driven.reported("stepped"), "the iteration is told of once"


def test_moments_that_come_before_the_commit_are_stepped_with_at_once() -> None:
    driven = with_a_share()
    driven.handle(ev.Downloaded(3))
    driven.hears(D, msg.Commit(3, 1, D, 0.0))
    assert driven.did(ef.Step) == [ef.Step(3, 1)]
    driven.handle(ev.Stepped(3))
    assert driven.reported("stepped")[0]["microbatches"] == 1 and driven.machine.participant.weights == 4


def test_weights_of_an_iteration_that_is_committed_already_do_not_serve() -> None:
    driven = in_step()
    driven.hears(D, msg.Admit(3, donors=(A2,), data_peers=(D,)))
    prepared(driven, prepare(iteration=3))
    driven.hears(D, msg.Commit(3, 1, D, 0.0))
    driven.handle(ev.WeightsDownloaded(3))
    assert driven.machine.membership.published_state is PeerState.SYNCING
    driven.handle(ev.Downloaded(3))
    assert driven.did(ef.Step) == [ef.Step(3, 1)]


def test_without_its_moments_it_says_nothing_of_the_state_that_it_averages_for() -> None:
    driven = serving()
    driven.hears(D, prepare(iteration=3))
    driven.handle(ev.AverageDone(3, 1, "bytes", 0.1, 0.0, "of half a state"))
    assert [said.state for said in driven.sent(msg.Prepared, D)] == [""]


def test_moments_that_do_not_come_put_it_out_of_step_and_it_says_so_at_once() -> None:
    driven = with_a_share(averaged=False)
    driven.handle(ev.DownloadFailed("all donors are gone"))
    assert driven.reported("out_of_step") and driven.sent(msg.Standing, D)[0].joining
    assert driven.did(ef.Discard) == [ef.Discard(M)] and driven.machine.participant.weights == -1


def test_it_leaves_without_a_checkpoint_of_half_a_state() -> None:
    driven = serving()
    driven.handle(ev.DrainRequested())
    assert not driven.did(ef.Checkpoint) and driven.reported("drained")


def test_half_a_state_is_no_reason_to_refuse_that_the_stage_is_rebuilt() -> None:
    driven = serving()
    rebuild = msg.Rebuild((Stage(1),), (D,), (B,))
    driven.hears(D, msg.Admit(3, (), (D,), epoch=1, epoch_starts=(3,), rebuild=rebuild))
    assert not driven.reported("admit_refused")


@pytest.mark.parametrize("first", [True, False])
def test_a_peer_with_half_a_state_does_not_let_the_last_whole_one_move_away(first: bool) -> None:
    driven = in_step()
    driven.sees([D, record(A2, lacks_moments=first), B, C])
    assert driven.machine._others_serve() is not first


def test_data_peers_wait_for_all_of_their_state() -> None:
    driven = data_peer()
    driven.machine.membership.wanted.fetch(3, (D,), own=False)
    [download] = [e for e in driven.machine.ctx.out if isinstance(e, ef.Download)]
    assert not download.weights_first
