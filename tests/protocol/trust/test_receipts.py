"""A receipt says what the ledger says, and the coordinator's word is no receipt: what differs is refused where it arrives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.live.rpc.api import pack
from gwtf_p2p.live.rpc.frames import MAX_CONTROL_BYTES
from gwtf_p2p.protocol.commit.attempt import prepares
from gwtf_p2p.protocol.ids import DATA_STAGE, NOBODY, PeerId, Stage
from gwtf_p2p.protocol.limits import MOST_MICROBATCHES
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.trust.fitness import unfit
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.receipts import MOST_BUSY_MS, Receipt, ReceiptLine, digest_of
from gwtf_p2p.protocol.wire.records import Timing
from tests.protocol.peers import A2, D2, A, B, D, leading, microbatch, receipt_of, record

FREE_RIDER = PeerId("free rider")


def line(stage: int, peer: PeerId, microbatches: int = 1) -> ReceiptLine:
    return ReceiptLine(Stage(stage), peer, microbatches)


RECEIPT = Receipt(D2, 0, 0, (line(0, D2), line(1, A), line(2, B)))
FINISHED = msg.Finished(0, (msg.Credit(0, (A, B)),), 1.0, receipt=RECEIPT)
SHARES = (msg.Share(D2, (microbatch(0, of=D2),)),)


def prepare(*receipts: Receipt, stage: Stage = DATA_STAGE, shares: tuple[msg.Share, ...] = SHARES) -> msg.Prepare:
    return msg.Prepare(0, 1, D, stage, shares, receipts=receipts, receipts_digest=digest_of(receipts))


PREPARE = prepare(RECEIPT)


def wrong_with(message: msg.Message, *, exact: bool = True) -> str:
    machine = leading(A, B, D2).machine
    machine.ctx.exact = exact
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
    twice = replace(RECEIPT, lines=(*RECEIPT.lines, line(2, B)))
    assert "one line" in wrong_with(replace(FINISHED, receipt=twice))


def test_an_attempts_receipts_are_those_of_its_shares() -> None:
    other = replace(RECEIPT, lines=(line(0, D2, 9), *RECEIPT.lines[1:]))
    assert "differ from the shares" in wrong_with(prepare(other))
    assert "another iteration" in wrong_with(prepare(replace(RECEIPT, iteration=3)))
    assert "one of each" in wrong_with(prepare(RECEIPT, RECEIPT))
    assert "for data peers" in wrong_with(prepare(RECEIPT, stage=Stage(1), shares=(msg.Share(A, ()),)))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ((*RECEIPT.lines[:2], line(2, FREE_RIDER, 0), line(2, B)), "a line for nothing"),
        ((*RECEIPT.lines, line(3, FREE_RIDER)), "a stage that is not there"),
        ((*RECEIPT.lines[:2], line(2, B, 10**6)), "not every stage"),
        ((*RECEIPT.lines[:2], line(2, FREE_RIDER), line(2, B)), "not every stage"),
        (RECEIPT.lines[:2], "not every stage"),
        ((*RECEIPT.lines[:2], ReceiptLine(Stage(2), B, 1, MOST_BUSY_MS + 1)), "ms for a microbatch"),
    ],
    ids=["nothing", "no stage", "more", "two of one", "missing", "time"],
)
def test_no_receipt_credits_anybody_with_more_than_the_data_peers_microbatches(
    lines: tuple[ReceiptLine, ...], why: str
) -> None:
    assert why in wrong_with(prepare(replace(RECEIPT, lines=lines)))


def test_in_fast_recovery_a_stage_may_have_done_less() -> None:
    less = (msg.Credit(0, (A, NOBODY)),)
    report = msg.Finished(0, less, 1.0, receipt=receipt_of(D2, less))
    assert not wrong_with(report, exact=False) and not wrong_with(prepare(receipt_of(D2, less)), exact=False)
    assert "not every stage" in wrong_with(report), "in exact recovery what is missing is done again"


def test_no_receipt_is_left_out_or_exchanged_by_a_coordinator() -> None:
    assert "missing" in wrong_with(prepare())
    assert "none for this ledger" in wrong_with(replace(FINISHED, receipt=None))
    later = replace(RECEIPT, lines=(*RECEIPT.lines[:2], ReceiptLine(Stage(2), B, 1, 5)))
    assert "digest" in wrong_with(replace(PREPARE, receipts=(later,)))
    assert prepare(later).terms != PREPARE.terms, "who is told of others signs for another attempt"


def test_all_stages_sign_for_the_receipts_of_an_attempt() -> None:
    ledger = (msg.Credit(0, (A, B)),)

    def terms(receipt: Receipt | None) -> set[str]:
        finished = {D2: msg.Finished(0, ledger, 1.0, receipt=receipt)}
        made = prepares((0, 0), msg.Ballot(1, D), None, {D: DATA_STAGE, D2: DATA_STAGE}, finished, 2)
        return {each.terms for each in made.values()}

    assert len(terms(RECEIPT)) == 1 and terms(RECEIPT) != terms(None)


def test_nobody_is_told_of_an_attempts_receipts_but_by_its_coordinator() -> None:
    standing = msg.Standing(DATA_STAGE, 0, prepare=PREPARE)
    assert "told to nobody else" in wrong_with(standing)
    assert not wrong_with(replace(standing, prepare=PREPARE.without_receipts))
    assert PREPARE.without_receipts.terms == PREPARE.terms


def test_the_attempt_of_a_large_swarm_is_no_larger_than_a_message_may_be() -> None:
    """16000 lines of the longest ids: 80 data peers that each had microbatches done by 200 stage peers."""
    names = [PeerId(f"Qm{n:044}") for n in range(280)]
    workers, data_peers = names[:200], names[200:]
    lines = tuple(ReceiptLine(Stage(1 + n % 8), peer, 40, 10**6) for n, peer in enumerate(workers))
    signed = [Receipt(of, 10**6, 0, lines, "k" * 372, "s" * 344) for of in data_peers]
    shares = tuple(msg.Share(of, tuple(microbatch(n, of=of) for n in range(8))) for of in data_peers)
    large = prepare(*signed, shares=shares)
    assert len(pack(msg.to_header(large))) <= MAX_CONTROL_BYTES
    assert len(pack(msg.to_header(msg.Standing(DATA_STAGE, 0, prepare=large.without_receipts)))) <= MAX_CONTROL_BYTES / 8


def test_audits_that_were_passed_are_in_the_receipts_of_the_next_iteration_and_only_there() -> None:
    machine = leading().machine
    assert isinstance(machine, DataPeer)
    receipting, ledger = machine.finishing.receipting, (msg.Credit(0, (A, B)),)
    receipting.audit_passed(Stage(1), A)
    receipting.audit_passed(Stage(1), A2)
    for _ in range(2):  # a report that is made again says the same
        lines = receipting.receipt(0, ledger).lines
        assert [(each.peer, each.microbatches, each.audits) for each in lines] == [(D, 1, 0), (A, 1, 1), (B, 1, 0)]
    assert all(each.audits == 0 for each in receipting.receipt(1, ledger).lines)
    later = receipting.receipt(2, (msg.Credit(0, (A2, B)),)).lines
    assert [(each.peer, each.audits) for each in later] == [(D, 0), (A2, 1), (B, 0)], "whoever did nothing has no line"


def test_a_peer_that_publishes_the_longest_times_keeps_no_honest_report_from_being_read() -> None:
    forever = record(A, forward=Timing(1e9, 1, 0.0), backward=Timing(1e9, 1, 0.0))
    machine = leading(forever, B, D2).machine
    assert isinstance(machine, DataPeer)
    ledger = tuple(msg.Credit(n, (A, B)) for n in range(MOST_MICROBATCHES))
    receipt = machine.finishing.receipting.receipt(0, ledger)
    assert receipt.lines[1] == ReceiptLine(Stage(1), A, len(ledger), MOST_BUSY_MS * len(ledger))
    report = msg.Finished(0, (), 1.0, receipt=receipt)
    assert msg.from_header(msg.to_header(report)) == report
