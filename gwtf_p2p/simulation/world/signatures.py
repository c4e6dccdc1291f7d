"""Signatures of simulated peers: no secret, but they fit one key and one text. Who forges them has to mean to."""

from __future__ import annotations

import hashlib

from gwtf_p2p.protocol.ids import PeerId


def key_of(peer: PeerId) -> str:
    """What its record names."""
    return f"key of {peer}"


def sign(peer: PeerId, text: str) -> str:
    """This peer's signature."""
    return _signature(key_of(peer), text)


def verify(key: str, text: str, signature: str) -> bool:
    """As `Context.verify`."""
    return _signature(key, text) == signature


def _signature(key: str, text: str) -> str:
    return hashlib.blake2b(f"{key}\n{text}".encode(), digest_size=8).hexdigest()
