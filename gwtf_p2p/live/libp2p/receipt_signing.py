"""Receipts signed by this peer's key, and others' signatures checked where they arrive.

The key is the one that libp2p runs with, so a receipt's signer is the data peer that it names if the hash of the public key in
it is that peer's id. RSA with PSS and SHA-256; a signature costs a millisecond, a check a tenth of it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from gwtf_p2p.live.libp2p.identity import Identity, peer_id_of_key
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.messages import ControlMessage, Finished, Message, Prepare, Standing, from_header
from gwtf_p2p.protocol.wire.receipts import Receipt

_PADDING = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
_KEYS_KEPT = 4096


class ReceiptSigning:
    """Of one peer in one run."""

    def __init__(self, identity: Identity, run_id: RunId) -> None:
        self._key, self._run_id = identity.key, run_id
        public = identity.key.public_key()
        self._public = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()

    def signed(self, message: ControlMessage) -> ControlMessage:
        """The message as it may leave: a receipt in it is signed."""
        if not isinstance(message, Finished) or message.receipt is None:
            return message
        signature = self._key.sign(message.receipt.signed_bytes(self._run_id), _PADDING, hashes.SHA256())
        signed = replace(message.receipt, key=self._public, signature=base64.b64encode(signature).decode())
        return replace(message, receipt=signed)

    def read(self, header: Mapping[str, Any]) -> Message:
        """The message in a header. Raises RemoteProtocolError when it is none, or a receipt in it is not its data peer's."""
        message = from_header(header)
        for receipt in _receipts_in(message):
            check_receipt(receipt, self._run_id)
        return message


def check_receipt(receipt: Receipt, run_id: RunId) -> None:
    """Raises RemoteProtocolError when the data peer that a receipt names has not signed it, for this run."""
    try:
        signer, key = _read_key(receipt.key)
        if signer != receipt.data_peer:
            raise RemoteProtocolError(f"receipt of {receipt.data_peer}: signed by {signer}")
        signature = base64.b64decode(receipt.signature, validate=True)
        key.verify(signature, receipt.signed_bytes(run_id), _PADDING, hashes.SHA256())
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise RemoteProtocolError(f"receipt of {receipt.data_peer}: it is not signed by that peer") from error


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


@lru_cache(maxsize=_KEYS_KEPT)
def _read_key(ssh: str) -> tuple[PeerId, rsa.RSAPublicKey]:
    """Raises ValueError, UnsupportedAlgorithm."""
    peer = peer_id_of_key(ssh.encode())
    key = serialization.load_ssh_public_key(ssh.encode())
    assert isinstance(key, rsa.RSAPublicKey), "peer_id_of_key takes no other"
    return peer, key
