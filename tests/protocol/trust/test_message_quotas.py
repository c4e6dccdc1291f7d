"""How many messages and microbatches of one sender a peer takes; a flood bars its sender and is told once."""

from __future__ import annotations

from typing import Any

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.trust.message_quotas import (
    AGAIN,
    LEAST_S,
    MOST_S,
    OF_A_KIND,
    OF_A_STRANGER,
    OF_MICROBATCHES,
    OF_STRANGERS,
    MessageQuotas,
    most_held,
)
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Verdict
from tests.protocol.peers import A2, A, B, D, Driven, in_step, microbatch, online, stage_peer

X = PeerId("outsider")
CHECK, INQUIRE, DONE = msg.Check(()), msg.Inquire(0, 1), msg.Done(microbatch(), Stage(1), ())
REDO = msg.Redo(microbatch(), (1, 0), Stage(1))


def sent(quotas: MessageQuotas, sender: PeerId, message: object, times: int, now: float = 0.0, position: int = 0) -> list[int]:
    """Which of so many were too many, by number."""
    found = [quotas.excess(sender, message, position, now, is_member=sender != X) for _ in range(times)]
    return [number for number, excess in enumerate(found, start=1) if excess is not None]


@pytest.mark.parametrize(
    ("message", "most"), [(CHECK, OF_A_KIND), (INQUIRE, OF_A_KIND), (DONE, OF_MICROBATCHES), (REDO, AGAIN)]
)
def test_a_member_may_send_so_many_of_a_kind_in_a_stretch(message: object, most: int) -> None:
    quotas = MessageQuotas()
    assert sent(quotas, A, message, most + 2) == [most + 1, most + 2]
    assert sent(quotas, B, message, 1) == []
    assert sent(quotas, A, msg.Lost(B, ""), 1) == []


def test_redo_of_another_microbatch_is_another_thing() -> None:
    quotas = MessageQuotas()
    assert sent(quotas, A, REDO, AGAIN) == []
    assert sent(quotas, A, msg.Redo(microbatch(1), (1, 0), Stage(1)), 1) == []


def test_a_stretch_is_an_iteration_of_five_seconds_to_a_minute() -> None:
    quotas = MessageQuotas()
    assert sent(quotas, A, CHECK, OF_A_KIND) == []
    assert sent(quotas, A, CHECK, 1, now=LEAST_S - 0.1, position=1) == [1]
    assert sent(quotas, A, CHECK, OF_A_KIND, now=LEAST_S, position=1) == []
    assert sent(quotas, A, CHECK, 1, now=LEAST_S + MOST_S - 0.1, position=1) == [1]
    assert sent(quotas, A, CHECK, 1, now=LEAST_S + MOST_S, position=1) == []


def test_strangers_have_few_each_and_few_together_however_short_iterations_are() -> None:
    quotas = MessageQuotas()
    assert sent(quotas, X, INQUIRE, OF_A_STRANGER + 1) == [OF_A_STRANGER + 1]
    assert sent(quotas, X, INQUIRE, 1, now=LEAST_S, position=1) == [1]
    for number in range(OF_STRANGERS):
        quotas.excess(PeerId(f"x{number}"), INQUIRE, 0, 0.0, is_member=False)
    over = quotas.excess(PeerId("late"), INQUIRE, 0, 0.0, is_member=False)
    assert over is not None and not over.breach
    assert len(quotas._minute.of) <= OF_STRANGERS + 1
    assert sent(quotas, A, INQUIRE, 1) == []
    assert sent(quotas, X, INQUIRE, 1, now=MOST_S) == []


def test_each_bound_that_comes_on_top_is_a_breach_more() -> None:
    quotas = MessageQuotas()
    found = [quotas.excess(A, CHECK, 0, 0.0, is_member=True) for _ in range(4 * OF_A_KIND)]
    assert [number for number, over in enumerate(found, start=1) if over is not None and over.breach] == [
        OF_A_KIND + 1,
        2 * OF_A_KIND + 1,
        3 * OF_A_KIND + 1,
    ]


def floods(driven: Driven, sender: PeerId, message: msg.ControlMessage, times: int) -> dict[str, list[dict[str, Any]]]:
    """What is told of it, by name."""
    told: dict[str, list[dict[str, Any]]] = {}
    for _ in range(times):
        for effect in driven.hears(sender, message):
            if isinstance(effect, ef.Report):
                told.setdefault(effect.name, []).append(dict(effect.fields))
    return told


def test_a_flood_of_questions_bars_a_stranger_is_told_once_and_changes_nothing() -> None:
    driven = online(stage_peer(A), [D, B])
    told = floods(driven, X, INQUIRE, 4 * OF_A_STRANGER)
    assert len(told["message_refused"]) == 1
    assert [report["peer"] for report in told["peer_barred"]] == [X]
    assert driven.machine.gate.refusals.counts["Inquire"] > OF_A_STRANGER
    driven.hears(D, INQUIRE)
    assert driven.sent(msg.Standing, to=D)


def test_a_flood_of_one_member_bars_it_and_its_work_goes_elsewhere() -> None:
    driven = in_step()
    told = floods(driven, A2, CHECK, 4 * OF_A_KIND)
    assert [report["peer"] for report in told["peer_barred"]] == [A2]
    assert len(told["message_refused"]) == 1


def test_whoever_gives_rise_to_many_reasons_is_told_once_all_the_same() -> None:
    driven = in_step()
    told: list[str] = []
    for number in range(50):
        done_by = (B, PeerId(f"nobody{number}"))
        for effect in driven.handle(ev.Offered(B, msg.Backward(microbatch(), (1, 0), Stage(1), done_by))):
            if isinstance(effect, ef.Report) and effect.name == "message_refused":
                told.append(str(effect.fields["reason"]))
    assert len(told) == 1 and "is not known to hold stage" in told[0]


def test_a_microbatch_that_the_run_does_not_have_is_a_breach() -> None:
    driven = online(stage_peer(A, microbatches=2), [D, B])
    offer = msg.Forward(MicrobatchId(D, 0, 2), (1, 0), Stage(1))
    for _ in range(3):
        driven.handle(ev.Offered(D, offer))
        assert driven.verdict()[0] is Verdict.REFUSED
    assert driven.reported("peer_barred")


@pytest.mark.parametrize(("microbatches", "data_peers", "most"), [(8, 3, 48), (8, 0, 16), (0, 3, 0)])
def test_nobody_hands_on_more_than_there_is_in_two_iterations(microbatches: int, data_peers: int, most: int) -> None:
    assert most_held(microbatches, data_peers) == most
