"""The lab changes as told, and leaves nothing behind, however its process ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.lab import runs
from experiments.lab.lab import Lab
from experiments.lab.topology import Host, Line, Nat, Router, Topology, load_topology
from tests.lab.nat_probe import LIMIT_S

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two_homes() -> Iterator[Lab]:
    with Lab(load_topology("nat_two_homes")) as lab:
        yield lab


def seen_by_boot(lab: Lab, host: str) -> str:
    """The address from which a datagram of this host comes."""
    with lab.socket("boot", socket.SOCK_DGRAM, 7100) as server, lab.socket(host, socket.SOCK_DGRAM) as client:
        server.settimeout(LIMIT_S)
        client.sendto(b"hello", (lab.public_address("boot"), 7100))
        return str(server.recvfrom(64)[1][0])


# ---- changes


def test_a_host_comes_back_with_another_address(two_homes: Lab) -> None:
    before = two_homes.address("alice")
    after = two_homes.move("alice")
    assert after.ip != before.ip
    assert seen_by_boot(two_homes, "alice") == two_homes.public_address("alice") == str(two_homes.address("home_a").ip)


def test_a_laptop_moves_to_another_home_and_into_the_open(two_homes: Lab) -> None:
    two_homes.move("bob", behind="home_a")
    assert seen_by_boot(two_homes, "bob") == str(two_homes.address("home_a").ip)
    address = two_homes.move("bob", behind="")
    assert seen_by_boot(two_homes, "bob") == str(address.ip)
    two_homes.move("bob", behind="home_b")
    assert seen_by_boot(two_homes, "bob") == str(two_homes.address("home_b").ip)


def test_a_router_gets_another_public_address(two_homes: Lab) -> None:
    before = two_homes.public_address("alice")
    two_homes.move("home_a")
    assert before != two_homes.public_address("alice") == seen_by_boot(two_homes, "alice")


@pytest.mark.parametrize("plug", ["alice", "home_a"])
def test_a_line_that_is_down_carries_nothing_and_works_again_when_up(two_homes: Lab, plug: str) -> None:
    two_homes.set_up(plug, False)
    with two_homes.socket("alice", socket.SOCK_STREAM) as caller, pytest.raises(OSError, match=r"unreachable|timed out"):
        caller.settimeout(0.5)
        caller.connect((two_homes.public_address("boot"), 7100))
    two_homes.set_up(plug, True)
    assert seen_by_boot(two_homes, "alice") == two_homes.public_address("alice")


def test_names_are_known_in_the_lab_only(two_homes: Lab) -> None:
    looked_up = two_homes.run("alice", ["getent", "hosts", "boot.example"]).stdout.split()
    assert looked_up == [two_homes.public_address("boot"), "boot.example"]
    assert "boot.example" not in Path("/etc/hosts").read_text()


# ---- lines


def transfer_s(lab: Lab, sender: str, receiver: str, size: int) -> float:
    """Seconds for so many bytes over one TCP connection from sender to receiver."""
    with lab.socket(receiver, socket.SOCK_STREAM) as listener, lab.socket(sender, socket.SOCK_STREAM) as client:
        listener.listen()
        client.settimeout(LIMIT_S)
        client.connect((lab.public_address(receiver), listener.getsockname()[1]))
        with listener.accept()[0] as server, ThreadPoolExecutor(1) as pool:
            server.settimeout(LIMIT_S)
            begin = time.monotonic()
            sending = pool.submit(client.sendall, bytes(size))
            left = size
            while left:
                left -= len(server.recv(min(left, 1 << 16)))
            sending.result()
            return time.monotonic() - begin


def test_lines_are_as_fast_as_they_say() -> None:
    """Ratios of transfers at the same time, so that a busy machine slows both: a line four times as fast takes a quarter of
    the time, up and down separately."""
    slow, fast = Line(up_mbps=8, down_mbps=32), Line(up_mbps=32, down_mbps=8)
    hosts = Host("open"), Host("slow_up", line=slow), Host("fast_up", line=fast)
    with Lab(Topology("lines", "", hosts)) as lab, ThreadPoolExecutor(2) as pool:

        def ratio(one: tuple[str, str], other: tuple[str, str]) -> float:
            slow_s, fast_s = pool.map(lambda way: transfer_s(lab, way[0], way[1], 1 << 20), (one, other))
            return slow_s / fast_s

        assert 2.5 < ratio(("slow_up", "open"), ("fast_up", "open")) < 6
        assert 2.5 < ratio(("open", "fast_up"), ("open", "slow_up")) < 6


def test_a_delayed_line_delays_and_carries_a_stream_whole() -> None:
    delay_ms = 25.0
    hosts = Host("far", behind="router"), Host("boot")
    with Lab(Topology("delay", "", hosts, (Router("router", Nat.PORT_RESTRICTED, line=Line(delay_ms=delay_ms)),))) as lab:
        with lab.socket("boot", socket.SOCK_DGRAM, 7300) as server, lab.socket("far", socket.SOCK_DGRAM) as client:
            server.settimeout(LIMIT_S)
            client.settimeout(LIMIT_S)
            for _ in range(2):  # the first one also resolves addresses
                begin = time.monotonic()
                client.sendto(b"hello", (lab.public_address("boot"), 7300))
                server.sendto(b"hello", server.recvfrom(64)[1])
                client.recvfrom(64)
            assert time.monotonic() - begin >= 2 * delay_ms / 1000
        assert transfer_s(lab, "far", "boot", 2 << 20) > 0


# ---- ends


def assert_gone(run: str, *pids: int) -> None:
    assert runs.namespaces(run) == []
    assert not runs.folder(run).exists()
    assert list(runs.ETC_FILES.glob(f"{runs.prefix(run)}*")) == []
    assert [pid for pid in pids if Path(f"/proc/{pid}/ns/net").exists()] == []


def ended(pid: int) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], LIMIT_S)[0])
    finally:
        os.close(descriptor)


def test_an_error_in_the_block_removes_everything() -> None:
    with pytest.raises(ZeroDivisionError), Lab(load_topology("nat_two_homes")) as lab:
        run, sleeper = lab.run_name, lab.start("alice", ["sleep", "600"])
        while runs.processes_inside(runs.namespaces(run)) != [sleeper.pid]:
            assert sleeper.exit_code is None
        raise ZeroDivisionError
    assert sleeper.exit_code == -signal.SIGKILL
    assert_gone(run, sleeper.pid)


def test_programs_log_and_are_stopped_by_pid(two_homes: Lab, tmp_path: Path) -> None:
    program = two_homes.start("alice", ["sh", "-c", "echo $COLOUR; sleep 600"], tmp_path / "log", {"COLOUR": "green"})
    while "green" not in program.read_log():
        assert program.exit_code is None
    assert program.stop() == -signal.SIGTERM
    assert two_homes.run("alice", ["sh", "-c", "exit 7"]).returncode == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_by_hand_ends_with_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "experiments.lab", "up", "nat_two_homes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("bob"):
                break
        run = line.split("gwtf-")[1].split("-")[0]
        assert runs.namespaces(run)
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 130
    assert_gone(run)


@pytest.fixture
def holder() -> Iterator[tuple[subprocess.Popen[str], str, int, int]]:
    """A process with a lab; its run, its janitor, and a program inside that is nobody's child."""
    command = [sys.executable, "-m", "tests.lab.holder"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        run, janitor, deserter = process.stdout.readline().split()
        yield process, run, int(janitor), int(deserter)
        process.kill()


def test_the_janitor_removes_what_a_killed_lab_left(holder: tuple[subprocess.Popen[str], str, int, int]) -> None:
    process, run, janitor, deserter = holder
    process.kill()
    assert ended(janitor)
    assert_gone(run, deserter)


def test_the_next_lab_removes_what_a_killed_lab_and_janitor_left(
    holder: tuple[subprocess.Popen[str], str, int, int],
) -> None:
    process, run, janitor, deserter = holder
    assert run not in runs.sweep(), "a living lab is left alone"
    os.kill(janitor, signal.SIGKILL)
    process.kill()
    process.wait(LIMIT_S)
    assert runs.namespaces(run)
    assert run in runs.sweep()
    assert_gone(run, deserter)
