"""Taking peers in, and going back when weights are gone: `commit/admission`, seen from the coordinator's machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.admission import ADMIT_AGAIN_S, GO_BACK_AFTER_S
from gwtf_p2p.protocol.commit.rebuilding import REBUILD_AFTER_S, can_be_rebuilt, neighbours
from gwtf_p2p.protocol.ids import DATA_STAGE, Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.records import PeerState
from tests.protocol.peers import A2, D2, A, B, D, Driven, all_answer, leading, record

A_VERSION = 3


def coordinator(**replies: dict[str, object]) -> Driven:
    """D leads iteration 3 of two stages; A and B have answered its question."""
    driven = leading(A, B, microbatches=1, version=A_VERSION)
    all_answer(driven, **replies)
    return driven


def joins(driven: Driven, version: int = 0, stage: int = 1, peer: object = A2, **changes: object) -> list[msg.Admit]:
    driven.hears(A2, msg.Standing(Stage(stage), version, joining=True, **changes))  # type: ignore[arg-type]
    return driven.sent(msg.Admit, A2)


def test_a_newcomer_is_admitted_with_the_donors_of_its_stage() -> None:
    [admit] = joins(coordinator())
    assert admit == msg.Admit(3, donors=(A,), data_peers=(D,), own=False)


def test_a_newcomer_that_does_not_follow_is_asked_less_and_less_often_and_is_not_counted_on() -> None:
    """It cannot check the proof of the last commit: the next one comes only if an attempt is without it."""
    driven = coordinator()
    assert [len(joins(driven)) for _ in range(6)] == [1, 1, 1, 0, 0, 0]
    assert A2 not in driven.machine.coordinator.roster.present()  # type: ignore[union-attr]
    for wait_s in (ADMIT_AGAIN_S, 2 * ADMIT_AGAIN_S, 4 * ADMIT_AGAIN_S):
        driven.now += wait_s - 0.01
        assert not joins(driven)
        driven.now += 0.02
        assert len(joins(driven)) == 1 and not joins(driven)


def test_a_newcomer_that_has_the_weights_takes_its_own() -> None:
    assert joins(coordinator(), version=3)[0].own
    assert joins(coordinator(), version=5, kept=(3,)) == [], "it has later ones: are those of every stage there?"


def test_who_has_weights_of_this_version_from_another_attempt_is_no_donor() -> None:
    """The network was cut in two, and both sides have committed the iteration before."""
    driven = coordinator()
    driven.machine.participant.progress.committed = msg.Ballot(1, D)
    driven.hears(A, msg.Standing(Stage(1), A_VERSION, committed=msg.Ballot(1, D2)))
    assert not joins(driven) and driven.reported("version_missing")
    driven.hears(A, msg.Standing(Stage(1), A_VERSION, committed=msg.Ballot(1, D)))
    [admit] = joins(driven)
    assert admit.donors == (A,) and admit.committed == msg.Ballot(1, D)


def test_a_newcomer_of_an_older_epoch_has_no_weights_of_this_version() -> None:
    driven = coordinator()
    driven.machine.ctx.epoch, driven.machine.ctx.epoch_starts = 1, (2,)
    [admit] = joins(driven, version=3)
    assert not admit.own and admit.epoch == 1 and admit.epoch_starts == (2,)


def test_a_newcomer_waits_until_the_attempt_or_the_inquiry_under_way_is_over() -> None:
    driven = leading(A, B, microbatches=1, version=A_VERSION)
    assert joins(driven) == []
    all_answer(driven)
    driven = leading(A, B, microbatches=1, version=A_VERSION)
    driven.hears(A2, msg.Standing(Stage(1), 0, joining=True))
    for peer, stage in ((A, 1), (B, 2)):
        driven.hears(peer, msg.Standing(Stage(stage), 3, promised=msg.Ballot(1, D)))
    assert driven.sent(msg.Admit, A2)


def test_a_lost_newcomer_is_forgotten() -> None:
    driven = leading(A, B, A2, microbatches=1, version=A_VERSION)
    driven.hears(A2, msg.Standing(Stage(1), 0, joining=True))
    driven.loses(A2)
    for peer, stage in ((A, 1), (B, 2)):
        driven.hears(peer, msg.Standing(Stage(stage), 3, promised=msg.Ballot(1, D)))
    assert not driven.sent(msg.Admit, A2)


def test_a_data_peer_that_comes_back_with_the_weights_takes_part_as_a_guest() -> None:
    driven = coordinator()
    driven.hears(D2, msg.Standing(DATA_STAGE, 3, joining=True))
    [admit] = driven.sent(msg.Admit, D2)
    assert admit.data_peers == (D,), "it joins them in the next iteration"
    driven.hears(D2, msg.Standing(DATA_STAGE, 3, active=True, taking_part=True))
    assert driven.machine.participant.standing().coordinator == D


# ---- weights that nobody has


def stranded() -> Driven:
    """Nobody has version 3 of stage 1: its only peer has come back with version 2."""
    driven = leading(A, B, microbatches=1, version=A_VERSION)
    driven.hears(A, msg.Standing(Stage(1), 2, joining=True, kept=(1,)))
    driven.hears(B, msg.Standing(Stage(2), 3, promised=msg.Ballot(1, D), kept=(1, 2)))
    return driven


def test_a_newcomer_that_lacks_what_nobody_has_is_stranded_and_it_is_said_once() -> None:
    driven = stranded()
    assert driven.reported("version_missing") == [{"stage": 1, "version": 3, "have": 2, "peer": A}]
    assert not driven.sent(msg.Admit, A)
    assert driven.timers[ev.Timer.BACK, ""] == driven.now + GO_BACK_AFTER_S
    driven.hears(A, msg.Standing(Stage(1), 2, joining=True, kept=(1,)))
    assert not driven.reported("version_missing")


def asked_again(driven: Driven, mine: tuple[int, ...]) -> None:
    driven.handle(ev.Kept(mine))
    driven.fires(ev.Timer.BACK)
    [number] = {m.attempt for m in driven.sent(msg.Inquire)}
    driven.hears(A, msg.Standing(Stage(1), 2, joining=True, kept=(1,)))
    driven.hears(B, msg.Standing(Stage(2), 3, promised=msg.Ballot(number, D), kept=(1, 2)))


def test_after_a_while_the_swarm_goes_back_to_the_newest_version_that_every_stage_has() -> None:
    driven = stranded()
    asked_again(driven, (1, 2))
    [going] = driven.reported("going_back")
    assert (going["version"], going["iteration"], going["epoch"]) == (2, 3, 1)
    admits = dict(zip(driven.sent_to(msg.Admit), driven.sent(msg.Admit), strict=True))
    assert admits.keys() == {A, B, D}
    assert {m.position for m in admits.values()} == {(1, 2)} and {m.epoch_starts for m in admits.values()} == {(2,)}
    assert admits[A].own and admits[B].own and admits[D].own


def test_where_no_version_is_common_nobody_goes_back() -> None:
    driven = stranded()
    asked_again(driven, ())
    [said] = driven.reported("no_common_version")
    assert (said["version"], said["stages_without"]) == (3, [1]), "the newest that no more than one lacks"
    assert not driven.reported("going_back")


def test_whoever_has_the_weights_may_come_back_before_the_patience_is_over() -> None:
    driven = stranded()
    driven.hears(A2, msg.Standing(Stage(1), 3, joining=True))
    assert driven.sent(msg.Admit, A2)[0].own
    driven.hears(A, msg.Standing(Stage(1), 2, joining=True, kept=(1,)))
    assert driven.sent(msg.Admit, A)
    driven.fires(ev.Timer.BACK)
    assert not driven.sent(msg.Inquire), "nobody waits any more"


def test_a_newcomer_with_later_weights_makes_the_coordinator_ask_whether_those_of_every_stage_are_there() -> None:
    driven = coordinator()
    driven.hears(A2, msg.Standing(Stage(1), 5, joining=True))
    assert driven.sent(msg.Inquire) and not driven.sent(msg.Admit)
    later = {"version": 5, "joining": True}
    while driven.sent(msg.Inquire):  # once more for each that has later weights
        all_answer(driven, one_0=later, one_1=later, two_0=later)
    assert not driven.reported("out_of_step"), "nobody of stage 0 has them"
    assert driven.reported("version_missing") and driven.is_armed(ev.Timer.BACK), (
        "it would throw away later weights: not at once"
    )


def test_a_coordinator_is_behind_when_newcomers_have_later_weights_of_every_stage() -> None:
    driven = leading(A, B, record(D2, PeerState.JOINING), microbatches=1, version=A_VERSION)
    all_answer(driven)
    later = {"version": 5, "joining": True}
    driven.hears(D2, msg.Standing(DATA_STAGE, 5, joining=True))
    all_answer(driven, one_0=later, two_0=later, data_1=later)
    assert driven.reported("out_of_step")


# ---- a stage that is rebuilt


def nothing_common(driven: Driven) -> Driven:
    """Stage 1 has a peer that has just come, and A with nothing; the others have version 3."""
    driven.machine.ctx.life = replace(driven.machine.ctx.life, rebuilds=True)
    asked_again(driven, ())
    return driven


def test_where_it_is_asked_for_a_lost_stage_is_rebuilt_by_one_of_its_peers_after_a_while() -> None:
    driven = nothing_common(stranded())
    [said] = driven.reported("no_common_version")
    assert said["rebuilt_in_s"] == REBUILD_AFTER_S and not driven.sent(msg.Admit)
    driven.now += REBUILD_AFTER_S
    asked_again(driven, ())
    admits = dict(zip(driven.sent_to(msg.Admit), driven.sent(msg.Admit), strict=True))
    assert admits.keys() == {A, B, D}
    assert {m.position for m in admits.values()} == {(1, 3)}
    assert {m.epoch_starts for m in admits.values()} == {(2,)}, "version 3 of before is not that of now"
    assert admits[A].rebuild == msg.Rebuild((Stage(1),), (), (B,)) and not admits[A].own and not admits[A].donors
    assert admits[B].own and admits[B].rebuild == msg.Rebuild((Stage(1),))


@pytest.mark.parametrize(
    ("stage", "stages", "lacking", "beside"),
    [
        (2, 3, (2,), (1, 3)),
        (1, 3, (1,), (2,)),
        (3, 3, (3,), (2,)),
        (2, 4, (2, 3), (1,)),
        (2, 3, (1, 2, 3), ()),
        (1, 1, (1,), ()),
    ],
)
def test_a_stage_is_rebuilt_from_those_beside_it_that_hold_layers(
    stage: int, stages: int, lacking: tuple[int, ...], beside: tuple[int, ...]
) -> None:
    gone = [Stage(k) for k in lacking]
    assert neighbours(Stage(stage), stages, gone) == beside
    assert can_be_rebuilt(gone, stages) == all(neighbours(k, stages, gone) for k in gone)
    assert not can_be_rebuilt([DATA_STAGE], stages)
    ends = {Stage(1), Stage(stages)}
    assert can_be_rebuilt(gone, stages, thin=True) == (can_be_rebuilt(gone, stages) and not ends.intersection(gone))
