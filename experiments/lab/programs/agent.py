"""A libp2p peer of the lab that does as it is told: connect, call, push, reserve, ... It is forked from a warm process.

    agents = Agents(lab, folder)
    boot = agents.start("boot", P2POptions(host_maddrs=...))
    alice = agents.start("alice", P2POptions(initial_peers=parse_initial_peers(boot.maddrs, {})))
    alice.ask("call", boot.peer)

`ask` returns what the method of this name of `_Agent` returns, or raises AgentError with its reason.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from experiments.lab.lab import Lab
from experiments.lab.programs.warm import fork_into
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.protocol.ids import PeerId

ANSWER_S = 60.0


class AgentError(Exception):
    """What was asked for failed, in the agent."""


@dataclass
class Agent:
    """A running peer. `ready_s`: seconds from the fork until p2pd had joined."""

    host: str
    peer: PeerId
    maddrs: tuple[str, ...]
    ready_s: float
    process: Any
    pipe: Connection = field(repr=False)

    def ask(self, what: str, *arguments: Any, limit_s: float = ANSWER_S) -> Any:
        """Raises AgentError, also when there is no answer in time."""
        self.pipe.send((what, arguments))
        return _receive(self.pipe, self.host, what, limit_s)

    def try_ask(self, what: str, *arguments: Any, limit_s: float = ANSWER_S) -> Any:
        """The reason as a string instead of an exception."""
        try:
            return self.ask(what, *arguments, limit_s=limit_s)
        except AgentError as error:
            return f"failed: {error}"

    def stop(self) -> None:
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join(10)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(10)
        self.pipe.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)
        self.pipe.close()


class Agents:
    """Starts agents in the hosts of a lab; the lab ends them."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["experiments.lab.programs.agent_process"])

    def start(self, host: str, options: P2POptions, flags: Sequence[str] = (), **settings: Any) -> Agent:
        """`flags` go to p2pd as they are, `settings` to hivemind's `P2P.create`, but for `with_paths`: the agent finds the best
        path to peers of which it learns the record. Raises AgentError when it does not start.
        """
        from experiments.lab.programs.agent_process import run_agent

        ours, theirs = self._context.Pipe()
        begin = time.monotonic()
        log = self._folder / f"{host}.log"
        process = fork_into(self._context, self._lab, host, run_agent, theirs, str(log), options, tuple(flags), settings)
        theirs.close()
        peer, maddrs = _receive(ours, host, "start", ANSWER_S)
        return Agent(host, peer, maddrs, time.monotonic() - begin, process, ours)


def _receive(pipe: Connection, host: str, what: str, limit_s: float) -> Any:
    try:
        if not pipe.poll(limit_s):
            raise AgentError(f"{host}: {what}: no answer within {limit_s:.0f} s")
        good, answer = pipe.recv()
    except (EOFError, ConnectionError) as error:
        raise AgentError(f"{host}: {what}: the agent ended") from error
    if not good:
        raise AgentError(f"{host}: {what}: {answer}")
    return answer
