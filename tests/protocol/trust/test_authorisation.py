"""One table says who may send what; an outsider's messages change nothing, and cost it its connection."""

from __future__ import annotations

from typing import get_args

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.bars import STRIKES
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.trust.authorisation import MAY_SEND, Who
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Ballot, Verdict
from gwtf_p2p.protocol.wire.records import PeerState
from tests.protocol.peers import (
    A2,
    B2,
    D2,
    A,
    B,
    D,
    Driven,
    all_answer,
    in_step,
    leading,
    microbatch,
    online,
    record,
    stage_peer,
)

M = microbatch()
X = PeerId("outsider")


def prepare(**changes: object) -> msg.Prepare:
    fields = {"iteration": 0, "attempt": 1, "coordinator": D, "stage": Stage(1), "shares": (msg.Share(A, (M,)),)}
    return msg.Prepare(**{**fields, **changes})  # type: ignore[arg-type]


def said_nothing_but(driven: Driven, *kinds: type[object]) -> bool:
    """Nothing was done but these; what is told to people does not count."""
    return all(isinstance(effect, (ef.Report, *kinds)) for effect in driven.out)


def test_every_kind_of_message_has_its_senders() -> None:
    assert set(MAY_SEND) == {*get_args(msg.TensorMessage), *get_args(msg.ControlMessage)}
    assert all(MAY_SEND.values())


LEADERS_WORDS = [
    msg.Commit(0, 1, X, 0.0),
    msg.Commit(10**9, 1, X, 0.0),
    prepare(coordinator=X, data_peers=(X,)),
    msg.Abort(0, 1),
    msg.Admit(1, (X,), (X,)),
    msg.Admit(0, (X,), (X,), epoch=1),
]
OTHERS_WORDS = [
    msg.Lost(B, "gone"),
    msg.Redo(M, Stage(1), A),
    msg.Superseded(M, (9, 9)),
    msg.Complete(M, X, 0.0),
    msg.CapacityAvailable(4),
    msg.Standing(Stage(1), 1, committed=Ballot(1, X)),
    msg.Standing(Stage(0), 0, active=True, taking_part=True, coordinator=X),
    msg.Standing(Stage(99), 0, joining=True),
    msg.Finished(0, (), 0.0),
    msg.NotPrepared(0, 1, Stage(1), "no", B),
]


@pytest.mark.parametrize("message", [*LEADERS_WORDS, *OTHERS_WORDS], ids=lambda m: type(m).__name__)
def test_an_outsiders_word_changes_nothing_at_a_stage_peer(message: msg.ControlMessage) -> None:
    driven = in_step()
    driven.hears(X, message)
    assert said_nothing_but(driven) and driven.reported("message_refused")
    assert driven.machine.participant.position == (0, 0) and not driven.machine.participant.out_of_step


@pytest.mark.parametrize("message", [*LEADERS_WORDS, *OTHERS_WORDS], ids=lambda m: type(m).__name__)
def test_an_outsiders_word_changes_nothing_at_a_coordinator(message: msg.ControlMessage) -> None:
    driven = leading(microbatches=1)
    before = dict(driven.machine.coordinator.roster.stages)
    driven.hears(X, message)
    assert said_nothing_but(driven) and driven.reported("message_refused")
    assert dict(driven.machine.coordinator.roster.stages) == before


def test_an_outsiders_question_is_answered_and_binds_nobody() -> None:
    driven = in_step()
    driven.hears(X, msg.Inquire(0, 5))
    assert driven.sent(msg.Standing, X)[0].promised is None


def test_no_number_is_promised_above_which_nobody_can_go() -> None:
    driven = in_step()
    driven.hears(D, msg.Inquire(0, 1 << 50))
    assert driven.sent(msg.Standing, D)[0].promised is None


def test_offers_of_an_outsider_are_not_taken() -> None:
    driven = in_step()
    driven.handle(ev.Offered(X, msg.Forward(M, (7, 0), Stage(1))))
    assert driven.verdict()[0] is Verdict.BUSY, "its record may not have got here yet"
    driven.handle(ev.Offered(X, msg.Backward(M, (7, 0, 0), Stage(1), (X, X))))
    assert driven.verdict()[0] is Verdict.BUSY and not driven.machine.ctx.held


@pytest.mark.parametrize(
    "message",
    [
        msg.Forward(M, (7,), Stage(1)),
        msg.Forward(M, (7, 0, 0, 0), Stage(1)),
        msg.Forward(M, (7, 0), Stage(1), ahead=(B,) * 9),
    ],
    ids=["too short", "too long", "a long way"],
)
def test_an_activation_whose_attempt_or_way_does_not_fit_its_stage_is_refused(message: msg.Forward) -> None:
    driven = in_step()
    driven.handle(ev.Offered(D, message))
    assert driven.verdict()[0] is Verdict.REFUSED and not driven.machine.ctx.held


def test_nobody_is_credited_with_what_its_record_does_not_say_that_it_holds() -> None:
    driven = in_step()
    driven.is_accepted(driven.hands_on(M, D, (7, 0), (B,)))
    for done_by in ((), (B,), (B, A2), (B, X)):
        driven.handle(ev.Offered(B, msg.Backward(M, (7, 0, 0), Stage(1), done_by)))
        assert driven.verdict()[0] in (Verdict.REFUSED, Verdict.BUSY), done_by
    assert not driven.machine.ctx.held[M].done_by


def test_who_has_died_since_is_credited_with_what_it_had_done() -> None:
    """Its record has run out, or it came back in another stage, while the gradient was on its way."""
    others = [record(D), record(A), record(B)]
    for after in (others, [*others, record(X, stage=2)]):
        driven = in_step()
        driven.sees([*others, record(X, stage=3)])
        driven.is_accepted(driven.hands_on(M, D, (7, 0), (B,)))
        driven.sees(after)
        driven.handle(ev.Offered(B, msg.Backward(M, (7, 0, 0), Stage(1), (B, X))))
        assert driven.verdict()[0] is Verdict.ACCEPTED


def test_weights_are_taken_from_peers_of_the_own_stage_only() -> None:
    driven = stage_peer(A)
    driven.handle(ev.Started(0, incarnation=7))
    driven.sees([record(D, weights_version=3), record(A, PeerState.JOINING), record(A2, weights_version=3)])
    driven.hears(D, msg.Admit(3, (X, B, A2), (D,)))
    assert driven.did(ef.Download) == [ef.Download(3, (A2,), False, 0, weights_first=True)]


def test_a_serving_peer_goes_back_only_for_who_leads() -> None:
    driven = in_step()
    driven.hears(D, msg.Admit(0, data_peers=(D, D2)))
    driven.machine.participant.set_voters((D, D2))
    driven.hears(D2, msg.Admit(0, (A2,), (D2,), epoch=1))
    assert driven.reported("admit_refused") and driven.machine.ctx.epoch == 0
    driven.hears(D, msg.Admit(0, (A2,), (D,), epoch=1))
    assert driven.machine.ctx.epoch == 1


def test_what_one_without_a_record_says_of_the_swarm_is_not_asked_for() -> None:
    driven = leading(A, B, microbatches=1, version=3)
    all_answer(driven)
    driven.hears(X, msg.Standing(Stage(1), 9, joining=True, kept=(9,)))
    assert X not in driven.sent_to(msg.Inquire)


# ---- strikes


def breaks_the_rules(driven: Driven, times: int = STRIKES) -> list[ef.Effect]:
    return [effect for _ in range(times) for effect in driven.hears(X, msg.Commit(10**9, 1, X, 0.0))]


def test_three_breaches_bar_a_sender_for_a_growing_time() -> None:
    driven = in_step()
    seconds = []
    for _ in range(3):
        [bar] = [effect for effect in breaks_the_rules(driven) if isinstance(effect, ef.Bar)]
        assert bar.peer == X
        seconds.append(bar.seconds)
        driven.now += bar.seconds
    assert seconds == [10.0, 40.0, 160.0]


def test_a_barred_peer_is_not_heard_until_its_time_is_over() -> None:
    driven = in_step()
    breaks_the_rules(driven)
    driven.hears(X, msg.Inquire(0))
    assert not driven.out
    driven.handle(ev.Offered(X, msg.Forward(M, (7, 0), Stage(1))))
    assert driven.verdict() == (Verdict.REFUSED, "barred")
    driven.now += 11.0
    assert [type(e) for e in driven.hears(X, msg.Inquire(0))] == [ef.Send]


def test_a_stranger_that_turns_out_to_be_somebody_is_heard_again_once() -> None:
    driven = in_step()
    breaks_the_rules(driven)
    newcomer = [record(D), record(A), record(X, stage=1)]
    driven.sees(newcomer)
    assert driven.did(ef.Bar) == [ef.Bar(X, 0.0)]
    breaks_the_rules(driven)
    driven.sees([record(D, sequence_number=1), *newcomer[1:]])
    assert not driven.did(ef.Bar)


def test_what_a_barred_member_holds_is_done_elsewhere() -> None:
    driven = in_step()
    push = driven.hands_on(M, D, (7, 0), (B,))
    driven.is_accepted(push)
    for _ in range(STRIKES):
        driven.handle(ev.Misbehaved(B, "no message"))
    assert driven.reported("peer_lost")[0]["peer"] == B
    assert driven.pushed().to == B2
    driven.handle(ev.CheckAnswered(B, (), 0.1))
    assert driven.machine.ctx.liveness.is_lost(B), "an answer does not bring it back"


def test_strikes_that_are_far_apart_do_not_bar() -> None:
    driven = in_step()
    for _ in range(2 * STRIKES):
        breaks_the_rules(driven, 1)
        driven.now += 40.0
    assert not [e for e in driven.log if isinstance(e, ef.Bar)]


# ---- what could not be handled


def test_what_had_followed_from_an_event_that_raised_comes_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    driven = in_step()

    def fails(sender: PeerId, message: msg.Superseded) -> None:
        driven.machine.ctx.emit(ef.Publish())
        raise KeyError(message.microbatch)

    monkeypatch.setattr(driven.machine.transfers, "superseded", fails)
    with pytest.raises(KeyError):
        driven.hears(D, msg.Superseded(M, (9, 9)))
    driven.handle(ev.Misbehaved(D, "it could not be handled"))
    assert driven.did(ef.Publish) and driven.reported("message_failed") == [
        {"sender": D, "reason": "it could not be handled"},
    ]


def test_a_stage_of_which_it_knows_better_is_told_to_the_coordinator() -> None:
    """A peer that has said that it holds another stage, and is asked to average there, says where it stands."""
    driven = in_step()
    driven.hears(D, prepare(stage=Stage(2)))
    assert driven.sent(msg.Standing, D)[0].stage == 1 and not driven.did(ef.Average)


def test_who_speaks_of_itself_is_known_by_its_record() -> None:
    assert MAY_SEND[msg.Standing] == (Who.NEWCOMER,)
    driven = online(stage_peer(A), [record(D), record(B)])
    driven.hears(B, msg.Standing(DATA_STAGE, 5))
    assert driven.reported("message_refused")


def test_a_peer_stands_in_the_stage_that_it_serves() -> None:
    """One that moves stops serving before it comes to its new stage."""
    driven = leading()
    lie = msg.Standing(stage=Stage(2), version=0, joining=True)
    driven.hears(A, lie)
    told = [report.fields["reason"] for report in driven.did(ef.Report) if report.name == "message_refused"]
    assert told == ["Standing: stage: not the one that its record says it serves"]
    assert driven.machine.coordinator.roster.stages.get(A) != 2
    driven.sees([D, record(A, PeerState.DRAINING), B])
    driven.hears(A, lie)
    assert not [report for report in driven.did(ef.Report) if report.name == "message_refused"]
