"""Python programs in hosts of the lab, forked from one process that has imported what they need.

Importing torch and hivemind takes seconds; a fork of a process that has done it is there at once. `LabSwarm` starts whole peers
so, `fork_into` any function.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from experiments.lab.lab import Lab
from experiments.lab.netns import enter, show_files
from gwtf_p2p.live.libp2p.daemon_lifetime import die_with_parent
from gwtf_p2p.live.peer.local_swarm import LocalPeer, LocalSwarm


def fork_into(
    context: ForkServerContext, lab: Lab, host: str, function: Callable[..., None], *arguments: Any
) -> ForkServerProcess:
    """Run a function of a module (importable by name) in a host, in a fork of the context's server."""
    place = lab.namespace_path(host), lab.wiring.files(host)
    process = context.Process(target=_inside, args=(*place, function, arguments), name=f"lab-{host}")
    process.start()
    return process


class LabSwarm(LocalSwarm):
    """Real peers in hosts of a lab; otherwise a `LocalSwarm`."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        super().__init__(folder)
        self._lab = lab

    def start_in(self, host: str, name: str, config: Any) -> LocalPeer:
        """Start one peer in a host; its output goes to `NAME.log` in the folder. `config` is a `peer.PeerConfig`."""
        from gwtf_p2p.live.peer.process import run_child

        ours, theirs = self._context.Pipe()
        log = self.folder / f"{name}.log"
        process = fork_into(self._context, self._lab, host, run_child, config, theirs, str(log))
        theirs.close()
        peer = LocalPeer(name, process, ours, log)
        self.peers[name] = peer
        return peer


def _inside(namespace: Path, files: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    die_with_parent(os.getppid())
    enter(namespace)
    show_files(files)
    function(*arguments)
