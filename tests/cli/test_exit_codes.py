"""Every condition that can be foreseen, provoked: one line on stderr, the documented exit code, never a traceback."""

from __future__ import annotations

import argparse
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from gwtf_p2p.cli.main import main, verb_module
from gwtf_p2p.cli.shared import peer_flags
from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.live.compute.memory_errors import OutOfMemory, memory_errors
from gwtf_p2p.live.discovery.run_trust import RunConflict
from gwtf_p2p.live.libp2p.daemon import DaemonFailed, NetworkUnreachable
from gwtf_p2p.live.libp2p.identity import IdentityInUse, IdentityLock, create_identity
from gwtf_p2p.live.peer import lifecycle
from gwtf_p2p.live.peer.config import ClockWrong, NotKept, PeerConfig, RunMismatch, RunNotThere
from gwtf_p2p.protocol.ids import RunId

ROOT = Path(__file__).parents[2]


def too_much() -> None:
    """More than any machine has."""
    with memory_errors("hold stage 1 of 2"):
        torch.empty(1 << 50, dtype=torch.uint8)


def raises(error: Exception) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


def of_python() -> None:
    with memory_errors("compute"):
        raise MemoryError


def of_the_accelerator() -> None:
    """As torch words it, where there is an accelerator."""
    with memory_errors("compute"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB")


@pytest.mark.parametrize(
    ("happens", "code", "words"),
    [
        (raises(NetworkUnreachable([("/ip4/10.0.0.1/tcp/1", "no answer")])), 3, "no answer"),
        (raises(RunNotThere(RunId("mine"), 300.0, [RunId("other")])), 3, "runs that are there: other"),
        (raises(IdentityInUse(Path("identity.key"), "another process")), 4, "identity.key"),
        (raises(RunMismatch("run r: stage: this run has stages 1 to 2, not 9")), 5, "not 9"),
        (raises(RunConflict(RunId("r"), "different run records, by a, b")), 5, "run r: different run records, by a, b"),
        (raises(DaemonFailed("p2pd does not start: no such file")), 6, "p2pd"),
        (raises(ClockWrong("the clock is 40 s off")), 6, "40 s"),
        (
            raises(NotKept("the run is complete, and this peer's last weights are not kept: disk full")),
            6,
            "not kept: disk full",
        ),
        (too_much, 6, "too little memory to hold stage 1 of 2"),
        (of_python, 6, "too little memory to compute"),
        (of_the_accelerator, 6, "2.50 GiB more"),
    ],
)
def test_each_condition_has_its_code_and_one_line(
    happens: Callable[[], None], code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run_peer(*_: Any) -> None:
        happens()

    monkeypatch.setattr(lifecycle, "run_peer", run_peer)
    args = argparse.Namespace(verb="peer", log_level="WARNING")
    assert peer_flags.serve(PeerConfig("peer"), args, lambda report: None) == code
    printed = capsys.readouterr()
    assert words in printed.err and len(printed.err.strip().splitlines()) == 1 and not printed.out


def test_what_is_not_about_memory_passes() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_errors("compute"):
        raise RuntimeError("shape mismatch")
    with pytest.raises(OutOfMemory):
        too_much()


def test_json_has_no_word_for_what_is_not_finite() -> None:
    report = {"name": "stepped", "loss": float("nan"), "all": [1.0, float("inf")], "deep": {"x": (float("-inf"),)}}
    line = to_json(report)
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert strict == {"name": "stepped", "loss": None, "all": [1.0, None], "deep": {"x": [None]}}


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/data/tokens")


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (full_disk, "/data/tokens: No space left"),
        (of_python, "too little memory"),
        (raises(OSError(errno.EMFILE, "Too many open files")), "this machine: Too many open files: raise the limit"),
        (raises(OSError(errno.ENOMEM, "Cannot allocate memory")), "too little memory to go on"),
    ],
)
def test_any_verb_that_runs_out_of_something_says_so(
    happens: Callable[[], None], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb_module("id"), "run", lambda args: happens())
    assert main(["id"]) == 6
    printed = capsys.readouterr().err
    assert words in printed and len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize("at", ["import", "run"])
def test_ctrl_c_at_any_moment_is_no_traceback(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    if at == "import":
        monkeypatch.setattr("gwtf_p2p.cli.main.verb_module", interrupted)
    else:
        monkeypatch.setattr(verb_module("id"), "run", interrupted)
    assert main(["id"]) == 130


HANGS_UP = """
import argparse, asyncio, fcntl, sys, termios
from pathlib import Path
from gwtf_p2p.live.libp2p.light_import import without_torch
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
without_torch()
from gwtf_p2p.cli.shared import peer_flags
from gwtf_p2p.live.peer import lifecycle

async def run_peer(config, on_report, stop, *_):
    Path("up").touch()
    await stop.wait()
    print("leaving", flush=True)
    Path("left").touch()

lifecycle.run_peer = run_peer
sys.exit(peer_flags.serve(None, argparse.Namespace(verb="peer", log_level="WARNING"), print))
"""


def test_a_peer_whose_terminal_is_closed_leaves_as_one_that_is_told_to(tmp_path: Path) -> None:
    ours, its = os.openpty()
    command, environment = [sys.executable, "-c", HANGS_UP], {**os.environ, "PYTHONPATH": str(ROOT)}
    peer = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True, cwd=tmp_path, env=environment)
    os.close(its)
    while not (tmp_path / "up").exists():
        assert peer.poll() is None, os.read(ours, 4096).decode()
    os.close(ours)
    assert peer.wait() == 0 and (tmp_path / "left").exists()


ALL_REFUSALS = """
import contextlib, io, sys
from pathlib import Path
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "hivemind"):
            raise SystemExit(f"loads {name}")
sys.meta_path.insert(0, NoTorch())
from gwtf_p2p.cli.main import main
from tests.cli.test_refusals import REFUSED
Path("FILE").write_text("of somebody")
Path("FOLDER").mkdir()
for words, _ in REFUSED:
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
    if code != 2:
        print(code, words)
"""


def test_wrong_input_to_any_verb_is_judged_before_torch_is_loaded(tmp_path: Path) -> None:
    """The whole table of refusals, in one process that cannot load it."""
    environment = {**os.environ, "GWTF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ALL_REFUSALS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert done.stdout == "", done.stdout


@pytest.mark.live
def test_what_a_starting_peer_finds_has_its_code(tmp_path: Path) -> None:
    """Real processes: nobody answers (3), the identity is in use (4), the port is taken (2)."""
    used, taken = create_identity(tmp_path / "used.key"), socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    there = ["--run_id", "r", "--initial_peers", f"/ip4/127.0.0.1/tcp/9/p2p/{used.peer_id}", "--timeout", "0"]
    here = ["--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--log_level", "ERROR"]
    cases = {
        "3.key": (there + here, 3, "no initial peer"),
        "used.key": (there + here, 4, "is in use by another process"),
        "2.key": ([*there, "--host_maddrs", f"/ip4/127.0.0.1/tcp/{port}", "--log_level", "ERROR"], 2, "in use"),
    }
    with IdentityLock(used), closing(taken):
        started = {
            name: subprocess.Popen(
                [sys.executable, "-m", "gwtf_p2p", "peer", *words, "--identity_path", str(tmp_path / name), "--json"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "GWTF_HOME": str(tmp_path)},
            )
            for name, (words, _, _) in cases.items()
        }
        for name, (_, code, words) in cases.items():
            _, said = started[name].communicate(timeout=240)
            assert (started[name].returncode, words in said, "Traceback" in said) == (code, True, False), said
