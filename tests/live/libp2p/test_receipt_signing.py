"""Receipts: signed on the way out, believed on the way in only if the data peer that they name has signed them for this run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.libp2p.receipt_signing import ReceiptSigning, check_receipt
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
        assert ReceiptSigning(identity, RUN).read(to_header(message)) == message


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
        ReceiptSigning(identity, RUN).read(to_header(Finished(7, (), 0.0, receipt=receipt)))


def test_a_receipt_is_of_one_run(identity: Identity) -> None:
    with pytest.raises(RemoteProtocolError, match="receipt of"):
        check_receipt(signed(identity, unsigned(identity)), RunId("another"))


def test_nobody_signs_for_another_data_peer(identity: Identity, tmp_path: Path) -> None:
    other = create_identity(tmp_path / "other.key")
    with pytest.raises(RemoteProtocolError, match=f"signed by {other.peer_id}"):
        check_receipt(signed(other, unsigned(identity)), RUN)
