"""Who a peer is: an RSA key in a file, in the form that p2pd reads, and its peer id (the hash of the public key).

The same key signs the peer's records, so a record's owner can be checked against the peer id inside it. The file is created
with mode 0600 in directories of mode 0700, and is never overwritten. Two processes of one machine cannot use one identity at
the same time (a lock, which ends with the process): libp2p would mix up their connections in ways that are hard to recognise.

This module imports no hivemind, whose first import brings in torch and takes seconds: `gwtf id` answers at once. The two
protobufs of a key (libp2p's specs/peer-ids: a kind in field 1, the bytes in field 2) are small enough to be written here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import base58
import multihash
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId

_EXPECTED = "expected an RSA identity file as p2pd and `gwtf id` write it"
_KEY_BITS, _EXPONENT = 2048, 65537
_MOST_KEY_BITS = 4096
"""A check of a signature takes 0.1 ms with 2048 bits, and 30 times as long with an exponent that its owner may choose."""

_RSA = 0
"""KeyType of libp2p's key protobufs."""

_KIND_FIELD, _DATA_FIELD = 0x08, 0x12
"""Tags of the fields 1 (a varint) and 2 (bytes behind their length)."""


AGAIN_S = 0.1
"""Whoever only looks whether an identity is in use (`is_in_use`) holds its lock for a moment."""


class IdentityInUse(Exception):
    """Another process of this machine, or another peer of the swarm, runs with this identity. Exit code 4."""

    exit_code = 4

    def __init__(self, path: Path, by: str) -> None:
        super().__init__(f"identity {path} is in use by {by}: stop it, or give this peer its own --identity_path")


@dataclass(frozen=True, slots=True)
class Identity:
    """`key` signs records; p2pd reads the same key from `path`."""

    path: Path
    peer_id: PeerId
    key: rsa.RSAPrivateKey


def state_dir(environment: Mapping[str, str]) -> Path:
    """`$GWTF_HOME`, else `$XDG_STATE_HOME/gwtf`, else `~/.gwtf`."""
    if environment.get("GWTF_HOME"):
        return Path(environment["GWTF_HOME"]).expanduser()
    if environment.get("XDG_STATE_HOME"):
        return Path(environment["XDG_STATE_HOME"]).expanduser() / "gwtf"
    return Path("~/.gwtf").expanduser()


def default_identity_path(environment: Mapping[str, str]) -> Path:
    return state_dir(environment) / "identity.key"


def create_identity(path: Path) -> Identity:
    """A new key in a new file. Raises InputError when the file exists or cannot be written."""
    key = rsa.generate_private_key(_EXPONENT, _KEY_BITS)
    _write_new(path, _pack_key(key_bytes(key)))
    return Identity(path, _peer_id_of(key), key)


def load_identity(path: Path) -> Identity:
    """Raises InputError when there is no such file or it holds no RSA key."""
    try:
        kind, der = _unpack_key(path.read_bytes())
        key = serialization.load_der_private_key(der, password=None)
    except OSError as error:
        raise InputError(str(path), "", f"cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(str(path), "", _EXPECTED) from error
    if kind != _RSA or not isinstance(key, rsa.RSAPrivateKey):
        raise InputError(str(path), "", f"{_EXPECTED}, not another kind of key")
    try:
        _check_public(key.public_key())
    except ValueError as error:
        raise InputError(str(path), "", f"{_EXPECTED}: {error}") from error
    return Identity(path, _peer_id_of(key), key)


def load_or_create_identity(path: Path) -> Identity:
    """Raises InputError."""
    return load_identity(path) if path.exists() else create_identity(path)


def backup_identity(identity: Identity, to: Path) -> Path:
    """Copy the identity file; a directory gets a file named by the peer id. Raises InputError when the copy would overwrite."""
    target = to / f"{identity.peer_id}.key" if to.is_dir() else to
    _write_new(target, identity.path.read_bytes())
    return target


class IdentityLock:
    """Holds the identity for this process, until `release` or the end of the process."""

    def __init__(self, identity: Identity) -> None:
        """Raises IdentityInUse."""
        self._file: IO[bytes] = identity.path.open("rb")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(AGAIN_S)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise IdentityInUse(identity.path, "another process of this machine") from error
        except OSError:
            pass  # a file system without locks: p2pd's own check against the swarm remains

    def release(self) -> None:
        self._file.close()

    def __enter__(self) -> IdentityLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_in_use(path: Path) -> bool:
    """Whether a process of this machine holds the lock of this file; a file that is not there is free."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no such file yet, or a file system without locks: whoever loads it is told
    return False


def is_private(path: Path) -> bool:
    """Whether only the owner can read the file."""
    return not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def key_bytes(key: rsa.RSAPrivateKey) -> bytes:
    """The key in DER, as p2pd and hivemind read it (PKCS 1)."""
    no_password = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, no_password)


def peer_id_of_key(ssh: bytes) -> PeerId:
    """The peer whose public key this is, in OpenSSH's form. Raises ValueError as `load_public_key` does."""
    return peer_id_of_public(load_public_key(ssh))


def load_public_key(ssh: bytes) -> rsa.RSAPublicKey:
    """Of a peer, in OpenSSH's form. Raises ValueError when the bytes are no key that an identity may have."""
    try:
        key = serialization.load_ssh_public_key(ssh)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError(f"expected an RSA public key, got {type(key).__name__}")
    _check_public(key)
    return key


def peer_id_of_public(key: rsa.RSAPublicKey) -> PeerId:
    """libp2p's id of an RSA public key (specs/peer-ids): base58 of the sha256 multihash of its protobuf."""
    digest = multihash.encode(hashlib.sha256(pack_public(key)).digest(), multihash.coerce_code("sha2-256"))
    return PeerId(base58.b58encode(digest).decode())


def pack_public(key: rsa.RSAPublicKey) -> bytes:
    """The protobuf of a public key, as libp2p shows it to others."""
    return _pack_key(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def unpack_public(packed: bytes) -> rsa.RSAPublicKey:
    """Raises ValueError when the bytes are not the protobuf of a key that an identity may have."""
    kind, der = _unpack_key(packed)
    try:
        key = serialization.load_der_public_key(der)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if kind != _RSA or not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("expected an RSA public key")
    _check_public(key)
    return key


def _check_public(key: rsa.RSAPublicKey) -> None:
    """Raises ValueError for a key that others would not take: whoever makes one must not choose what a check of it costs."""
    if not _KEY_BITS <= key.key_size <= _MOST_KEY_BITS or key.public_numbers().e != _EXPONENT:
        raise ValueError(f"expected {_KEY_BITS} to {_MOST_KEY_BITS} bits and the exponent {_EXPONENT}")


def _peer_id_of(key: rsa.RSAPrivateKey) -> PeerId:
    return peer_id_of_public(key.public_key())


def _pack_key(der: bytes) -> bytes:
    """The protobuf of an RSA key."""
    return bytes((_KIND_FIELD, _RSA, _DATA_FIELD)) + _varint(len(der)) + der


def _unpack_key(packed: bytes) -> tuple[int, bytes]:
    """Kind and bytes of a key's protobuf. Raises ValueError when it is none: both fields, once, and nothing else."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(packed):
        tag, (number, at) = packed[at], _read_varint(packed, at + 1)
        if tag == _KIND_FIELD:
            found[tag] = number
        elif tag == _DATA_FIELD and at + number <= len(packed):
            found[tag], at = packed[at : at + number], at + number
        else:
            raise ValueError("not the protobuf of a key")
    kind, der = found.get(_KIND_FIELD), found.get(_DATA_FIELD)
    if not isinstance(kind, int) or not isinstance(der, bytes):
        raise ValueError("a key without its kind or its bytes")
    return kind, der


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low]) if not rest else bytes([low | 0x80]) + _varint(rest)


def _read_varint(packed: bytes, at: int) -> tuple[int, int]:
    """A number of at most 32 bits, and where it ends. Raises ValueError."""
    number = 0
    for place in range(5):
        if at + place >= len(packed):
            break
        byte = packed[at + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError("not a number")


def _write_new(path: Path, data: bytes) -> None:
    """Private from the first moment: opened with its mode, not changed to it later."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InputError(str(path), "", "exists already and is not overwritten") from error
    except OSError as error:
        raise InputError(str(path), "", f"cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)  # half a key would be refused for ever, also when the disk has room again
        raise
