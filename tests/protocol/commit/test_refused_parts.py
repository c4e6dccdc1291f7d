"""A part of an average that is not taken: its sender is named and left out of the next attempt, and the iteration is closed."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.commit_messages import NOT_FINITE
from gwtf_p2p.protocol.wire.receipts import Receipt, ReceiptLine
from tests.protocol.commit.participating import M0, prepare
from tests.protocol.peers import A2, STAGE_OF, A, B, D, Driven, all_answer, goes_round, in_step, leading, microbatch

ONE = Stage(1)


def preparing(*lines: tuple[PeerId, PeerId]) -> Driven:
    """A coordinator whose attempt is under way; of its microbatches, each went along one of these lines."""
    driven = leading(A, A2, B, microbatches=len(lines))
    for index, line in enumerate(lines):
        goes_round(driven, microbatch(index), line)
    all_answer(driven)
    assert driven.sent(msg.Prepare)
    return driven


def refuses(driven: Driven, member: PeerId, of: PeerId, attempt: int = 2) -> None:
    stage = Stage(STAGE_OF[member])
    driven.hears(member, msg.NotPrepared(0, attempt, stage, "part: too large", of, refused=True))


def next_attempt(driven: Driven) -> dict[Stage, msg.Prepare]:
    driven.fires(ev.Timer.PREPARE)
    return {asked.stage: asked for asked in driven.sent(msg.Prepare)}


def test_a_participant_names_whose_part_it_has_refused_and_does_not_ask_whether_it_lives() -> None:
    driven = in_step()
    driven.hears(D, prepare())
    driven.handle(ev.AverageFailed(0, 1, "part: too large", A2, refused=True))
    assert driven.sent(msg.NotPrepared, D) == [msg.NotPrepared(0, 1, ONE, "part: too large", A2, refused=True)]
    assert driven.reported("part_refused") == [{"peer": A2, "iteration": 0, "reason": "part: too large"}]
    assert not driven.did(ef.Ask)


def test_the_next_attempt_is_without_it_and_it_stays_in_the_group() -> None:
    driven = preparing((A, B), (A2, B))
    refuses(driven, A, A2)
    assert driven.sent_to(msg.Abort) and not driven.did(ef.Ask), "it is there: that is not asked"
    groups = next_attempt(driven)
    assert {asked.left_out for asked in groups.values()} == {(A2,)}
    assert dict(zip(groups[ONE].participants, groups[ONE].weights, strict=True)) == {A: 1, A2: 0}
    assert {len({asked.terms}) for asked in groups.values()} == {1} and len({asked.terms for asked in groups.values()}) == 1
    assert groups[ONE].share_of(A2) == {microbatch(1)}, "what it has counted is not changed"


def test_what_others_have_found_too_counts_though_the_attempt_is_over() -> None:
    """The first word ends it; the second is on its way, and clears who has said the first."""
    driven = preparing((A, B), (A2, B))
    refuses(driven, A, A2)
    refuses(driven, A2, A)
    assert [told["peer"] for told in driven.reported("part_accused")] == [A]
    groups = next_attempt(driven)
    assert {asked.skipped_for for asked in groups.values()} == {(A, A2)}, "each accuses the other, and nobody else is there"
    assert {asked.left_out for asked in groups.values()} == {()}
    for peer in (D, A, A2, B):
        driven.hears(peer, msg.Prepared(0, groups[ONE].attempt, Stage(STAGE_OF[peer]), "skipped"))
    assert {commit.gradient_norm for commit in driven.sent(msg.Commit)} == {NOT_FINITE}


def test_one_that_brings_nothing_and_accuses_alone_has_no_part_in_the_next_attempt() -> None:
    driven = preparing((A, B), (A, B))
    refuses(driven, A2, A)
    groups = next_attempt(driven)
    assert groups[ONE].participants == (A,) and {asked.left_out for asked in groups.values()} == {()}
    assert A2 not in driven.sent_to(msg.Prepare)


@pytest.mark.parametrize(
    ("who", "of", "attempt"),
    [(B, A, 2), (A, B, 2), (A, A, 2), (A, PeerId("nobody"), 2), (A, A2, 1), (A, A2, 3)],
    ids=["another stage's", "of another stage", "itself", "nobody's", "an earlier attempt", "a later one"],
)
def test_only_a_member_of_the_same_group_and_attempt_is_heard(who: PeerId, of: PeerId, attempt: int) -> None:
    driven = preparing((A, B), (A2, B))
    refuses(driven, who, of, attempt)
    assert not driven.reported("part_accused")


def test_with_the_iteration_it_is_forgotten() -> None:
    driven = preparing((A, B), (A2, B))
    refuses(driven, A, A2)
    groups = next_attempt(driven)
    number = groups[ONE].attempt
    driven.handle(ev.AverageDone(0, number, "stage 0", 0.1))
    for peer in (A, A2, B):
        driven.hears(peer, msg.Prepared(0, number, Stage(STAGE_OF[peer]), f"stage {STAGE_OF[peer]}"))
    assert driven.sent(msg.Commit)
    driven.handle(ev.Stepped(0))
    under_way = driven.machine.coordinator.under_way  # type: ignore[union-attr]
    assert not under_way._refused._by_accused and not under_way.participants()


def test_a_prepare_that_leaves_nobody_is_no_ones_to_take() -> None:
    driven = in_step()
    driven.hears(D, prepare(share=(M0,), left_out=(A, A2)))
    assert not driven.sent(msg.NotPrepared) and not driven.did(ef.Average)
    [refused] = driven.reported("message_refused")
    assert refused["breach"] and "nobody is left" in refused["reason"]


def test_who_is_left_out_is_credited_with_nothing() -> None:
    lines = (ReceiptLine(DATA_STAGE, D, 2), ReceiptLine(ONE, A, 1), ReceiptLine(ONE, A2, 1))
    receipt = Receipt(D, 0, 0, lines, "key", "signature")
    assert receipt.without(()) is receipt
    assert [line.peer for line in receipt.without((A2,)).lines] == [D, A]


def test_older_releases_sign_the_same_terms_where_nobody_is_left_out() -> None:
    assert prepare().terms == "bc3bfa435ed887cbf386750a801619c1" and prepare(left_out=(A2,)).terms != prepare().terms


def test_a_loss_that_can_be_none_is_told_with_its_data_peer_once() -> None:
    driven = leading(A, B, microbatches=1)
    goes_round(driven, microbatch(), (A, B))
    own = driven.machine.coordinator.finished[D]  # type: ignore[union-attr]
    driven.machine.coordinator.finished[D] = msg.Finished(own.iteration, own.ledger, -3.0)  # type: ignore[union-attr]
    all_answer(driven)
    assert [told["peer"] for told in driven.reported("loss_refused")] == [D]
    assert {asked.mean_loss for asked in driven.sent(msg.Prepare)} == {0.0}
    driven.hears(A, msg.NotPrepared(0, 2, ONE, "silent"))
    driven.fires(ev.Timer.PREPARE)
    assert driven.sent(msg.Prepare) and not driven.reported("loss_refused")
