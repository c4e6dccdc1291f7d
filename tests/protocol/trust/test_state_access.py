"""Who is given state: peers of the run, by their signed records; an outsider is told why not."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.trust import state_access
from gwtf_p2p.protocol.trust.state_access import NoState, StateAccess, WhyNoState
from gwtf_p2p.protocol.wire.records import PeerState
from tests.protocol.peers import A, B, D, DrivenStagePeer, in_step, record

X = PeerId("outsider")
OWN = Stage(1)


def donor() -> tuple[DrivenStagePeer, StateAccess]:
    """A peer of stage 1 that has seen the records of a data peer and of a peer of stage 2."""
    driven = in_step()
    driven.sees([D, A, record(B)])
    return driven, StateAccess(driven.machine.gate)


def why(access: StateAccess, peer: PeerId, stage: Stage | None) -> WhyNoState | None:
    refusal = access.refusal(peer, stage)
    return refusal.why if refusal is not None else None


@pytest.mark.parametrize("stage", [None, DATA_STAGE, OWN])
def test_whoever_holds_a_stage_gets_what_is_here_and_an_outsider_nothing(stage: Stage | None) -> None:
    _, access = donor()
    assert [why(access, peer, stage) for peer in (D, B)] == [None, None]
    assert why(access, X, stage) is WhyNoState.NO_RECORD


def test_a_newcomer_gets_state_while_it_joins() -> None:
    driven, access = donor()
    for state in (PeerState.JOINING, PeerState.SYNCING):
        driven.sees([D, A, record(B), record(X, state, stage=1)])
        assert why(access, X, OWN) is None
    driven.sees([D, A, record(B)])
    assert why(access, X, OWN) is WhyNoState.NO_RECORD


def test_one_that_only_asks_gets_word_and_what_a_text_takes() -> None:
    driven, access = donor()
    driven.sees([D, A, record(B), record(X, PeerState.ASKING, stage=1)])
    assert [why(access, X, stage) for stage in (None, DATA_STAGE, OWN)] == [None, None, WhyNoState.NOT_FOR_CLIENTS]


def test_nothing_is_given_to_one_that_is_barred_or_convicted() -> None:
    driven, access = donor()
    bars, now = driven.machine.ctx.bars, driven.machine.ctx.now
    while bars.strike(D, now, False) is None:
        pass
    bars.convict(B)
    assert access.refusal(D, OWN) == NoState(WhyNoState.SHUT_OUT, "barred")
    assert access.asked(B, OWN, now) == (NoState(WhyNoState.SHUT_OUT, "barred"), True), "at once"


def test_records_are_read_once_more_before_an_outsider_is_refused_and_again_when_it_asks_again() -> None:
    _, access = donor()
    access.read(9.0)
    assert access.asked(X, OWN, 10.0)[1] is False
    access.read(10.0)
    assert access.asked(X, OWN, 10.5)[1] is False, "that reading had begun when it asked"
    access.read(11.0)
    refusal, stands = access.asked(X, OWN, 11.5)
    assert stands and refusal is not None and refusal.why is WhyNoState.NO_RECORD
    assert access.asked(X, OWN, 12.0)[1] is False, "its record may have come since"


def test_a_record_that_that_reading_brings_is_enough() -> None:
    driven, access = donor()
    assert access.asked(X, OWN, 10.0)[1] is False
    driven.sees([D, A, record(B), record(X, PeerState.JOINING, stage=1)])
    access.read(10.5)
    assert access.asked(X, OWN, 11.0) == (None, True)


def test_a_newcomer_whose_first_record_said_that_it_only_asks_waits_for_its_next_one() -> None:
    driven, access = donor()
    driven.sees([D, A, record(B), record(X, PeerState.ASKING, stage=1)])
    assert access.asked(X, OWN, 10.0)[1] is False
    driven.sees([D, A, record(B), record(X, PeerState.JOINING, stage=1)])
    assert access.asked(X, OWN, 10.1) == (None, True)


def test_outsiders_who_wait_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_access, "MOST_WAITING", 4)
    _, access = donor()
    for number in range(40):
        assert access.asked(PeerId(f"outsider {number}"), OWN, 10.0)[1] is False
    assert len(access._waiting) == 4
