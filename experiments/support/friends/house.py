"""Friends, each with a machine of their own on this one: `gwtf` as they type it, a home, a disk, and what the screen says.

A screen is what stdout and stderr of the process say, line by line, as where no terminal is. A story waits for lines and never
for a length of time, but for those in which nothing is to happen.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from experiments.support.friends.two_places import LOOPBACK, Places

POLL_S = 0.1
ROOT = Path(__file__).parents[3]
DEADLINE_S = 480.0
"""How long a story waits for what must come. It is no measure of speed: the machine may be busy with something else."""

GONE_WITHIN_S = 20.0
"""How long a process that is killed may take on a busy machine."""

STEP = re.compile(r"^step +(\d+) +loss (\S+)")


class StoryFailed(AssertionError):
    """What should have happened did not."""


@dataclass
class Life:
    """One process of a friend. `lines` is its screen: seconds since the story began, and what was said."""

    began: float
    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self.read, daemon=True)

    def read(self) -> None:
        """To be run in a thread of its own: until the process closes its screen."""
        assert self.process.stdout is not None
        with self.process.stdout as screen:
            for line in screen:
                self.lines.append((time.monotonic() - self.began, line.rstrip()))

    def all_of_it(self) -> list[psutil.Process]:
        """The process and its p2pd."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@dataclass
class Friend:
    """One friend: a folder that is home and disk, and the lives of its peer so far."""

    name: str
    folder: Path
    lives: list[Life] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def screen(self) -> list[str]:
        """What the present life has said."""
        return [line for _, line in list(self.lives[-1].lines)] if self.lives else []

    def said(self, pattern: str) -> str:
        """The first line of the present life that matches; '' if none does."""
        return next((line for line in self.screen if re.search(pattern, line)), "")

    @property
    def steps(self) -> list[tuple[int, float]]:
        """Number and loss of each step that the screen of the present life has told of."""
        found = (STEP.match(line) for line in self.screen)
        return [(int(m[1]), float(m[2])) for m in found if m]

    @property
    def last_step(self) -> int:
        return self.steps[-1][0] if self.steps else 0


class House:
    """A story's friends, and one bootstrap peer at an address that outlives it. `places`: where they live apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began = time.monotonic()
        self.friends: dict[str, Friend] = {}
        self.port = free_port()
        self.maddr = ""
        self.places: Places | None = None

    def __enter__(self) -> House:
        return self

    def __exit__(self, *_: object) -> None:
        for friend in self.friends.values():
            for life in friend.lives[-1:]:
                for process in life.all_of_it():
                    send(process, signal.SIGCONT)
        self.power_cut()

    def bootstrap(self) -> Friend:
        """Start it, or start it again where it was."""
        friend = self.start("bootstrap", "bootstrap", "--host_maddrs", f"/ip4/{LOOPBACK}/tcp/{self.port}")
        listens = re.escape(f"/ip4/{self.places.ip(friend.name) if self.places is not None else LOOPBACK}/tcp/")
        self.maddr = self.until(friend, f"--initial_peers {listens}").split()[-1]
        return friend

    def start(self, name: str, verb: str, *words: str, altered: Sequence[str] = ()) -> Friend:
        """A friend types `gwtf VERB WORDS`. `altered`: arguments of `experiments.support.altered`, for an odd machine."""
        friend = self._friend(name)
        command = [sys.executable, "-m"]
        command += ["experiments.support.altered", *altered, "--"] if altered else ["gwtf_p2p"]
        command += [verb, *words, "--identity_path", str(friend.folder / "identity.key")]
        if verb != "bootstrap":
            listens = ["--host_maddrs", f"/ip4/{LOOPBACK}/tcp/0", "--threads", "1", "--timeout", str(DEADLINE_S)]
            command += ["--initial_peers", self.maddr, *listens]
            command += [] if "--checkpoint_dir" in words else ["--checkpoint_dir", str(friend.disk)]
        return self._types(friend, command)

    def look(self, name: str, verb: str, *words: str) -> Friend:
        """A friend types a verb that only looks at the run."""
        return self._types(self._friend(name), [sys.executable, "-m", "gwtf_p2p", verb, *words, "--initial_peers", self.maddr])

    def _friend(self, name: str) -> Friend:
        friend = self.friends.setdefault(name, Friend(name, self.folder / name))
        friend.folder.mkdir(parents=True, exist_ok=True)
        return friend

    def _types(self, friend: Friend, command: Sequence[str]) -> Friend:
        if self.places is not None:
            command = self.places.typed(friend.name, command)
        environment = {**os.environ, "HOME": str(friend.folder), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            command,
            cwd=friend.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        life = Life(self.began, process)
        friend.lives.append(life)
        life.reader.start()
        return friend

    # ---- what happens to them

    def kill(self, friend: Friend) -> None:
        """SIGKILL of the peer and its p2pd, at once."""
        self._end([friend])

    def power_cut(self) -> None:
        """SIGKILL of everything, at once."""
        self._end(list(self.friends.values()))

    def _end(self, friends: Sequence[Friend]) -> None:
        lives = [friend.lives[-1] for friend in friends if friend.lives]
        processes = [process for life in lives for process in life.all_of_it()]
        for process in processes:
            send(process, signal.SIGKILL)
        for life in lives:
            life.process.wait()
        psutil.wait_procs(processes, GONE_WITHIN_S)
        for life in lives:
            life.reader.join(POLL_S)

    def leave(self, friend: Friend) -> int:
        """Ctrl+C; the exit code."""
        process = friend.lives[-1].process
        process.send_signal(signal.SIGINT)
        return process.wait(DEADLINE_S)

    def sleep(self, friend: Friend) -> list[psutil.Process]:
        """SIGSTOP of the peer and its p2pd, as when a laptop is closed; what is to be woken."""
        processes = friend.lives[-1].all_of_it()
        for process in processes:
            send(process, signal.SIGSTOP)
        return processes

    # ---- waiting

    def until(self, friend: Friend, pattern: str, deadline_s: float = DEADLINE_S) -> str:
        """The first line of its present life that matches. Raises StoryFailed."""
        self.until_so(f"{friend.name} says {pattern!r}", lambda: bool(friend.said(pattern)), deadline_s)
        return friend.said(pattern)

    def until_so(self, what: str, condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> float:
        """Seconds until it is so. Raises StoryFailed."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > deadline_s:
                raise StoryFailed(f"not in {deadline_s:.0f} s: {what}")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def until_step(self, friend: Friend, step: int) -> float:
        return self.until_so(f"{friend.name} tells of step {step}", lambda: friend.last_step >= step)

    def until_more(self, friend: Friend, more: int = 2) -> float:
        """Seconds until its screen tells of so many steps more."""
        return self.until_step(friend, friend.last_step + more)

    # ---- what their screens said

    def screens(self, most: int) -> list[str]:
        """All screens, at most so many lines of each life; what every step says is left out but the first and the last."""
        told = []
        for friend in self.friends.values():
            for number, life in enumerate(friend.lives):
                again = f", started again ({number})" if number else ""
                told.append(f"  {friend.name}{again}:")
                told += [f"    {second:6.1f} s  {line[:200]}" for second, line in shortened(list(life.lines), most)]
        return told


def shortened(lines: Sequence[tuple[float, str]], most: int) -> list[tuple[float, str]]:
    """Of several steps in a row the first and the last, and of the rest the first and last halves."""
    kept = []
    for at, (second, line) in enumerate(lines):
        between = 0 < at < len(lines) - 1 and all(STEP.match(lines[i][1]) for i in (at - 1, at, at + 1))
        if not between:
            kept.append((second, line))
    if len(kept) <= most:
        return kept
    return [*kept[: most // 2], (kept[most // 2][0], f"... {len(kept) - most} lines ..."), *kept[-(most - most // 2) :]]


def send(process: psutil.Process, what: int) -> None:
    """A signal to a process that may be gone."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(what)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def check(holds: bool, what: str) -> None:
    """Raises StoryFailed unless it holds."""
    if not holds:
        raise StoryFailed(f"does not hold: {what}")


def forget_disk(friend: Friend) -> None:
    """Its machine is gone with all that was on it."""
    shutil.rmtree(friend.folder)
