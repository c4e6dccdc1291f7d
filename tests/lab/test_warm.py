"""Functions run in hosts of the lab, forked from a warm process."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from experiments.lab.lab import Lab
from experiments.lab.programs.warm import fork_into
from experiments.lab.topology import load_topology
from tests.lab.nat_probe import LIMIT_S

pytestmark = pytest.mark.netns


def report(pipe: Connection, server: str) -> None:
    """Runs in a host: what it sees of itself and of the network."""
    with socket.create_connection((server, 7400), LIMIT_S):
        pipe.send((os.getpid(), str(Path("/proc/self/ns/net").readlink()), Path("/etc/hosts").read_text()))
        pipe.recv()


def test_a_function_runs_in_its_host_until_the_lab_ends() -> None:
    context = mp.get_context("forkserver")
    ours, theirs = context.Pipe()
    with Lab(load_topology("nat_two_homes")) as lab:
        with lab.socket("boot", socket.SOCK_STREAM, 7400) as listener:
            listener.listen()
            listener.settimeout(LIMIT_S)
            process = fork_into(context, lab, "alice", report, theirs, "boot.example")
            with listener.accept()[0] as accepted:
                assert accepted.getpeername()[0] == lab.public_address("alice")
        assert ours.poll(LIMIT_S)
        pid, namespace, hosts = ours.recv()
        assert (pid, namespace) == (process.pid, f"net:[{lab.namespace_path('alice').stat().st_ino}]")
        assert "boot.example" in hosts
    process.join(LIMIT_S)
    assert process.exitcode == -9
