"""Receipts signed by this peer's key, and others' signatures checked where they arrive.

The key is the one that libp2p runs with, so a receipt's signer is the data peer that it names if the hash of the public key in
it is that peer's id. What strangers bring is not checked but left out: their messages are refused, and a check costs time on
the event loop. What is known to be signed is not checked again: all data peers bring the same receipts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.live.libp2p.signatures import NotSigned, public_key, signature, signer_of
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.messages import ControlMessage, Finished, Message, Prepare, Standing, from_header
from gwtf_p2p.protocol.wire.receipts import Receipt
from gwtf_p2p.protocol.wire.records import MOST_DATA_PEERS

MOST_REMEMBERED = 2 * MOST_DATA_PEERS
"""Receipts that are known to be signed: those of two iterations."""


class TooManyReceipts(RemoteProtocolError):
    """More than there are data peers, as far as this peer knows; another one may know of more."""


class ReceiptSigning:
    """Of one peer in one run. `knows`: whether a peer has a place in the run; `data_peers`: how many there are. Both are set by
    who has the view; until then everybody is known."""

    def __init__(self, identity: Identity, run_id: RunId) -> None:
        self._identity, self._run_id = identity, run_id
        self._public = public_key(identity).decode()
        self._signed: dict[bytes, None] = {}
        self.knows: Callable[[PeerId], bool] = lambda peer: True
        self.data_peers: Callable[[], int] = lambda: MOST_DATA_PEERS

    def signed(self, message: ControlMessage) -> ControlMessage:
        """The message as it may leave: a receipt in it is signed."""
        if not isinstance(message, Finished) or message.receipt is None:
            return message
        made = signature(self._identity, message.receipt.signed_bytes(self._run_id))
        signed = replace(message.receipt, key=self._public, signature=base64.b64encode(made).decode())
        return replace(message, receipt=signed)

    def read(self, sender: PeerId, header: Mapping[str, Any]) -> Message:
        """The message in a header; a stranger's without its receipts.

        Raises RemoteProtocolError when it is none, or a receipt in it is not its data peer's; TooManyReceipts.
        """
        message = from_header(header)
        receipts = _receipts_in(message)
        if receipts and not self.knows(sender):
            return _without_receipts(message)
        if len(receipts) > max(1, most := self.data_peers()):
            raise TooManyReceipts(f"{len(receipts)} receipts, of {most} data peers")
        for receipt in receipts:
            self._check(receipt)
        return message

    def _check(self, receipt: Receipt) -> None:
        """Raises RemoteProtocolError."""
        try:
            said = f"{receipt.key}\n{receipt.signature}\n".encode() + receipt.signed_bytes(self._run_id)
        except UnicodeEncodeError as error:
            raise RemoteProtocolError("a receipt with what is no text") from error
        digest = hashlib.sha256(said).digest()
        if digest in self._signed:
            return
        check_receipt(receipt, self._run_id)
        self._signed[digest] = None
        if len(self._signed) > MOST_REMEMBERED:
            del self._signed[next(iter(self._signed))]


def check_receipt(receipt: Receipt, run_id: RunId) -> None:
    """Raises RemoteProtocolError when the data peer that a receipt names has not signed it, for this run."""
    try:
        made = base64.b64decode(receipt.signature, validate=True)
        signer = signer_of(receipt.key.encode(), made, receipt.signed_bytes(run_id))
    except (NotSigned, ValueError) as error:
        raise RemoteProtocolError(f"receipt of {receipt.data_peer}: it is not signed by that peer") from error
    if signer != receipt.data_peer:
        raise RemoteProtocolError(f"receipt of {receipt.data_peer}: signed by {signer}")


def _receipts_in(message: Message) -> tuple[Receipt, ...]:
    match message:
        case Finished(receipt=receipt) if receipt is not None:
            return (receipt,)
        case Prepare(receipts=receipts):
            return receipts
        case Standing(prepare=prepare) if prepare is not None:
            return prepare.receipts
        case _:
            return ()


def _without_receipts(message: Message) -> Message:
    """As far as it says nothing of them: a newcomer takes part in no attempt, and whatever else has receipts is refused."""
    match message:
        case Finished():
            return replace(message, receipt=None)
        case Prepare():
            return replace(message, receipts=())
        case Standing():
            return replace(message, prepare=None)
        case _:
            return message
