"""What a new coordinator concludes from where everybody stands: one test for each rule of `commit/inquiry`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol.commit.inquiry import Inquiry, available, common_version, decide, stages_without
from gwtf_p2p.protocol.core.epochs import Past
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Ballot, Commit, Prepare, Share, Standing
from tests.protocol.peers import A2, D2, A, D

BALLOT = Ballot(3, D)
MINE = Ballot(5, D2)
"""D2 has asked with number 5; D led attempt 3, in which D, A and A2 take part. There is one stage."""


def prepare(stage: int, ballot: Ballot = BALLOT) -> Prepare:
    group = {0: (D,), 1: (A, A2)}[stage]
    return Prepare(4, ballot.attempt, ballot.coordinator, Stage(stage), tuple(Share(p, ()) for p in group), mean_loss=0.5)


def standing(stage: int, prepared: Ballot | None = None, **changes: object) -> Standing:
    own = prepare(stage, prepared) if prepared is not None else None
    digest = f"bytes of stage {stage}" if prepared is not None else ""
    at = Standing(Stage(stage), 4, promised=MINE, prepare=own, prepared=own is not None, digest=digest)
    return replace(at, **changes)  # type: ignore[arg-type]


def concludes(replies: dict[PeerId, Standing], position: tuple[int, int] = (0, 4), stages: int = 1):  # type: ignore[no-untyped-def]
    return decide(Inquiry(MINE.attempt, set(replies), replies), position, stages, D2)


ALL_PREPARED = {D: standing(0, BALLOT), A: standing(1, BALLOT), A2: standing(1, BALLOT), D2: standing(0)}


def test_nothing_prepared_nothing_committed() -> None:
    outcome = concludes({D2: standing(0), A: standing(1)})
    assert (outcome.commit, outcome.behind, outcome.refused, outcome.go_back) == (None, False, None, False)


def test_an_attempt_that_all_who_answer_have_prepared_is_committed_as_it_may_have_been_already() -> None:
    outcome = concludes(ALL_PREPARED)
    assert outcome.commit == Commit(4, 3, D, 0.5)
    assert outcome.to_commit == (D, A, A2)
    assert outcome.behind, "it has not prepared the average that it commits, so it must catch up"


def test_the_commit_has_the_norm_of_all_stages_or_that_of_the_commit_it_repeats() -> None:
    said = {D: 9.0, A: 16.0, A2: 16.0}
    replies = {peer: replace(s, squared_norm=said.get(peer, 0.0)) for peer, s in ALL_PREPARED.items()}
    assert concludes(replies).commit == Commit(4, 3, D, 0.5, 5.0)
    replies[A] = replace(replies[A], squared_norm=-1.0)
    assert concludes(replies).commit == Commit(4, 3, D, 0.5, -1.0), "a stage whose average is not finite"
    ahead = Standing(Stage(1), 5, committed=BALLOT, gradient_norm=7.0)
    assert concludes({D: standing(0, BALLOT), A: ahead, D2: standing(0, BALLOT)}).commit == Commit(4, 3, D, 0.5, 7.0)


def test_a_participant_that_does_not_answer_does_not_keep_an_attempt_from_being_committed() -> None:
    replies = {peer: s for peer, s in ALL_PREPARED.items() if peer != A2}
    assert concludes(replies).to_commit == (D, A)


def test_one_participant_that_has_not_prepared_has_promised_never_to_so_a_new_attempt_may_begin() -> None:
    outcome = concludes({**ALL_PREPARED, A2: standing(1)})
    assert outcome.commit is None and not outcome.behind
    assert outcome.reason == "one_1 has not prepared attempt 3 of data_0"


@pytest.mark.parametrize("other", ["other bytes", ""])
def test_a_group_whose_digests_differ_was_not_committed(other: str) -> None:
    outcome = concludes({**ALL_PREPARED, A2: standing(1, BALLOT, digest=other)})
    assert outcome.commit is None
    assert outcome.reason == "stage 1 has 2 averages of attempt 3 of data_0"


def test_a_stage_of_which_nobody_answers_was_not_committed_without_its_average() -> None:
    outcome = concludes({D: standing(0, BALLOT), D2: standing(0)})
    assert outcome.commit is None and outcome.reason == "stage 1 has 0 averages of attempt 3 of data_0"


def test_of_two_prepared_attempts_only_the_higher_one_can_have_been_committed() -> None:
    higher = Ballot(4, D)
    replies = {D: standing(0, higher), A: standing(1, higher), A2: standing(1, higher)}
    assert concludes(replies).commit == Commit(4, 4, D, 0.5)
    mixed = {**replies, A2: standing(1, BALLOT)}
    assert concludes(mixed).commit is None


def test_a_higher_promise_to_somebody_else_is_stepped_back_from() -> None:
    outcome = concludes({**ALL_PREPARED, A: standing(1, BALLOT, promised=Ballot(6, D))})
    assert outcome.refused == Ballot(6, D) and outcome.commit is None
    equal = Ballot(5, D)  # the same number: the higher id wins, here D2's own
    assert concludes({A: standing(1, promised=equal), D2: standing(0)}).refused is None


@pytest.mark.parametrize(
    ("ahead", "behind", "go_back"),
    [
        ({D: {}, A: {}}, True, False),
        ({A: {}}, False, True),
        ({A: {"epoch": 1}}, True, False),
    ],
    ids=["every stage: it goes on without us", "one stage alone: go back", "a later epoch: it goes on"],
)
def test_peers_that_are_ahead_go_on_alone_if_they_can(
    ahead: dict[PeerId, dict[str, object]], behind: bool, go_back: bool
) -> None:
    stage = {D: 0, A: 1}
    replies = {p: standing(stage[p], version=5, promised=None, **changes) for p, changes in ahead.items()}
    outcome = concludes({D2: standing(0), **replies})
    assert (outcome.behind, outcome.go_back, outcome.commit) == (behind, go_back, None)


def test_whoever_has_prepared_what_those_ahead_have_committed_gets_the_commit() -> None:
    ahead = standing(1, version=5, promised=None, committed=BALLOT)
    outcome = concludes({A: ahead, A2: standing(1, BALLOT), D2: standing(0, BALLOT)})
    assert outcome.commit == Commit(4, 3, D, 0.5)
    assert outcome.to_commit == (D2, A2) and not outcome.behind
    assert concludes({A: ahead, A2: standing(1, BALLOT), D2: standing(0)}).behind, "a coordinator without it is behind"
    assert concludes({A: ahead, A2: standing(1), D2: standing(0)}).go_back, "nobody else has it"


def test_what_joining_peers_say_decides_nothing() -> None:
    outcome = concludes({D2: standing(0), A: standing(1, version=9, joining=True), A2: standing(1, BALLOT, joining=True)})
    assert outcome.reason == "nobody of 1 has prepared anything"


def test_an_answer_from_before_the_question_does_not_count() -> None:
    inquiry = Inquiry(5, {A, A2, D})
    assert not inquiry.note(A, standing(1, promised=None), (0, 4), D2)
    assert not inquiry.note(A, standing(1, promised=Ballot(4, D)), (0, 4), D2)
    assert not inquiry.note(D2, standing(0), (0, 4), D2), "nobody asked it"
    assert inquiry.note(A, standing(1), (0, 4), D2)
    assert inquiry.note(A2, standing(1, promised=None, version=3), (0, 4), D2), "of another iteration: no promise is due"
    assert inquiry.note(D, standing(0, promised=None, joining=True), (0, 4), D2)
    assert inquiry.waiting_for() == []


# ---- going back: what is left of earlier versions


@pytest.mark.parametrize(
    ("epoch", "kept", "syncing", "past", "expected"),
    [
        (0, (1, 2), False, Past(0), {1, 2, 4}),
        (0, (1, 2), True, Past(0), {1, 2}),
        (0, (1, 2), False, Past(1, (2,)), {1, 2}),
        (0, (1, 2), False, Past(1, (1,)), {1}),
        (1, (1, 2), False, Past(1, (1,)), {1, 2, 4}),
        (2, (1, 2), False, Past(1, (1,)), set()),
        (0, (1, 2), False, Past(2, ()), set()),
    ],
)
def test_a_version_is_available_where_its_weights_are_those_of_this_epoch(
    epoch: int, kept: tuple[int, ...], syncing: bool, past: Past, expected: set[int]
) -> None:
    assert available(standing(1, epoch=epoch, kept=kept, syncing=syncing), past) == expected


def test_the_swarm_goes_back_to_the_newest_version_that_every_stage_has() -> None:
    replies = {D: standing(0, kept=(1, 2, 3)), A: standing(1, version=2, kept=(1,)), A2: standing(1, version=3, syncing=True)}
    assert common_version(replies, Past(), 1) == 2
    assert common_version({D: replies[D]}, Past(), 1) is None, "a stage without anybody"
    assert stages_without(4, replies, Past(), 1) == [1]
    assert stages_without(2, replies, Past(), 1) == []
