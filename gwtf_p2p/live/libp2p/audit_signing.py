"""Texts that a peer signs with its key, and whose they are: what others pass on about a peer's work counts by this alone.

The signature is RSA's, PKCS 1 v1.5 with SHA-256 and not PSS (`signatures`): a text has one signature by a key, and it is taken
in one spelling, so whoever signs a draw cannot choose what it draws. It travels with the public key, whose hash is the peer's
id. The run's name stands before every text: what was signed in one run counts in no other.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.live.libp2p.signatures import read_key
from gwtf_p2p.protocol.core.context import SignedBy
from gwtf_p2p.protocol.ids import PeerId, RunId

Sign = Callable[[str], str]


def signer(identity: Identity, run_id: RunId) -> Sign:
    """Signs for this peer in this run; takes about a millisecond."""

    def sign(text: str) -> str:
        return _spelled(identity.key.public_key(), identity.key.sign(_what(run_id, text), padding.PKCS1v15(), hashes.SHA256()))

    return sign


def verifier(run_id: RunId) -> SignedBy:
    """Tells whether a text of this run is signed by a peer (`protocol/core/context`)."""

    def verify(peer: PeerId, text: str, signature: str) -> bool:
        prefix, _, encoded = signature.partition(".")
        try:
            owner, key = read_key(b"ssh-rsa " + prefix.encode())
            raw = base64.b64decode(encoded, validate=True)
            if owner != peer or signature != _spelled(key, raw):
                return False
            key.verify(raw, _what(run_id, text), padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, ValueError):  # of base64 as well
            return False
        return True

    return verify


def _spelled(key: rsa.RSAPublicKey, signature: bytes) -> str:
    """Key and signature, in the one way in which they are taken."""
    ssh = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return f"{ssh.split()[1]}.{base64.b64encode(signature).decode()}"


def _what(run_id: RunId, text: str) -> bytes:
    return f"gwtf audit\0{run_id}\0{text}".encode()
