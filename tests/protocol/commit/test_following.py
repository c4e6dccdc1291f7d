"""Following: from old weights, through the kept averages, into the iteration of the others."""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Ballot
from tests.protocol.commit.participating import prepare, prepared, standing
from tests.protocol.peers import A2, D, DrivenStagePeer, in_step


def following(iteration: int = 3) -> DrivenStagePeer:
    """It has been admitted to an iteration whose weights it downloads."""
    driven = in_step()
    driven.hears(D, msg.Admit(iteration, donors=(A2,), data_peers=(D,)))
    assert driven.did(ef.Download) == [ef.Download(iteration, (A2,), False, 0, weights_first=True)]
    return driven


def test_a_peer_that_follows_averages_with_an_empty_share_and_steps_when_the_weights_are_there() -> None:
    driven = following()
    prepared(driven, prepare(1, iteration=3))
    driven.hears(D, msg.Commit(3, 1, D, 0.0))
    assert not driven.did(ef.Step) and standing(driven).version == 4 and standing(driven).syncing
    prepared(driven, prepare(1, iteration=4, base=Ballot(1, D)))
    driven.hears(D, msg.Commit(4, 1, D, 0.0))
    driven.handle(ev.Downloaded(3))
    assert driven.did(ef.Step) == [ef.Step(3, 1)]
    driven.handle(ev.Stepped(3))
    assert driven.did(ef.Step) == [ef.Step(4, 1)]
    driven.handle(ev.Stepped(4))
    assert driven.reported("caught_up") == [{"version": 5}] and not standing(driven).syncing


def test_averages_of_versions_that_the_download_has_already_are_not_applied_twice() -> None:
    driven = following()
    for iteration in (3, 4):
        prepared(driven, prepare(1, iteration=iteration))
        driven.hears(D, msg.Commit(iteration, 1, D, 0.0))
    driven.handle(ev.Downloaded(4))
    assert driven.did(ef.Step) == [ef.Step(4, 1)]


def test_weights_between_which_and_the_iteration_an_average_is_missing_are_of_no_use() -> None:
    driven = following()
    driven.handle(ev.Downloaded(2))
    assert driven.reported("download_failed") and standing(driven).joining
    assert not driven.did(ef.Step)


def test_a_step_of_weights_that_have_been_replaced_since_does_not_count() -> None:
    driven = in_step()
    prepared(driven, prepare(1))
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    driven.hears(D, msg.Admit(0, donors=(A2,), data_peers=(D,), epoch=1, epoch_starts=(0,)))
    driven.handle(ev.Stepped(0))
    assert standing(driven).version == 0 and standing(driven).syncing
