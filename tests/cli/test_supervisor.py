"""A supervised peer is started again when it has crashed, told once to leave, and let go when trying again is of no use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE_S = 30.0
LIFE = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
from gwtf_p2p.cli.process.supervisor import Supervisor
from dataclasses import dataclass
@dataclass
class Note:
    of: int
folder = sys.argv[1]
def life(handover):
    with open(folder + "/lives", "a") as file:
        print(os.getpid(), os.getppid(), file=file)
    lives = len(open(folder + "/lives").read().splitlines())
    how = sys.argv[2:][lives - 1]
    if how.isdigit():
        return int(how)
    if how == "waits":
        heard = []
        signal.signal(signal.SIGINT, lambda *_: heard.append(1))
        open(folder + "/waits", "w").close()
        end = time.monotonic() + 20
        while not heard and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)
        return 130 if len(heard) == 1 else 99
    if how == "tells":
        print("left before:", handover.left(Note), flush=True)
        handover.leave(Note(lives))
        how = "SIGKILL"
    if how == "bug":
        raise KeyError("a bug")
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(20)
sys.exit(Supervisor(life, lambda how, pause: print(how, pause.seconds and "later" or "now", flush=True)).run())
"""


def started(folder: Path, *lives: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LIFE, str(folder), *lives]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_it_is_started_again_after_a_crash_and_a_bug_until_it_ends_well(tmp_path: Path) -> None:
    process = started(tmp_path, "SIGKILL", "bug", "0")
    told, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0 and told.splitlines() == ["signal 9: Killed now", "exit code 1 later"]
    assert "KeyError: 'a bug'" in errors, "a bug is told as any other"
    lives = (tmp_path / "lives").read_text().split()
    assert len(set(lives[::2])) == 3 and set(lives[1::2]) == {str(process.pid)}


def test_a_life_begins_with_what_the_one_before_has_left_but_not_when_that_may_be_what_kills(tmp_path: Path) -> None:
    told, _ = started(tmp_path, "tells", "tells", "tells", "0").communicate(timeout=DEADLINE_S)
    said = [line.removeprefix("left before: ") for line in told.splitlines() if line.startswith("left")]
    assert said == ["None", "Note(of=1)", "None"]


@pytest.mark.parametrize("code", [2, 4, 5])
def test_what_trying_again_does_not_mend_ends_it(code: int, tmp_path: Path) -> None:
    process = started(tmp_path, str(code), "0")
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code and len((tmp_path / "lives").read_text().splitlines()) == 1


def test_ctrl_c_reaches_the_peer_once_and_nobody_is_started_again(tmp_path: Path) -> None:
    process = started(tmp_path, "waits", "0")
    end = time.monotonic() + DEADLINE_S
    while not (tmp_path / "waits").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, "one SIGINT, not two: a second one means: at once"
    assert len((tmp_path / "lives").read_text().splitlines()) == 1


def test_the_peer_ends_with_its_supervisor(tmp_path: Path) -> None:
    process = started(tmp_path, "waits")
    end = time.monotonic() + DEADLINE_S
    while not (tmp_path / "waits").exists() and time.monotonic() < end:
        time.sleep(0.02)
    child = int((tmp_path / "lives").read_text().split()[0])
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()
