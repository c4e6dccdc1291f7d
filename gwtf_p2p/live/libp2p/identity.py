"""Who a peer is: an RSA key in a file, in the form that p2pd reads, and its peer id (the hash of the public key).

The same key signs the peer's records, so a record's owner can be checked against the peer id inside it. The file is created
with mode 0600 in directories of mode 0700, and is never overwritten. Two processes of one machine cannot use one identity at
the same time (a lock, which ends with the process): libp2p would mix up their connections in ways that are hard to recognise.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import base58
import multihash
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.protobuf.message import DecodeError
from hivemind.proto import crypto_pb2
from hivemind.utils.crypto import RSAPrivateKey, RSAPublicKey

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId

_EXPECTED = "expected an RSA identity file as p2pd and `gwtf id` write it"


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
    key: RSAPrivateKey


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
    key = RSAPrivateKey()
    packed = crypto_pb2.PrivateKey(key_type=crypto_pb2.KeyType.RSA, data=key.to_bytes()).SerializeToString()
    _write_new(path, packed)
    return Identity(path, peer_id_of_key(key.get_public_key()), key)


def load_identity(path: Path) -> Identity:
    """Raises InputError when there is no such file or it holds no RSA key."""
    try:
        packed = crypto_pb2.PrivateKey.FromString(path.read_bytes())
        private_key = serialization.load_der_private_key(packed.data, password=None)
    except OSError as error:
        raise InputError(str(path), "", f"cannot be read: {error.strerror}") from error
    except (DecodeError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(str(path), "", _EXPECTED) from error
    if packed.key_type != crypto_pb2.KeyType.RSA or not isinstance(private_key, rsa.RSAPrivateKey):
        raise InputError(str(path), "", f"{_EXPECTED}, not another kind of key")
    key = RSAPrivateKey.__new__(RSAPrivateKey)  # hivemind's class has no constructor from bytes, but it unpickles from them
    key.__setstate__({"_private_key": packed.data})
    return Identity(path, peer_id_of_key(key.get_public_key()), key)


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
    """Whether a process of this machine holds the lock of this identity file; a file that is not there is free."""
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


def peer_id_of_key(key: RSAPublicKey) -> PeerId:
    """libp2p's id of a public key (specs/peer-ids): base58 of the sha256 multihash of its protobuf."""
    ssh = serialization.load_ssh_public_key(key.to_bytes())
    der = ssh.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    packed = crypto_pb2.PublicKey(key_type=crypto_pb2.KeyType.RSA, data=der).SerializeToString()
    digest = multihash.encode(hashlib.sha256(packed).digest(), multihash.coerce_code("sha2-256"))
    return PeerId(base58.b58encode(digest).decode())


def _write_new(path: Path, data: bytes) -> None:
    """Private from the first moment: opened with its mode, not changed to it later."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InputError(str(path), "", "exists already and is not overwritten") from error
    except OSError as error:
        raise InputError(str(path), "", f"cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
