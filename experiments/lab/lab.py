"""Make a topology out of network namespaces, run programs in its hosts, change it, and remove it.

    with Lab(load_topology("nat_two_homes")) as lab:
        peer = lab.start("alice", ["gwtf", "peer", ...])

Everything is gone at the end of the block, however it ends; `runs` says what happens when this process is killed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from experiments.lab import runs
from experiments.lab.addresses import Address
from experiments.lab.netns import inside
from experiments.lab.plan import Planner
from experiments.lab.processes import HostProcess, inside_command, start_process
from experiments.lab.topology import INTERNET, Topology
from experiments.lab.wiring import COMMAND_S, Wiring

_CUT = "cut_off"
_PACKAGES = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables", "setpriv": "util-linux", "unshare": "util-linux"}


def why_unavailable() -> str:
    """Why there can be no lab on this machine; empty when there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid():
        return "network namespaces need root"
    missing = sorted({package for program, package in _PACKAGES.items() if shutil.which(program) is None})
    if missing:
        return f"needs the Debian packages {', '.join(missing)}"
    rule = "add table ip probe; add chain ip probe nat { type nat hook prerouting priority 0; }"
    probe = ["unshare", "--net", "--mount", "nft", rule]
    tried = subprocess.run(probe, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    return f"no network namespaces with NAT here: {tried.stderr.strip()}" if tried.returncode else ""


class Lab:
    """A running topology. Use it as a context manager. Hosts and routers are called by their names in the topology."""

    def __init__(self, topology: Topology, logs: Path | None = None) -> None:
        self.topology = topology
        self._logs = logs
        self._processes: list[HostProcess] = []
        self._wiring: Wiring | None = None
        self._run: runs.Run | None = None

    # ---- life

    def __enter__(self) -> Lab:
        self._run = runs.begin()
        try:
            planner = Planner(self.topology, runs.prefix(self._run.name), Path("/proc/net/if_inet6").exists())
            self._wiring = Wiring(planner)
            self._wiring.build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop every program and remove the namespaces. May be called twice."""
        if self._run is None:
            return
        self._run.end()
        for process in self._processes:
            process.popen.wait(COMMAND_S)  # killed with everything inside
        if self._wiring is not None:
            self._wiring.wait()
        self._run = None

    @property
    def wiring(self) -> Wiring:
        """The namespaces and what connects them; a script for one of them is run by `wiring.sh`."""
        assert self._wiring is not None, "the lab is up inside its `with` block only"
        return self._wiring

    @property
    def run_name(self) -> str:
        assert self._run is not None, "the lab is up inside its `with` block only"
        return self._run.name

    @property
    def janitor_pid(self) -> int:
        assert self._run is not None, "the lab is up inside its `with` block only"
        return self._run.janitor_pid

    @property
    def logs(self) -> Path:
        """Where logs go when nothing else was said: removed with the lab."""
        return self._logs or runs.folder(self.run_name) / "logs"

    # ---- looking

    def namespace(self, name: str) -> str:
        """For `ip netns exec`."""
        return self.wiring.namespace(name)

    def namespace_path(self, name: str) -> Path:
        return runs.NAMESPACES / self.namespace(name)

    def address(self, name: str) -> Address:
        """The address that a host or router has now."""
        return self.wiring.wires[name].address

    def public_address(self, name: str) -> str:
        """The IPv4 address under which the internet sees a host."""
        wires = self.wiring.wires
        wire = wires[name]
        while wire.parent != INTERNET and not wire.address.routed:
            wire = wires[wire.parent]
        return str(wire.address.ip)

    def inside(self, name: str) -> AbstractContextManager[None]:
        """Sockets made in this block are the host's."""
        return inside(self.namespace_path(name))

    def socket(self, name: str, kind: socket.SocketKind, port: int = 0) -> socket.socket:
        """A bound IPv4 socket of a host, to be used from here."""
        with self.inside(name):
            made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("0.0.0.0", port))
        return made

    # ---- programs

    def run(self, host: str, argv: Sequence[str], limit_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        """Run a program in a host to its end. Raises subprocess.TimeoutExpired."""
        command = inside_command(self.namespace(host), argv)
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)

    def start(
        self, host: str, argv: Sequence[str], log: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> HostProcess:
        """Start a program in a host; it is stopped with the lab."""
        log = log or self.logs / f"{host}.{len(self._processes)}.log"
        process = start_process(host, inside_command(self.namespace(host), argv), log, environment)
        self._processes.append(process)
        return process

    # ---- changing

    def set_up(self, name: str, up: bool) -> None:
        """Pull the plug of a host's or router's line, or put it in again. A router forgets its mappings, as at a restart."""
        self.wiring.set_up(name, up)

    def move(self, name: str, behind: str | None = None) -> Address:
        """A host or router comes back with another address: behind the same router, behind another, or public ('')."""
        parent = self.wiring.wires[name].parent
        if behind is None:
            behind = "" if parent == INTERNET else parent
        self.wiring.disconnect(name)
        self.wiring.connect(self.topology[name], behind)
        return self.address(name)

    def cut_off(self, router: str, address: str) -> None:
        """Drop what passes this router from or to an address, as a filter on the way would, until `let_pass`."""
        self.wiring.sh(
            router, f"nft 'add table ip {_CUT}; add chain ip {_CUT} passing {{ type filter hook forward priority 1; }}'\n"
        )
        for end in ("saddr", "daddr"):
            self.wiring.sh(router, f"nft add rule ip {_CUT} passing ip {end} {address} drop\n")

    def let_pass(self, router: str) -> None:
        """Everything that was cut off."""
        self.wiring.sh(router, f"nft delete table ip {_CUT}\n")
