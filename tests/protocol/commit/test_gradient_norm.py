"""The whole model's gradient norm: from what stages say to every step, whoever brings the commit."""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.attempt import norm_of
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Ballot
from tests.protocol.commit.test_participant import counted, prepare, prepared, standing
from tests.protocol.peers import A2, A, B, D


def test_each_stage_counts_once_and_one_that_is_not_finite_makes_all_so() -> None:
    said = {D: (Stage(0), 9.0), A: (Stage(1), 16.0), A2: (Stage(1), 16.000001)}
    assert norm_of(said) == 5.0
    assert norm_of({**said, B: (Stage(2), -1.0)}) == -1.0


def test_a_participant_that_missed_the_commit_steps_by_the_norm_of_those_that_did_not() -> None:
    driven = counted()
    prepared(driven, prepare())
    driven.hears(A2, msg.Standing(Stage(1), 1, committed=Ballot(1, D), gradient_norm=3.5))
    assert driven.did(ef.Step) == [ef.Step(0, 1, 3.5)]
    driven.handle(ev.Stepped(0))
    told = standing(driven)
    assert (told.version, told.gradient_norm) == (1, 3.5)
