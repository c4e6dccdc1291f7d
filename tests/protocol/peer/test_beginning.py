"""A run begins when all that have come have been greeted, as a plan made of half of them is one of many, and a worse one."""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.peer.data_peer import GREETS_FIRST_S
from gwtf_p2p.protocol.trust.probation import AT_ONCE
from gwtf_p2p.protocol.wire.records import StageRecord
from tests.protocol.peers import A, B, C, D, Driven, data_peer, record

ALL = [PeerId(f"crowd_{n:03}") for n in range(2 * AT_ONCE)]


def crowd() -> list[StageRecord]:
    """All stages are staffed, by many."""
    return [record(D), record(A), record(B), record(C), *(record(p, stage=1 + n % 3) for n, p in enumerate(ALL))]


def starting() -> tuple[Driven, list[PeerId]]:
    """A data peer that was there first, when the records of all others have just come; and whom it greets."""
    driven = data_peer()
    driven.handle(ev.Started(0, incarnation=7))
    driven.sees([record(D)])
    driven.sees(crowd())
    return driven, [ask.peer for ask in driven.did(ef.Ask)]


def has_begun(driven: Driven) -> bool:
    return any(isinstance(e, ef.Report) and e.name == "iteration_begins" for e in driven.log)


def test_an_iteration_begins_when_the_last_of_a_crowd_has_been_greeted() -> None:
    driven, asked = starting()
    answered = 0
    while asked:
        driven.handle(ev.CheckAnswered(asked.pop(0), (), 0.01))
        answered += 1
        asked += [ask.peer for ask in driven.did(ef.Ask)]
        assert has_begun(driven) == (answered == len(crowd()) - 1), f"after {answered}"
    assert answered == len(crowd()) - 1


def test_a_crowd_that_is_not_there_delays_a_run_by_seconds() -> None:
    driven, asked = starting()
    for peer in asked:
        driven.handle(ev.CheckAnswered(peer, (), 0.01))
    assert not has_begun(driven)
    driven.handle(ev.CheckFailed(driven.did(ef.Ask)[0].peer, "no answer", silent=True), after_s=GREETS_FIRST_S)
    assert has_begun(driven)
