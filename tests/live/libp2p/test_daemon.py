"""Starting and ending p2pd: unreachable peers are named, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hivemind.p2p import PeerID
from hivemind.proto import p2pd_pb2

from gwtf_p2p.live.doctor.nat import free_port
from gwtf_p2p.live.libp2p.daemon import NetworkUnreachable, probe, running_daemon, start_daemon
from gwtf_p2p.live.libp2p.daemon_lifetime import die_with_parent, make_socket_dir, socket_base, sweep
from gwtf_p2p.live.libp2p.identity import IdentityInUse, create_identity
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.protocol.errors import InputError
from tests.live.conftest import DEADLINE_S, daemons_in, ends, sockets_in

pytestmark = pytest.mark.live

NOBODY = "12D3KooWRahQcr9Awj8Jih9zivoS3f7A3W8RUsmXvj7cJ1NmQ4cK"
QUIET = P2POptions(auto_nat=False, nat_port_map=False)


def joining(*maddrs: str) -> P2POptions:
    return P2POptions(parse_initial_peers(maddrs, {}), auto_nat=False, nat_port_map=False)


async def test_each_unreachable_peer_is_named_with_its_reason(runtime_dir: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        closed = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{NOBODY}"
        no_name = f"/dns4/no-such-host.invalid/tcp/31337/p2p/{NOBODY}"
        with pytest.raises(NetworkUnreachable) as error:
            await start_daemon(joining(closed, no_name))
    assert [text for text, _ in error.value.reasons] == [closed, no_name]
    assert f"{closed}: 127.0.0.1 port" in str(error.value) and "Connection refused" in str(error.value)
    assert error.value.exit_code == 3 and not daemons_in(runtime_dir)


async def test_an_address_that_never_answers_is_given_up_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        [peer] = parse_initial_peers([f"/ip4/127.0.0.1/tcp/{port}/p2p/{NOBODY}"], {})
        assert "no answer from 127.0.0.1" in (await probe([peer], limit_s=0.2))[peer.text]
        for filler in fillers:
            filler.close()


async def test_an_address_that_is_taken_is_named() -> None:
    """p2pd itself would share the port with the other p2pd."""
    async with running_daemon(QUIET) as other:
        [maddr] = await other.maddrs()
        taken = maddr.partition("/p2p/")[0]
        for initial in ((), parse_initial_peers([maddr], {})):
            options = P2POptions(initial, (taken,), auto_nat=False, nat_port_map=False)
            with pytest.raises(InputError, match=f"--host_maddrs: {taken}: cannot listen there: .*in use"):
                await start_daemon(options)


@pytest.mark.parametrize("port", ["0", "free"])
async def test_an_address_that_p2pd_leaves_out_is_named(port: str, runtime_dir: Path) -> None:
    """A host starts as long as one of its addresses can be had; draft 29 of QUIC is one that this p2pd has given up."""
    left_out = f"/ip4/127.0.0.1/udp/{free_port() if port == 'free' else port}/quic"
    with pytest.raises(InputError, match=f"--host_maddrs: {left_out}: p2pd has started and does not listen there"):
        await start_daemon(replace(QUIET, host_maddrs=("/ip4/127.0.0.1/tcp/0", left_out)))
    assert sockets_in(runtime_dir) == []


async def test_every_address_that_p2pd_listens_on_is_found_so() -> None:
    number = free_port()
    listens = (f"/ip4/127.0.0.1/tcp/{number}", "/ip4/0.0.0.0/udp/0/quic-v1", f"/ip4/127.0.0.1/udp/{number}/quic-v1")
    async with running_daemon(replace(QUIET, host_maddrs=listens)) as daemon:
        assert f"/ip4/127.0.0.1/tcp/{number}/p2p/{daemon.peer_id}" in await daemon.maddrs()
    announced = replace(QUIET, host_maddrs=listens, announce_maddrs=(f"/ip4/1.2.3.4/tcp/{number}",))
    async with running_daemon(announced) as daemon:
        assert await daemon.maddrs() == (f"/ip4/1.2.3.4/tcp/{number}/p2p/{daemon.peer_id}",)


async def test_an_address_with_a_wrong_peer_id_is_explained(runtime_dir: Path) -> None:
    async with running_daemon(QUIET) as other:
        [maddr] = await other.maddrs()
        wrong = maddr.replace(other.peer_id, NOBODY)
        with pytest.raises(NetworkUnreachable, match="peer id mismatch") as error:
            await start_daemon(joining(wrong))
        assert error.value.reasons[0][0] == wrong
        assert len(daemons_in(runtime_dir)) == 1


async def test_one_reachable_initial_peer_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    async with running_daemon(QUIET) as other:
        dead = f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY}"
        async with running_daemon(joining(dead, *await other.maddrs())) as daemon:
            assert daemon.peer_id != other.peer_id
    assert dead in caplog.text


async def test_an_identity_that_runs_elsewhere_in_the_swarm_is_refused(tmp_path: Path) -> None:
    identity = create_identity(tmp_path / "a.key")
    async with running_daemon(QUIET, identity) as daemon:
        with pytest.raises(IdentityInUse, match="another peer of this swarm") as error:
            await start_daemon(joining(*await daemon.maddrs()), identity)
        assert error.value.exit_code == 4


async def test_nothing_is_told_of_a_dead_p2pd_after_stop(caplog: pytest.LogCaptureFixture) -> None:
    """hivemind was writing to it when it died; what became of that is nobody's business any more, nor is an open connection."""
    daemon = await start_daemon(QUIET)
    control = daemon.p2p._client.control
    os.kill(daemon.pid, signal.SIGKILL)
    await daemon.wait_ended()
    control._pending_messages.put_nowait(p2pd_pb2.PersistentConnectionRequest(callId=bytes(16)))
    done, _ = await asyncio.wait({control._write_task}, timeout=DEADLINE_S)
    assert done
    await daemon.stop()
    del daemon, control, done
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_the_end_of_p2pd_is_noticed_and_stop_may_come_twice(runtime_dir: Path) -> None:
    daemon = await start_daemon(QUIET)
    os.kill(daemon.pid, signal.SIGKILL)
    await daemon.wait_ended()
    await daemon.stop()
    await daemon.stop()
    assert sockets_in(runtime_dir) == []


async def echo(data: bytes, caller: PeerID) -> bytes:
    return data


async def test_a_call_that_is_cancelled_before_its_answer_ends_no_other() -> None:
    """hivemind's reading of the connection to p2pd ended with it: nothing was answered or heard after that."""
    async with running_daemon(QUIET) as daemon, asyncio.timeout(DEADLINE_S):
        control = daemon.p2p._client.control
        cancelled = asyncio.ensure_future(control.add_unary_handler("cancelled", echo))
        await asyncio.sleep(0)
        assert [call.done() for call in control._pending_calls.values()] == [False]
        cancelled.cancel()
        await control.add_unary_handler("echo", echo)
        assert not control._read_task.done()


async def test_a_request_that_its_caller_has_cancelled_is_not_kept() -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def slow(data: bytes, caller: PeerID) -> bytes:
        begun.set()
        try:
            return bytes(await asyncio.Event().wait())
        finally:
            left.set()

    async with running_daemon(QUIET) as asked, asyncio.timeout(DEADLINE_S):
        control = asked.p2p._client.control
        await control.add_unary_handler("slow", slow)
        async with running_daemon(joining(*await asked.maddrs())) as asking:
            call = asyncio.ensure_future(asking.p2p._client.call_unary_handler(asked.p2p.peer_id, "slow", b"?"))
            await begun.wait()
            [handling] = control._handler_tasks.values()
            call.cancel()
            await asyncio.wait({handling})
            assert left.is_set() and not control._handler_tasks


async def test_a_p2pd_that_can_be_commanded_no_more_has_ended() -> None:
    async with running_daemon(QUIET) as daemon, asyncio.timeout(DEADLINE_S):
        daemon.p2p._client.control._read_task.cancel()
        await daemon.wait_ended()
        assert daemon.p2p._child.returncode is None


def test_a_killed_or_interrupted_peer_leaves_nothing(
    runtime_dir: Path, peer_process: Callable[[str], subprocess.Popen[str]]
) -> None:
    """Ctrl+C cleans up on its own; after a kill p2pd ends by itself, and the next start sweeps its sockets."""
    killed, interrupted = peer_process(""), peer_process("")
    for process in (killed, interrupted):
        assert process.stdout is not None and process.stdout.readline()
    base, pids = runtime_dir / "gwtf", daemons_in(runtime_dir)
    assert len(pids) == 2 and sweep(base) == [], "a running peer's sockets are never touched"
    interrupted.send_signal(signal.SIGINT)
    interrupted.wait(DEADLINE_S)
    killed.kill()
    killed.wait(DEADLINE_S)
    assert all(ends(pid, DEADLINE_S) for pid in pids)
    [left] = sweep(base)
    assert not left.exists() and sockets_in(runtime_dir) == []


def test_only_abandoned_socket_directories_are_swept(tmp_path: Path) -> None:
    mine = make_socket_dir(tmp_path)
    assert sweep(tmp_path) == [] and mine.path.exists()
    newborn = tmp_path / "abc.new"
    newborn.mkdir()
    assert sweep(tmp_path) == [], "another peer may be just starting"
    with socket.socket(socket.AF_UNIX) as answering:
        orphan = tmp_path / "orphan"
        orphan.mkdir()
        answering.bind(str(orphan / "p2pd-x.sock"))
        answering.listen()
        assert sweep(tmp_path) == [], "a daemon still answers there"
    assert sweep(tmp_path) == [orphan]
    mine.remove()
    assert not mine.path.exists()


def test_socket_paths_fit_and_belong_to_the_user(runtime_dir: Path) -> None:
    base = socket_base({"XDG_RUNTIME_DIR": str(runtime_dir)})
    assert base == runtime_dir / "gwtf" and base.stat().st_mode & 0o777 == 0o700
    long = runtime_dir / ("x" * 90)
    long.mkdir()
    assert not str(socket_base({"XDG_RUNTIME_DIR": str(long)})).startswith(str(long))
    assert socket_base({}).stat().st_uid == os.getuid()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_process_that_asked_for_it_ends_with_its_parent() -> None:
    child = (
        "import os, sys\nfrom gwtf_p2p.live.libp2p.daemon_lifetime import die_with_parent\n"
        "assert die_with_parent(int(sys.argv[1]))\nprint(os.getpid(), flush=True)\nsys.stdin.read()\n"
    )
    parent = (
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())], stdin=sys.stdin).wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        assert ends(pid, DEADLINE_S)
    assert callable(die_with_parent)
