"""The doctor in hosts of a lab, forked from a warm process, on public peers that are bootstrap peers of ours."""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from experiments.lab.lab import Lab
from experiments.lab.programs.warm import LabSwarm, fork_into

PORT = 31330
BOOTSTRAP_PORT = 31337
ANSWER_S = 300.0


def start_bootstraps(lab: Lab, swarm: LabSwarm, hosts: Sequence[str]) -> list[str]:
    """One `gwtf bootstrap` in each of these hosts, all of one swarm; their multiaddrs."""
    from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
    from gwtf_p2p.live.libp2p.options import P2POptions
    from gwtf_p2p.live.peer.config import PeerConfig

    maddrs: list[str] = []
    for host in hosts:
        listen = (f"/ip4/{lab.public_address(host)}/tcp/{BOOTSTRAP_PORT}",)
        options = P2POptions(parse_initial_peers(maddrs, {}), listen, is_public=True, nat_port_map=False)
        swarm.start_in(host, host, PeerConfig("bootstrap", options, swarm.folder / f"{host}.key"))
        started = swarm.wait_for(host, "started", ANSWER_S)
        assert started is not None, (swarm.folder / f"{host}.log").read_text()
        maddrs += [maddr for maddr in started["maddrs"] if lab.public_address(host) in maddr]
    return maddrs


class Doctors:
    """Doctors that run at the same time, each in a host."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab, self._folder = lab, folder
        self._context = mp.get_context("forkserver")
        self._pipes: dict[str, tuple[Any, Connection]] = {}

    def start(self, host: str, initial: Sequence[str], port: int = PORT) -> None:
        ours, theirs = self._context.Pipe()
        log = str(self._folder / f"doctor_{host}.log")
        process = fork_into(self._context, self._lab, host, run_doctor, theirs, log, tuple(initial), port)
        theirs.close()
        self._pipes[host] = process, ours

    def diagnosis(self, host: str) -> Any:
        """The `doctor_rules.Diagnosis` of a host, when it is made."""
        process, pipe = self._pipes.pop(host)
        try:
            assert pipe.poll(ANSWER_S), f"{host}: no diagnosis within {ANSWER_S:.0f} s"
            return pipe.recv()
        except EOFError as error:
            raise AssertionError((self._folder / f"doctor_{host}.log").read_text()) from error
        finally:
            pipe.close()
            process.join(10)


def run_doctor(pipe: Connection, log: str, initial: Sequence[str], port: int) -> None:
    """In the host: everything but the device, which is the same machine's everywhere."""
    import uvloop

    from gwtf_p2p.live.doctor.machine import examine_machine
    from gwtf_p2p.live.doctor.network import examine_network
    from gwtf_p2p.live.doctor.rules import diagnose
    from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(level=logging.INFO)
    machine = examine_machine(Path(log).parent, port, "cpu")
    with tempfile.TemporaryDirectory(prefix="gwtf-doctor-") as folder:
        network = uvloop.run(examine_network(parse_initial_peers(initial, {}), port, Path(folder)))
    pipe.send(diagnose(network, machine, None))
