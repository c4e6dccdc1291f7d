"""Who has signed is who owns the key; nobody chooses what it costs to find out."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gwtf_p2p.live.libp2p.identity import create_identity, peer_id_of_key
from gwtf_p2p.live.libp2p.signatures import NotSigned, public_key, signature, signer_of


def ssh(key: rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def odd_keys() -> list[bytes]:
    """Keys whose owner has chosen an exponent, or a modulus, that makes every check of a signature slow, or forging easy."""
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n
    large = ssh(rsa.RSAPublicNumbers((1 << 2040) + 1, modulus).public_key())
    return [large, *(ssh(rsa.generate_private_key(*of).public_key()) for of in ((3, 2048), (65537, 1024))), long_key()]


def long_key() -> bytes:
    return ssh(rsa.RSAPublicNumbers(65537, (1 << 8191) + 1).public_key())


def test_a_signature_is_of_one_key_and_one_text(tmp_path: Path) -> None:
    mine, other = create_identity(tmp_path / "a.key"), create_identity(tmp_path / "b.key")
    made = signature(mine, b"text")
    assert signer_of(public_key(mine), made, b"text") == mine.peer_id == peer_id_of_key(public_key(mine))
    for key, by, text in ((public_key(other), made, b"text"), (public_key(mine), b"", b"text"), (public_key(mine), made, b"")):
        with pytest.raises(NotSigned):
            signer_of(key, by, text)


def test_keys_that_cost_more_than_ours_are_no_keys() -> None:
    for key in (*odd_keys(), b"", b"ssh-rsa AAAA", b"\xff"):
        with pytest.raises(ValueError):
            peer_id_of_key(key)
        with pytest.raises(NotSigned):
            signer_of(key, b"signature", b"text")
