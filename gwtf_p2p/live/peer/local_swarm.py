"""Real peers on this machine: own process, own p2pd, own libp2p identity each, started from one warm parent.

Importing torch, transformers and hivemind takes seconds and 250 MB; a fork server imports them once and forks every peer, which
then costs tens of megabytes (measured, experiments/README.md). Peers are in sessions of their own, so Ctrl+C reaches this
process alone and it tells them; should it die, the fork server ends and the kernel ends the peers.
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


@dataclass
class LocalPeer:
    """A peer of the local swarm. `exit_code` is None while it runs."""

    name: str
    process: Any
    pipe: Connection
    log: Path

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def exit_code(self) -> int | None:
        code = self.process.exitcode
        return None if code is None else int(code)


class LocalSwarm:
    """Starts peers, hears their reports, and leaves nothing behind (`stop`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.peers: dict[str, LocalPeer] = {}
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["gwtf_p2p.live.peer.process"])

    def start(self, name: str, config: Any) -> LocalPeer:
        """Start one peer; its stdout and stderr go to `NAME.log` in the folder. `config` is a `peer.PeerConfig`."""
        from gwtf_p2p.live.peer.process import run_child

        ours, theirs = self._context.Pipe()
        log = self.folder / f"{name}.log"
        process = self._context.Process(target=run_child, args=(config, theirs, str(log)), name=f"gwtf-{name}")
        process.start()
        theirs.close()
        peer = LocalPeer(name, process, ours, log)
        self.peers[name] = peer
        return peer

    def poll(self, timeout_s: float) -> list[tuple[str, Mapping[str, Any]]]:
        """Reports that have come, as (peer name, report); waits at most so long for the first."""
        by_pipe = {id(peer.pipe): peer for peer in self.peers.values() if not peer.pipe.closed}
        heard: list[tuple[str, Mapping[str, Any]]] = []
        ready = wait([peer.pipe for peer in by_pipe.values()], timeout_s) if by_pipe else []
        for pipe in ready:
            peer = by_pipe[id(pipe)]
            try:
                while peer.pipe.poll():
                    heard.append((peer.name, peer.pipe.recv()))
            except (EOFError, OSError):
                peer.pipe.close()
                peer.process.join(STOP_DEADLINE_S)
                heard.append((peer.name, {"name": "exited", "code": peer.exit_code}))
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
        peer = self.peers.pop(name)
        peer.process.join(STOP_DEADLINE_S)
        if not peer.pipe.closed:
            peer.pipe.close()

    def leave(self, name: str) -> None:
        """Ask a peer to leave: it drains first if its config says so."""
        self.peers[name].pipe.send("stop")

    def kill(self, name: str) -> None:
        """SIGKILL: a crash."""
        os.kill(self.peers[name].pid, signal.SIGKILL)

    def freeze(self, name: str) -> None:
        """SIGSTOP: alive for the kernel, silent for everybody else."""
        os.kill(self.peers[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        os.kill(self.peers[name].pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ask everybody to leave, then make sure."""
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
