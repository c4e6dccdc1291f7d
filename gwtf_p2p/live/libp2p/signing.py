"""What a peer signs to others of its run, and how they look at it: Ed25519, by a key that its signed record names.

The key is made from the identity's, so that it stays the same when the peer starts again; its signatures take 64 bytes, RSA's
256. The record that names it is signed with the identity itself, whose hash the peer id is. Every text is bound to
its run.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gwtf_p2p.live.libp2p.identity import Identity, key_bytes
from gwtf_p2p.protocol.ids import RunId


class Signing:
    """Of one peer in one run. `key` is what its record names."""

    def __init__(self, identity: Identity, run_id: RunId) -> None:
        secret = hashlib.sha256(b"gwtf signing key\n" + key_bytes(identity.key)).digest()
        self._secret, self._run_id = Ed25519PrivateKey.from_private_bytes(secret), run_id
        self.key = b64encode(self._secret.public_key().public_bytes_raw()).decode()

    def sign(self, text: str) -> str:
        """This peer's signature of a text, in this run."""
        return b64encode(self._secret.sign(_bound(self._run_id, text))).decode()

    def verify(self, key: str, text: str, signature: str) -> bool:
        """See `verified`."""
        return verified(self._run_id, key, text, signature)


def verified(run_id: RunId, key: str, text: str, signature: str) -> bool:
    """Whether a text was signed, for this run, with the key that a record names; whatever is no key or signature says no."""
    try:
        public = Ed25519PublicKey.from_public_bytes(b64decode(key, validate=True))
        public.verify(b64decode(signature, validate=True), _bound(run_id, text))
    except (InvalidSignature, ValueError):
        return False
    return True


def _bound(run_id: RunId, text: str) -> bytes:
    return f"{run_id}\n{text}".encode()
