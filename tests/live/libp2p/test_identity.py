"""Identity files: who reads them, who may not, and that p2pd agrees about the peer id."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest
from hivemind.p2p import P2P, PeerID
from hivemind.proto import crypto_pb2

from gwtf_p2p.live.libp2p.daemon import running_daemon
from gwtf_p2p.live.libp2p.identity import (
    IdentityInUse,
    IdentityLock,
    backup_identity,
    create_identity,
    default_identity_path,
    is_in_use,
    is_private,
    key_bytes,
    load_identity,
    load_or_create_identity,
)
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.protocol.errors import InputError

pytestmark = pytest.mark.live


def test_a_new_identity_is_private_and_is_loaded_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "identity.key"
    identity = load_or_create_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and is_private(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = load_or_create_identity(path)
    assert again.peer_id == identity.peer_id == str(PeerID.from_identity(path.read_bytes()))
    assert identity.key.private_numbers() == again.key.private_numbers()
    assert path.read_bytes() == crypto_pb2.PrivateKey(key_type=crypto_pb2.RSA, data=key_bytes(again.key)).SerializeToString()
    with pytest.raises(InputError, match="not overwritten"):
        create_identity(path)


def test_identities_of_hivemind_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "hivemind.key"
    P2P.generate_identity(str(path))
    assert load_identity(path).peer_id == str(PeerID.from_identity(path.read_bytes()))


async def test_p2pd_runs_under_the_identity(tmp_path: Path) -> None:
    identity = create_identity(tmp_path / "a.key")
    async with running_daemon(P2POptions(auto_nat=False, nat_port_map=False), identity) as daemon:
        assert daemon.peer_id == identity.peer_id
        assert all(maddr.endswith(f"/p2p/{identity.peer_id}") for maddr in await daemon.maddrs())


def test_files_that_are_no_identity_get_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.key"
    good = create_identity(tmp_path / "good.key").path.read_bytes()
    other_kind = crypto_pb2.PrivateKey(key_type=crypto_pb2.KeyType.Ed25519, data=crypto_pb2.PrivateKey.FromString(good).data)
    for content in (b"", b"-----BEGIN RSA PRIVATE KEY-----", good[:-20], good[1:], other_kind.SerializeToString()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.key.*RSA identity file") as error:
            load_identity(path)
        assert "\n" not in str(error.value)
    for missing in (tmp_path / "none.key", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            load_identity(missing)
    with pytest.raises(InputError, match="cannot be written"):
        create_identity(path / "below_a_file" / "x.key")


def test_a_backup_is_a_private_copy_and_overwrites_nothing(tmp_path: Path) -> None:
    identity = create_identity(tmp_path / "a.key")
    (tmp_path / "safe").mkdir()
    copy = backup_identity(identity, tmp_path / "safe")
    assert copy.name == f"{identity.peer_id}.key" and is_private(copy)
    assert load_identity(copy).peer_id == identity.peer_id
    with pytest.raises(InputError, match="not overwritten"):
        backup_identity(identity, tmp_path / "safe")
    with pytest.raises(InputError, match="not overwritten"):
        backup_identity(identity, identity.path)


def test_two_processes_cannot_run_with_one_identity(tmp_path: Path) -> None:
    """The kernel's lock is of the opened file, so two openings in one process stand for two processes."""
    identity = create_identity(tmp_path / "a.key")
    with IdentityLock(identity):
        with pytest.raises(IdentityInUse, match="another process of this machine") as error:
            IdentityLock(load_identity(identity.path))
        assert error.value.exit_code == 4
    with IdentityLock(identity):
        pass


def test_a_look_whether_an_identity_is_in_use_stops_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gwtf pause` holds the lock for a moment; it has let go when the start tries again."""
    identity = create_identity(tmp_path / "a.key")
    with identity.path.open("rb") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_EX)
        monkeypatch.setattr("time.sleep", lambda seconds: fcntl.flock(looked_at, fcntl.LOCK_UN))
        with IdentityLock(identity):
            assert is_in_use(identity.path)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"GWTF_HOME": "/a", "XDG_STATE_HOME": "/b"}, "/a/identity.key"),
        ({"XDG_STATE_HOME": "/b"}, "/b/gwtf/identity.key"),
        ({}, "~/.gwtf/identity.key"),
    ],
)
def test_where_the_identity_lives(environment: dict[str, str], expected: str) -> None:
    assert default_identity_path(environment) == Path(expected).expanduser()


def test_a_full_disk_leaves_no_half_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the file is refused for ever, also when the disk has room again."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space left"):
        disk.setattr(os, "fsync", full)
        load_or_create_identity(tmp_path / "identity.key")
    assert load_or_create_identity(tmp_path / "identity.key").peer_id
