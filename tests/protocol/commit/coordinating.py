"""A coordinator with two stage peers, up to its attempt and through it."""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Ballot
from tests.protocol.peers import STAGE_OF, A, B, D, Driven, all_answer, goes_round, leading, microbatch

M = microbatch()
LINE = (A, B)


def finished(**how: object) -> Driven:
    """Its one microbatch is done, and it has asked everybody where they stand."""
    driven = leading(microbatches=1, **how)  # type: ignore[arg-type]
    goes_round(driven, M, LINE)
    return driven


def preparing(**how: object) -> Driven:
    """The others have answered, and its attempt is under way."""
    driven = finished(**how)
    all_answer(driven)
    return driven


def average(driven: Driven, *without: PeerId) -> None:
    """All participants but some have prepared, this one too."""
    [mine] = [e for e in driven.log if isinstance(e, ef.Average)][-1:]
    number = mine.prepare.attempt
    driven.handle(ev.AverageDone(0, number, "stage 0", 0.1))
    for peer in (A, B):
        if peer not in without:
            driven.hears(peer, msg.Prepared(0, number, Stage(STAGE_OF[peer]), f"stage {STAGE_OF[peer]}"))


def prepare_of(stage: int, ballot: Ballot) -> msg.Prepare:
    peer = {0: D, 1: A, 2: B}[stage]
    return msg.Prepare(0, ballot.attempt, ballot.coordinator, Stage(stage), (msg.Share(peer, (M,)),))
