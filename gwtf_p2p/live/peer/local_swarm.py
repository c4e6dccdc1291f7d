"""Real peers on this machine: own process, own p2pd, own libp2p identity each, started from one warm parent.

Importing torch, transformers and hivemind takes seconds and 250 MB; a fork server imports them once and forks every peer, which
then costs tens of megabytes (measured, experiments/README.md). Peers are in sessions of their own, so Ctrl+C reaches this
process alone and it tells them; should it die, the fork server ends and the kernel ends the peers.

Peers start in turn (`StartTurns`): sixty p2pds that begin at once on two cores are not up in the time that each of them has.
A peer is forked when its turn comes, so all of its own deadlines count from then.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

STOP_DEADLINE_S = 10.0

STARTS_PER_CORE = 2
"""How many peers start at once: they compute for half of the time, and wait for each other for the rest."""

LONGEST_TURN_S = 60.0
"""Who is not up after so long holds the others up no longer."""

UP = ("online", "waiting", "waiting_for_run", "paused", "failed", "exited")
"""Reports that end a peer's turn: it is there, or waits for somebody else, who may be behind it."""


def starts_at_once() -> int:
    """On this machine."""
    return STARTS_PER_CORE * (os.cpu_count() or 1)


class StartTurns:
    """Who starts now: at most `at_once` peers are between their fork and being up. Times are of a monotonic clock."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._since: dict[str, float] = {}

    def begins(self, name: str, now: float) -> None:
        self._since[name] = now

    def ended(self, name: str) -> None:
        self._since.pop(name, None)

    def has_room(self, now: float) -> bool:
        """May one more begin?"""
        return sum(now - since < LONGEST_TURN_S for since in self._since.values()) < self.at_once


@dataclass
class LocalPeer:
    """A peer of the local swarm. `exit_code` is None while it runs."""

    name: str
    process: Any
    pipe: Connection
    log: Path
    up: str = "online"
    """The report by which it is up."""

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def exit_code(self) -> int | None:
        code = self.process.exitcode
        return None if code is None else int(code)


class LocalSwarm:
    """Starts peers, hears their reports, and leaves nothing behind (`stop`).

    `start` takes a place in the queue; peers get their turns while `poll` is called. `at_once` of them start at the same
    time, by the cores of the machine if nothing is said.
    """

    def __init__(self, folder: Path, at_once: int | None = None) -> None:
        self.folder = folder
        self.peers: dict[str, LocalPeer] = {}
        self.turns = StartTurns(at_once or starts_at_once())
        self._queue: dict[str, Any] = {}
        self._unheard: list[tuple[str, Mapping[str, Any]]] = []
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["gwtf_p2p.live.peer.process"])

    @property
    def queued(self) -> tuple[str, ...]:
        """Whose turn has not come."""
        return tuple(self._queue)

    def start(self, name: str, config: Any) -> None:
        """Start one peer, at once or when its turn comes; its stdout and stderr go to `NAME.log` in the folder. `config` is a
        `peer.PeerConfig`."""
        self._queue[name] = config
        self._start_due()

    def _start_due(self) -> None:
        while self._queue and self.turns.has_room(time.monotonic()):
            self._fork(next(iter(self._queue)))

    def _fork(self, name: str) -> None:
        from gwtf_p2p.live.peer.process import run_child

        config = self._queue.pop(name)
        ours, theirs = self._context.Pipe()
        log = self.folder / f"{name}.log"
        process = self._context.Process(target=run_child, args=(config, theirs, str(log)), name=f"gwtf-{name}")
        process.start()
        theirs.close()
        self.peers[name] = LocalPeer(name, process, ours, log, "started" if config.role == "bootstrap" else "online")
        self.turns.begins(name, time.monotonic())

    def poll(self, timeout_s: float) -> list[tuple[str, Mapping[str, Any]]]:
        """Reports that have come, as (peer name, report); waits at most so long for the first."""
        self._start_due()
        by_pipe = {id(peer.pipe): peer for peer in self.peers.values() if not peer.pipe.closed}
        heard, self._unheard = self._unheard, []
        ready = wait([peer.pipe for peer in by_pipe.values()], 0.0 if heard else timeout_s) if by_pipe else []
        for pipe in ready:
            peer = by_pipe[id(pipe)]
            try:
                while peer.pipe.poll():
                    heard.append((peer.name, peer.pipe.recv()))
            except (EOFError, OSError):
                peer.pipe.close()
                peer.process.join(STOP_DEADLINE_S)
                heard.append((peer.name, {"name": "exited", "code": peer.exit_code}))
        for name, report in heard:
            if report["name"] in UP or (name in self.peers and report["name"] == self.peers[name].up):
                self.turns.ended(name)
        self._start_due()
        return heard

    def wait_for(self, name: str, report: str, deadline_s: float) -> Mapping[str, Any] | None:
        """Poll until this peer sends this report; None when it ends or the deadline passes first."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            for who, heard in self.poll(0.2):
                if who == name and heard["name"] in (report, "exited"):
                    return heard if heard["name"] == report else None
        return None

    def forget(self, name: str) -> None:
        """Wait for the end of a killed peer, so that its name can be given again."""
        self._unheard = [said for said in self._unheard if said[0] != name]
        peer = self.peers.pop(name, None)
        if peer is None:
            return  # its turn had not come
        self.turns.ended(name)
        peer.process.join(STOP_DEADLINE_S)
        if not peer.pipe.closed:
            peer.pipe.close()

    def leave(self, name: str) -> None:
        """Ask a peer to leave: it drains first if its config says so."""
        if not self._never_starts(name, 0):
            self.peers[name].pipe.send("stop")

    def kill(self, name: str) -> None:
        """SIGKILL: a crash."""
        if not self._never_starts(name, -signal.SIGKILL):
            os.kill(self.peers[name].pid, signal.SIGKILL)

    def freeze(self, name: str) -> None:
        """SIGSTOP: alive for the kernel, silent for everybody else."""
        if name in self._queue:
            self._fork(name)
        os.kill(self.peers[name].pid, signal.SIGSTOP)
        self.turns.ended(name)

    def thaw(self, name: str) -> None:
        os.kill(self.peers[name].pid, signal.SIGCONT)

    def _never_starts(self, name: str, code: int) -> bool:
        """Whether its turn had not come; it has ended with this code then."""
        if self._queue.pop(name, None) is None:
            return False
        self._unheard.append((name, {"name": "exited", "code": code}))
        return True

    def stop(self) -> None:
        """Ask everybody to leave, then make sure."""
        self._queue.clear()
        for peer in self.peers.values():
            if peer.exit_code is None and _is_stopped(peer.pid):
                peer.process.kill()  # frozen by a fault: it cannot hear
            elif peer.exit_code is None and not peer.pipe.closed:
                try:
                    peer.pipe.send("stop")
                except (BrokenPipeError, OSError):
                    continue
        end = time.monotonic() + STOP_DEADLINE_S
        for peer in self.peers.values():
            peer.process.join(max(0.1, end - time.monotonic()))
            if peer.exit_code is None:
                logger.warning("%s did not stop in %.0f s and is killed", peer.name, STOP_DEADLINE_S)
                peer.process.kill()
                peer.process.join(5)
            if not peer.pipe.closed:
                peer.pipe.close()


def _is_stopped(pid: int) -> bool:
    """Does the kernel hold the process (SIGSTOP)? False where /proc does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False
