"""Receipts: signed on the way out, believed on the way in only if the data peer that they name has signed them for this run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.libp2p.receipt_signing import ReceiptSigning, TooManyReceipts, check_receipt
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
from gwtf_p2p.protocol.wire.messages import Finished, Prepare, Share, Standing, to_header
from gwtf_p2p.protocol.wire.receipts import Receipt, ReceiptLine

RUN = RunId("run")


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return create_identity(tmp_path_factory.mktemp("identity") / "identity.key")


def unsigned(of: Identity) -> Receipt:
    lines = (ReceiptLine(DATA_STAGE, of.peer_id, 2, 10), ReceiptLine(Stage(1), PeerId("worker"), 2, 30))
    return Receipt(of.peer_id, 7, 1, lines)


def signed(by: Identity, receipt: Receipt) -> Receipt:
    message = ReceiptSigning(by, RUN).signed(Finished(receipt.iteration, (), 0.0, receipt=receipt))
    assert isinstance(message, Finished) and message.receipt is not None
    return message.receipt


def test_what_a_data_peer_has_signed_is_believed(identity: Identity) -> None:
    receipt = signed(identity, unsigned(identity))
    check_receipt(receipt, RUN)
    prepare = Prepare(7, 1, identity.peer_id, DATA_STAGE, (Share(identity.peer_id, ()),), epoch=1, receipts=(receipt,))
    for message in (Finished(7, (), 0.0, receipt=receipt), prepare, Standing(DATA_STAGE, 7, prepare=prepare)):
        assert ReceiptSigning(identity, RUN).read(identity.peer_id, to_header(message)) == message


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: replace(receipt, lines=(replace(receipt.lines[0], microbatches=3), *receipt.lines[1:])),
        lambda receipt: replace(receipt, lines=(receipt.lines[0], replace(receipt.lines[1], peer=PeerId("free rider")))),
        lambda receipt: replace(receipt, iteration=8),
        lambda receipt: replace(receipt, epoch=2),
        lambda receipt: replace(receipt, data_peer=PeerId("another")),
        lambda receipt: replace(receipt, signature=""),
        lambda receipt: replace(receipt, signature="%%%"),
        lambda receipt: replace(receipt, key=""),
        lambda receipt: replace(receipt, key="ssh-rsa AAAA"),
    ],
)
def test_what_it_has_not_signed_is_refused(identity: Identity, change: Callable[[Receipt], Receipt]) -> None:
    receipt = change(signed(identity, unsigned(identity)))
    with pytest.raises(RemoteProtocolError, match="receipt of"):
        check_receipt(receipt, RUN)
    with pytest.raises(RemoteProtocolError, match="receipt of"):
        ReceiptSigning(identity, RUN).read(identity.peer_id, to_header(Finished(7, (), 0.0, receipt=receipt)))


def test_a_receipt_is_of_one_run(identity: Identity) -> None:
    with pytest.raises(RemoteProtocolError, match="receipt of"):
        check_receipt(signed(identity, unsigned(identity)), RunId("another"))


def test_nobody_signs_for_another_data_peer(identity: Identity, tmp_path: Path) -> None:
    other = create_identity(tmp_path / "other.key")
    with pytest.raises(RemoteProtocolError, match=f"signed by {other.peer_id}"):
        check_receipt(signed(other, unsigned(identity)), RUN)


def prepare_of(receipts: tuple[Receipt, ...], coordinator: PeerId) -> Prepare:
    return Prepare(7, 1, coordinator, DATA_STAGE, (Share(coordinator, ()),), epoch=1, receipts=receipts)


def test_what_strangers_bring_is_neither_checked_nor_believed(identity: Identity) -> None:
    """A check takes the event loop's time, and whoever has no place in the run is refused anyway."""
    me, wrong = ReceiptSigning(identity, RUN), replace(unsigned(identity), signature="wrong")
    me.knows = lambda peer: peer == identity.peer_id
    prepare = prepare_of((wrong,), identity.peer_id)
    for message in (Finished(7, (), 0.0, receipt=wrong), prepare, Standing(DATA_STAGE, 7, prepare=prepare, joining=True)):
        read = me.read(PeerId("stranger"), to_header(message))
        assert wrong.signature not in str(to_header(read)) and type(read) is type(message)
        with pytest.raises(RemoteProtocolError, match="not signed"):
            me.read(identity.peer_id, to_header(message))


def test_there_are_no_more_receipts_than_data_peers(identity: Identity) -> None:
    me, receipt = ReceiptSigning(identity, RUN), signed(identity, unsigned(identity))
    me.data_peers = lambda: 2
    me.read(identity.peer_id, to_header(prepare_of((receipt,) * 2, identity.peer_id)))
    with pytest.raises(TooManyReceipts):
        me.read(identity.peer_id, to_header(prepare_of((receipt,) * 3, identity.peer_id)))


def test_a_receipt_is_checked_once_whoever_brings_it(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Receipt] = []

    def counted(receipt: Receipt, run_id: RunId) -> None:
        checked.append(receipt)
        check_receipt(receipt, run_id)

    monkeypatch.setattr("gwtf_p2p.live.libp2p.receipt_signing.check_receipt", counted)
    me, receipt = ReceiptSigning(identity, RUN), signed(identity, unsigned(identity))
    prepare = prepare_of((receipt,), identity.peer_id)
    for sender in ("a", "b", "c"):
        me.read(PeerId(sender), to_header(Standing(DATA_STAGE, 7, prepare=prepare)))
    assert checked == [receipt]
    with pytest.raises(RemoteProtocolError, match="not signed"):
        me.read(PeerId("a"), to_header(Finished(7, (), 0.0, receipt=replace(receipt, iteration=8))))
