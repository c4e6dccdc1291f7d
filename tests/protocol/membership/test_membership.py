"""Coming, catching up, going back and leaving: one test for each rule of `membership/membership`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.membership.membership import MOST_SEEK_S, SEEK_S
from gwtf_p2p.protocol.membership.others import IN_LINE
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.records import PeerState
from tests.protocol.peers import (
    A2,
    D2,
    A,
    B,
    C,
    D,
    Driven,
    DrivenStagePeer,
    data_peer,
    in_step,
    leading,
    microbatch,
    record,
    stage_peer,
)


def joining(me: object = A, version: int = 0, others: int = 0) -> DrivenStagePeer:
    """It sees D, whose record is `others` iterations old."""
    driven = stage_peer(me)  # type: ignore[arg-type]
    driven.handle(ev.Started(version, incarnation=7))
    driven.sees([record(D, weights_version=others), record(driven.me, PeerState.JOINING)])
    return driven


def data_joins(me: object = D2, version: int = 3, other: int = 3) -> Driven:
    """A data peer that sees another one."""
    driven = data_peer(me)  # type: ignore[arg-type]
    driven.handle(ev.Started(version, incarnation=7))
    peer = D if me == D2 else D2
    driven.sees([record(peer, weights_version=other), record(driven.me, PeerState.JOINING), A, B, C])
    return driven


# ---- joining


def test_where_no_data_peer_is_and_nobody_is_ahead_a_peer_is_online_at_once() -> None:
    driven = stage_peer(A)
    driven.handle(ev.Started(0, incarnation=7))
    assert driven.machine.state is PeerState.JOINING, "without records it knows nothing"
    driven.sees([A, B])
    assert driven.machine.state is PeerState.ONLINE and driven.did(ef.Publish)


def test_a_peer_introduces_itself_once_to_who_leads_and_to_those_that_would_next() -> None:
    driven = stage_peer(A)
    driven.handle(ev.Started(0, incarnation=7))
    driven.sees([A, B])
    data_peers = [PeerId(f"data_x{n}") for n in range(9)]
    driven.sees([A, B, *(record(peer, stage=0) for peer in data_peers)])
    assert driven.sent_to(msg.Standing) == data_peers[:IN_LINE]
    driven.sees([A, B, D, *(record(peer, stage=0) for peer in data_peers)])
    assert not driven.sent(msg.Standing)


def test_where_a_record_is_ahead_a_stage_peer_seeks_until_a_data_peer_is_there() -> None:
    driven = stage_peer(A)
    driven.handle(ev.Started(0, incarnation=7))
    driven.sees([A, record(B, weights_version=3)])
    assert driven.machine.state is PeerState.JOINING and driven.is_armed(ev.Timer.SEEK)
    driven.sees([A, record(D, weights_version=3)])
    driven.fires(ev.Timer.SEEK)
    assert driven.sent(msg.Standing, D)[0].joining


def test_a_newcomer_says_where_it_stands_to_all_data_peers_and_waits_twice_as_long_each_time() -> None:
    driven = joining()
    assert driven.sent_to(msg.Standing) == [D]
    waits = []
    for _ in range(5):
        waits.append(driven.timers[ev.Timer.SEEK, ""] - driven.now)
        driven.fires(ev.Timer.SEEK)
        assert driven.sent_to(msg.Standing) == [D]
    assert waits == pytest.approx([SEEK_S, 2 * SEEK_S, 4 * SEEK_S, MOST_SEEK_S, MOST_SEEK_S])


def test_a_newcomer_with_the_weights_is_online_when_it_is_admitted() -> None:
    driven = joining(version=3, others=3)
    driven.hears(D, msg.Admit(3, data_peers=(D,)))
    assert driven.machine.membership.published_state is PeerState.ONLINE and not driven.did(ef.Download)


def test_a_newcomer_without_the_weights_follows_and_downloads_them_from_the_donors() -> None:
    driven = joining(others=3)
    driven.hears(D, msg.Admit(3, (A2,), (D,), epoch_starts=(1,)))
    assert driven.did(ef.Download) == [ef.Download(3, (A2,), False, 0, weights_first=True)]
    assert driven.machine.membership.published_state is PeerState.SYNCING
    driven.hears(D, msg.Admit(3, (A2,), (D,)))
    assert not driven.did(ef.Download), "it is under way"
    driven.handle(ev.Downloaded(3))
    assert driven.machine.membership.published_state is PeerState.ONLINE
    assert driven.reported("caught_up") and driven.sent(msg.Standing, D)[0].syncing is False


def test_an_older_admission_than_the_iteration_it_takes_part_in_says_nothing() -> None:
    driven = in_step(iteration=3)
    driven.hears(D, msg.Admit(2, (A2,), (D,)))
    assert not driven.did(ef.Download) and driven.machine.membership.published_state is PeerState.ONLINE


def test_weights_that_the_swarm_has_gone_back_from_are_not_told_as_those_of_the_new_epoch() -> None:
    """It was away meanwhile, and nobody has what it is to fetch yet: asked where it stands, it has nothing to go on from."""
    driven = in_step(iteration=3)
    driven.handle(ev.Kept((0, 1, 2, 3)))
    driven.hears(D, msg.Admit(2, (A2,), (D,), epoch=1, epoch_starts=(1,)))
    driven.handle(ev.DownloadFailed("nobody has version 2"))
    told = driven.machine.participant.standing()
    assert told.epoch == 1 and told.joining and told.kept == (0, 1) and told.version < 0


def test_a_swarm_that_goes_back_takes_everybody_to_the_earlier_iteration() -> None:
    driven = in_step(iteration=3)
    driven.hears(D, msg.Admit(2, (), (D,), epoch=1, own=True, epoch_starts=(2,)))
    assert driven.did(ef.Download) == [ef.Download(2, (), True, 1)]
    driven.handle(ev.Downloaded(2))
    told = driven.sent(msg.Standing, D)[0]
    assert (told.position, told.syncing) == ((1, 2), False)


@pytest.mark.parametrize("followed", [False, True])
def test_who_was_cut_off_follows_a_swarm_that_has_gone_back_under_another_leader_once_others_have_followed(
    followed: bool,
) -> None:
    """It leads as it knows; one other data peer's word is not enough, and records of others that are there are."""
    driven = in_step(iteration=3)
    driven.sees([record(D, weights_version=3), record(D2, weights_version=2, epoch=1), record(A, weights_version=3)])
    if followed:
        driven.sees(
            [record(p, weights_version=2, epoch=1) for p in (D2, B, C)] + [record(p, weights_version=3) for p in (D, A)]
        )
    driven.hears(D2, msg.Admit(2, (), (D2,), epoch=1, own=True, epoch_starts=(2,)))
    assert driven.reported("admit_refused") and not driven.did(ef.Download)
    assert driven.machine.participant.out_of_step is followed
    if followed:
        driven.hears(D2, msg.Admit(2, (), (D2,), epoch=1, own=True, epoch_starts=(2,)))
        assert driven.did(ef.Download) == [ef.Download(2, (), True, 1)]


def test_a_stage_is_rebuilt_from_the_peers_beside_it_and_the_disk_has_it_at_once() -> None:
    driven = joining(others=3)
    driven.handle(ev.Kept(()))
    rebuild = msg.Rebuild((Stage(1),), (D,), (B, A2))
    driven.sees([record(D, weights_version=3), B, A2, record(A, PeerState.JOINING)])
    driven.hears(D, msg.Admit(3, (), (D,), 1, epoch_starts=(2,), rebuild=rebuild))
    [download] = driven.did(ef.Download)
    assert download.rebuild == msg.Rebuild((Stage(1),), (), (B,)), "the others are of other stages"
    assert driven.reported("rebuilding") == [{"version": 3, "stages": [1], "epoch": 1}]
    driven.machine.ctx.life = replace(driven.machine.ctx.life, checkpoint_every=10)
    driven.handle(ev.Downloaded(3))
    assert [c.version for c in driven.did(ef.Checkpoint)] == [3]


def test_who_has_the_weights_does_not_let_them_be_overwritten() -> None:
    rebuild = msg.Rebuild((Stage(1),), (), (B,))
    for driven in (in_step(iteration=3), joining(version=2, others=3)):
        driven.handle(ev.Kept((3,)))
        driven.hears(D, msg.Admit(3, (), (D,), 1, epoch_starts=(2,), rebuild=rebuild))
        assert driven.reported("admit_refused") and not driven.did(ef.Download)


# ---- data peers: who begins


def test_of_data_peers_that_all_do_not_take_part_the_furthest_begins() -> None:
    driven = data_joins()
    assert driven.sent_to(msg.Inquire) == [D]
    driven.hears(D, msg.Standing(DATA_STAGE, 2, joining=True))
    assert driven.reported("takes_the_lead") == [{"version": 3, "others": [D]}]


@pytest.mark.parametrize(
    ("me", "standing", "leads"),
    [
        (D2, msg.Standing(DATA_STAGE, 3, joining=True), False),
        (D, msg.Standing(DATA_STAGE, 3, joining=True), True),
        (D, msg.Standing(DATA_STAGE, 4, joining=True), False),
        (D, msg.Standing(DATA_STAGE, 2, joining=True, epoch=1), False),
        (D, msg.Standing(DATA_STAGE, 3, active=True), False),
    ],
    ids=["equal: the lower id", "equal: this is the lower id", "it is further", "a later epoch", "it takes part"],
)
def test_of_equally_far_data_peers_the_lowest_id_begins_and_nobody_while_one_takes_part(
    me: object, standing: msg.Standing, leads: bool
) -> None:
    driven = data_joins(me)
    driven.hears(D if me == D2 else D2, standing)
    assert bool(driven.reported("takes_the_lead")) == leads


def test_nobody_begins_before_all_data_peers_have_answered() -> None:
    driven = data_peer(D)
    driven.handle(ev.Started(3, incarnation=7))
    driven.sees([record(D2, weights_version=3), record(D, PeerState.JOINING), record(A), B, C])
    assert not driven.reported("takes_the_lead")
    driven.hears(A, msg.Standing(Stage(1), 0, joining=True))
    assert not driven.reported("takes_the_lead"), "what stage peers say does not count"


def test_a_lone_data_peer_fetches_the_weights_that_others_are_ahead_with() -> None:
    driven = data_peer(D)
    driven.handle(ev.Started(1, incarnation=7))
    driven.sees([record(D, PeerState.JOINING), record(A, weights_version=3), B, C])
    assert driven.did(ef.Download) == [ef.Download(3, (), True, 0)]
    driven.handle(ev.Downloaded(3))
    assert driven.machine.participant.position == (0, 3) and driven.machine.membership.admitted


def test_a_lone_data_peer_goes_back_to_its_own_weights_when_nobody_has_later_ones() -> None:
    driven = data_peer(D)
    driven.handle(ev.Started(1, incarnation=7))
    driven.sees([record(D, PeerState.JOINING), record(A, weights_version=3), B, C])
    driven.handle(ev.DownloadFailed("nobody has it"))
    assert driven.reported("version_missing") == [{"stage": 0, "version": 3, "have": 1}]
    assert driven.reported("going_back") and driven.did(ef.Download) == [ef.Download(1, (), True, 0)]


def test_a_lone_data_peer_whose_weights_are_of_no_use_goes_back_to_the_newest_that_it_keeps() -> None:
    driven = data_peer(D)
    driven.handle(ev.Started(5, incarnation=7, kept=(2, 4, 5)))
    driven.sees([record(D, PeerState.JOINING), record(A, weights_version=6), B, C])
    driven.handle(ev.DownloadFailed("nobody has it"))
    assert driven.did(ef.Download) == [ef.Download(5, (), True, 0)]
    driven.handle(ev.DownloadFailed("the file is damaged"))
    assert driven.did(ef.Download) == [ef.Download(4, (), True, 0)]
    assert [line["version"] for line in driven.reported("going_back")] == [4]


def test_a_lone_data_peer_with_nothing_to_go_back_to_waits_for_a_copy_and_says_what_is_lacking() -> None:
    """Its first weights are of no use to stage peers that have gone on from them."""
    driven = data_peer(D)
    driven.handle(ev.Started(0, incarnation=7))
    driven.sees([record(D, PeerState.JOINING), record(A, weights_version=9), B, C])
    driven.handle(ev.DownloadFailed("nobody has it"))
    assert [(line["version"], line["stages_without"]) for line in driven.reported("no_common_version")] == [(9, [0])]
    assert not driven.did(ef.Download) and not driven.machine.membership.admitted
    driven.handle(ev.Kept((4,)))
    driven.fires(ev.Timer.SEEK)
    driven.handle(ev.DownloadFailed("nobody has it"))
    assert driven.did(ef.Download) == [ef.Download(4, (), True, 0)]
    assert not driven.reported("no_common_version"), "it is said once"


# ---- falling behind


def test_a_record_that_is_ahead_raises_a_doubt_and_not_again_before_it_was_answered() -> None:
    driven = in_step()
    driven.sees([D, A, record(B, weights_version=2)])
    assert driven.sent_to(msg.Standing) == [D] and driven.is_armed(ev.Timer.DOUBT)
    driven.sees([D, A, record(B, weights_version=3)])
    assert not driven.sent(msg.Standing)
    driven.fires(ev.Timer.DOUBT)
    driven.sees([D, A, record(B, weights_version=3)])
    assert driven.sent_to(msg.Standing) == [D]


def test_a_record_of_a_lost_peer_raises_no_doubt() -> None:
    driven = in_step()
    driven.loses(B)
    driven.sees([D, A, record(B, weights_version=2)])
    assert not driven.is_armed(ev.Timer.DOUBT)


def test_a_peer_that_has_fallen_behind_does_not_serve_and_seeks() -> None:
    driven = in_step()
    driven.hears(B, msg.Standing(Stage(2), 2))
    driven.hears(D, msg.Standing(Stage(0), 2))
    assert driven.machine.membership.published_state is PeerState.SYNCING
    assert driven.sent(msg.Standing, D)[0].joining and driven.is_armed(ev.Timer.SEEK)
    driven.hears(D, msg.Admit(2, (A2,), (D,)))
    driven.handle(ev.Downloaded(2))
    assert driven.machine.membership.published_state is PeerState.ONLINE


def test_a_download_that_fails_or_comes_too_late_is_sought_anew() -> None:
    for event in (ev.DownloadFailed("silent"), ev.Downloaded(1)):
        driven = joining(others=3)
        driven.hears(D, msg.Admit(3, (A2,), (D,)))
        driven.handle(event)
        assert driven.reported("download_failed") and driven.is_armed(ev.Timer.SEEK)
        driven.fires(ev.Timer.SEEK)
        assert driven.sent(msg.Standing, D)[0].joining


@pytest.mark.parametrize("event", [ev.Downloaded(3), ev.DownloadFailed("late")])
def test_a_download_that_nobody_waits_for_says_nothing(event: ev.Event) -> None:
    driven = in_step()
    driven.handle(event)
    assert driven.machine.membership.published_state is PeerState.ONLINE and not driven.did(ef.Report)


# ---- draining


def test_a_draining_peer_leaves_when_its_counted_work_is_committed_and_says_goodbye() -> None:
    driven = in_step()
    m = microbatch()
    driven.sees([D, A, A2, B, C])
    driven.is_accepted(driven.hands_on(m, D, (7, 0), (B, C)))
    driven.is_accepted(driven.finishes(m, B, (7, 0, 0), (B, C)))
    driven.handle(ev.DrainRequested())
    assert driven.machine.state is PeerState.DRAINING and not driven.reported("drained")
    driven.handle(ev.DrainRequested())
    assert not driven.reported("draining"), "it is said once"
    driven.hears(D, msg.Prepare(0, 1, D, Stage(1), (msg.Share(A, (m,)),), data_peers=(D,)))
    driven.handle(ev.AverageDone(0, 1, "x", 0.1))
    driven.hears(D, msg.Commit(0, 1, D, 0.0))
    driven.handle(ev.Stepped(0))
    assert driven.reported("drained")
    assert driven.sent_to(msg.Standing) == [D, A2, B], "the data peers, its own and the neighbouring stages"
    assert all(standing.leaving for standing in driven.sent(msg.Standing))


def test_a_peer_without_work_leaves_at_once() -> None:
    driven = in_step()
    driven.handle(ev.DrainRequested())
    assert driven.reported("drained") and driven.sent(msg.Standing, D)[0].leaving


def test_a_draining_data_peer_reports_that_it_leaves() -> None:
    driven = leading(microbatches=1)
    driven.computes(ev.Work.EMBED, microbatch())
    driven.handle(ev.DrainRequested())
    assert not driven.reported("drained"), "its microbatch is on its way"


def test_a_peer_that_moves_drains_and_then_begins_anew_in_the_other_stage() -> None:
    driven = in_step()
    driven.sees([D, A, A2, B, C])
    driven.machine.membership.move(Stage(2), "the slowest")
    driven.handle(ev.Kept(()))
    assert driven.did(ef.MoveTo) == [ef.MoveTo(Stage(2), "the slowest")] and not driven.reported("drained")


def test_a_peer_stays_when_nobody_else_is_left_in_its_stage() -> None:
    driven = in_step()
    driven.sees([D, A, A2, B, C])
    driven.takes(microbatch(), D, (7, 0), (B, C))
    driven.machine.membership.move(Stage(2), "the slowest")
    driven.loses(A2)
    assert driven.reported("stays") == [{"stage": 1, "reason": "nobody else is left in it"}]
    assert driven.machine.state is PeerState.ONLINE
