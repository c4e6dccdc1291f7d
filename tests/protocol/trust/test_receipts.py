"""A receipt says what the ledger says, and the coordinator's word is no receipt: what differs is refused where it arrives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.trust.fitness import unfit
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.receipts import Receipt, ReceiptLine
from tests.protocol.peers import D2, A, B, D, leading, microbatch

FREE_RIDER = PeerId("free rider")


def line(stage: int, peer: PeerId, microbatches: int = 1) -> ReceiptLine:
    return ReceiptLine(Stage(stage), peer, microbatches)


RECEIPT = Receipt(D2, 0, 0, (line(0, D2), line(1, A), line(2, B)))
FINISHED = msg.Finished(0, (msg.Credit(0, (A, B)),), 1.0, receipt=RECEIPT)
PREPARE = msg.Prepare(0, 1, D, DATA_STAGE, (msg.Share(D2, (microbatch(0, of=D2),)),), receipts=(RECEIPT,))


def wrong_with(message: msg.Message) -> str:
    machine = leading(A, B, D2).machine
    found = unfit(machine.ctx, machine.gate.known, D2, message)
    return found.what if found is not None else ""


def test_a_receipt_for_what_the_ledger_says_is_heard() -> None:
    assert not wrong_with(FINISHED) and not wrong_with(PREPARE)


@pytest.mark.parametrize(
    "lines",
    [
        (line(0, D2), line(1, A, 2), line(2, B)),
        (line(0, D2), line(1, A), line(2, FREE_RIDER)),
        (line(0, D2), line(1, A)),
        (*RECEIPT.lines, line(2, FREE_RIDER)),
        (line(0, D2, 5), line(1, A), line(2, B)),
    ],
    ids=["more", "another", "less", "one more", "own stage"],
)
def test_a_receipt_for_anything_else_is_refused(lines: tuple[ReceiptLine, ...]) -> None:
    assert "differs from the ledger" in wrong_with(replace(FINISHED, receipt=replace(RECEIPT, lines=lines)))


@pytest.mark.parametrize("change", [{"data_peer": D}, {"iteration": 1}, {"epoch": 1}])
def test_a_receipt_is_of_its_sender_and_this_iteration(change: dict[str, object]) -> None:
    assert "another" in wrong_with(replace(FINISHED, receipt=replace(RECEIPT, **change)))  # type: ignore[arg-type]


def test_lines_come_once_and_in_order() -> None:
    twice = replace(RECEIPT, lines=(*RECEIPT.lines, ReceiptLine(Stage(2), B, 0, audits=1)))
    assert "one line" in wrong_with(replace(FINISHED, receipt=twice))


def test_an_attempts_receipts_are_those_of_its_shares() -> None:
    other = replace(RECEIPT, lines=(line(0, D2, 9), *RECEIPT.lines[1:]))
    assert "differ from the shares" in wrong_with(replace(PREPARE, receipts=(other,)))
    assert "another iteration" in wrong_with(replace(PREPARE, receipts=(replace(RECEIPT, iteration=3),)))
    assert "one of each" in wrong_with(replace(PREPARE, receipts=(RECEIPT, RECEIPT)))
    assert "for data peers" in wrong_with(replace(PREPARE, stage=Stage(1), shares=(msg.Share(A, ()),)))


def test_audits_that_were_passed_are_in_the_receipts_of_the_next_iteration_and_only_there() -> None:
    machine = leading().machine
    assert isinstance(machine, DataPeer)
    receipting, ledger = machine.finishing.receipting, (msg.Credit(0, (A, B)),)
    receipting.audit_passed(Stage(1), A)
    for _ in range(2):  # a report that is made again says the same
        lines = receipting.receipt(0, ledger).lines
        assert [(each.peer, each.microbatches, each.audits) for each in lines] == [(D, 1, 0), (A, 1, 1), (B, 1, 0)]
    assert all(each.audits == 0 for each in receipting.receipt(1, ledger).lines)
