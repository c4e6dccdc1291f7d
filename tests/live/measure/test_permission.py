"""Pauses of a peer: by hand, by quotas that outlive a restart, and by what this machine says of its use."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.live.discovery.kept_runs import KeptRuns
from gwtf_p2p.live.discovery.signing import own
from gwtf_p2p.live.libp2p.identity import IdentityLock, create_identity
from gwtf_p2p.live.libp2p.running_peers import running, running_peers
from gwtf_p2p.live.measure import permission as module
from gwtf_p2p.live.measure.idle import MachineUse
from gwtf_p2p.live.measure.permission import Permission
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.membership.permission import Moment, Wishes
from gwtf_p2p.protocol.wire.records import RunRecord
from tests.protocol.wire.golden import sample

DAY = Moment(600, "2026-01-30", "2026-01")


def permission(file: Path, line: Line, wishes: Wishes, moment: Moment = DAY) -> Permission:
    found = Permission(wishes, line, file)
    found.moment = lambda: moment
    return found


async def test_a_quota_is_not_renewed_by_a_restart_but_by_the_next_day(tmp_path: Path) -> None:
    file, line, wishes = tmp_path / "identity.usage.json", Line(), Wishes(day_bytes=1000, month_bytes=1500)
    first = permission(file, line, wishes)
    assert (await first.look()).may_work
    line.up.pass_by(600, 0.0)
    line.down.pass_by(399, 0.0)
    assert (await first.look()).may_work
    first.close()

    line = Line()
    again = permission(file, line, wishes)
    line.up.pass_by(1, 0.0)
    assert (await again.look()).code == "quota_day", "both ways, in both lives"
    again.moment = lambda: Moment(0, "2026-01-31", "2026-01")
    assert (await again.look()).may_work
    line.down.pass_by(500, 0.0)
    assert (await again.look()).code == "quota_month"
    again.close()
    assert (await permission(file, Line(), wishes, Moment(0, "2026-02-01", "2026-02")).look()).may_work
    file.write_text('{"day": "2026-01-30", "day_bytes"')
    assert (await permission(file, Line(), wishes).look()).may_work, "a file that cannot be read ends nobody"


async def test_each_reason_to_wait_is_told_once_and_so_is_the_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    here, told = permission(tmp_path / "usage", Line(), Wishes(quiet=((590, 610),))), asyncio.Queue[dict[str, Any]]()
    here.by_hand.set(True)
    waiting = asyncio.ensure_future(here.allowed(told.put_nowait))
    first = await told.get()
    here.by_hand.set(False)
    second = await told.get()
    here.moment = lambda: Moment(610, "2026-01-30", "2026-01")
    await waiting
    assert (first["name"], first["code"], second["name"], second["code"]) == ("paused", "hand", "paused", "quiet")
    assert second["text"] == "quiet hours, until 10:10"
    assert told.get_nowait()["name"] == "resumed" and told.empty()


@pytest.mark.parametrize("damaged", ['{"day": "", "month": "", "month_bytes": 0, "day_bytes": Infinity}', "[" * 100_000])
async def test_a_damaged_file_of_usage_stops_no_start(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "usage").write_text(damaged)
    assert (await permission(tmp_path / "usage", Line(), Wishes(day_bytes=1)).look()).may_work


async def test_what_has_passed_is_written_beside_the_event_loop(tmp_path: Path) -> None:
    """A disk may take its time: the file here is a pipe that nobody reads yet."""
    line, wishes = Line(), Wishes(day_bytes=1000)
    here = permission(tmp_path / "usage.json", line, wishes)
    os.mkfifo(tmp_path / "usage.new")
    line.up.pass_by(600, 0.0)
    looking = asyncio.ensure_future(here.look())
    await asyncio.sleep(0)
    assert not looking.done() and here.verdict().may_work
    assert "600" in await asyncio.to_thread((tmp_path / "usage.new").read_text)
    assert (await looking).may_work


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is Linux that tells")
def test_what_other_programs_take_is_use_and_what_this_process_takes_is_none() -> None:
    """The whole of the machine, taken by others: it is in use, whatever else is so."""
    use = MachineUse()
    use._ticks = tuple(0 for _ in use._ticks)  # type: ignore[assignment]
    assert isinstance(use.look(), str)
    whole, busy, own = use._ticks
    assert 0 < own <= busy <= whole


def test_pause_and_resume_tell_the_peers_that_run_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GWTF_HOME", str(tmp_path))
    create_identity(tmp_path / "identity.key")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "identity.pid").write_text(str(gone.pid))
    assert main(["pause"]) == 1 and "no peer runs" in capsys.readouterr().err
    code = (
        "import signal, sys, pathlib\n"
        "from gwtf_p2p.live.libp2p.identity import IdentityLock, load_identity\n"
        "from gwtf_p2p.live.libp2p.running_peers import running\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})\n"
        "with IdentityLock(load_identity(path)), running(path):\n"
        "    print('runs', flush=True)\n"
        "    for _ in range(2):\n"
        "        print(signal.sigwait({signal.SIGUSR1, signal.SIGUSR2}).name, flush=True)\n"
    )
    peer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "identity.key")], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert peer.stdout is not None and peer.stdout.readline() == "runs\n"
    assert main(["pause"]) == 0 and peer.stdout.readline() == f"{signal.SIGUSR1.name}\n"
    assert f"process {peer.pid}" in capsys.readouterr().out
    assert main(["resume", "--identity_path", str(tmp_path / "identity.key")]) == 0
    assert peer.communicate(timeout=60)[0] == f"{signal.SIGUSR2.name}\n"
    assert not (tmp_path / "identity.pid").exists()


def test_nobody_is_told_by_a_number_that_a_dead_peer_left(tmp_path: Path) -> None:
    """Its identity is in use again, by a bootstrap peer, which cannot pause; its number may be any program's by now."""
    path = tmp_path / "identity.key"
    identity = create_identity(path)
    path.with_suffix(".pid").write_text(f"{os.getpid()}\n")
    with IdentityLock(identity):
        assert running_peers(None, tmp_path) == running_peers(path, tmp_path) == {}
    with IdentityLock(identity), running(path):
        assert running_peers(None, tmp_path) == running_peers(path, tmp_path) == {path: os.getpid()}


def test_a_peer_whose_identity_is_elsewhere_is_found_as_well(tmp_path: Path) -> None:
    """As the profiles have it: `identity_path = "stage_peer.key"`, in whatever folder the peer was started."""
    home, path = tmp_path / "home", tmp_path / "stage_peer.key"
    create_identity(path)
    with running(path, home):
        assert running_peers(None, home) == running_peers(path, home) == {path: os.getpid()}
    assert running_peers(None, home) == {} and not list(tmp_path.rglob("*.pid"))


def test_a_peer_of_another_user_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_permitted(pid: int, what: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    path = tmp_path / "identity.key"
    create_identity(path)
    monkeypatch.setattr(os, "kill", not_permitted)
    with running(path):
        assert main(["pause", "--identity_path", str(path)]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"gwtf pause: the peer {path} (process {os.getpid()}) is another user's"] and not said.out


async def test_what_has_passed_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is renamed first is empty after a power cut, and the quota begins anew."""
    order: list[str] = []
    sync, rename = os.fsync, Path.replace

    def told_sync(descriptor: int) -> None:
        order.append("sync")
        sync(descriptor)

    def told_rename(path: Path, to: Path) -> Path:
        order.append("rename")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", told_sync)
    monkeypatch.setattr(Path, "replace", told_rename)
    line = Line()
    passed = permission(tmp_path / "identity.usage.json", line, Wishes(day_bytes=1000))
    line.up.pass_by(600, 0.0)
    passed.close()
    KeptRuns(create_identity(tmp_path / "a.key"), None).keep(own(create_identity(tmp_path / "owner.key"), sample(RunRecord)))
    assert "".join(order).count("syncrename") == 2
