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
from experiments.lab.plan import Planner, Wire
from experiments.lab.processes import HostProcess, inside_command, start_process
from experiments.lab.topology import INTERNET, Host, Router, Topology

COMMAND_S = 30.0
_DELAY_PIPE = Path(__file__).parent / "delay_pipe.py"
_CUT = "cut_off"
_PACKAGES = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables", "setpriv": "util-linux", "unshare": "util-linux"}


class LabFailed(RuntimeError):
    """A command of the lab failed; the text has the command and what it said."""


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
        self._pipes: dict[str, subprocess.Popen[bytes]] = {}
        self._wires: dict[str, Wire] = {}
        self._run: runs.Run | None = None

    # ---- life

    def __enter__(self) -> Lab:
        self._run = runs.begin()
        try:
            self._planner = Planner(self.topology, runs.prefix(self._run.name), Path("/proc/net/if_inet6").exists())
            self._build()
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
        for pipe in self._pipes.values():
            pipe.communicate(timeout=COMMAND_S)
        self._run = None

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
        return self._planner.namespace(name)

    def namespace_path(self, name: str) -> Path:
        return runs.NAMESPACES / self.namespace(name)

    def files(self, name: str) -> Path:
        """The files that a host sees in /etc in place of the machine's."""
        return runs.ETC_FILES / self.namespace(name)

    def address(self, name: str) -> Address:
        """The address that a host or router has now."""
        return self._wires[name].address

    def public_address(self, name: str) -> str:
        """The IPv4 address under which the internet sees a host."""
        wire = self._wires[name]
        while wire.parent != INTERNET and not wire.address.routed:
            wire = self._wires[wire.parent]
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
        wire = self._wires[name]
        self._sh(name, f"ip link set {wire.device} {'up' if up else 'down'}\n")
        if up:
            self._sh(name, self._planner.route_script(wire))

    def move(self, name: str, behind: str | None = None) -> Address:
        """A host or router comes back with another address: behind the same router, behind another, or public ('')."""
        old = self._wires[name]
        if behind is None:
            behind = "" if old.parent == INTERNET else old.parent
        self._sh(name, f"ip link delete {old.device}\n")
        if pipe := self._pipes.pop(name, None):
            pipe.communicate(timeout=COMMAND_S)
        self._connect(self.topology[name], behind)
        return self.address(name)

    def cut_off(self, router: str, address: str) -> None:
        """Drop what passes this router from or to an address, as a filter on the way would, until `let_pass`."""
        self._sh(router, f"nft 'add table ip {_CUT}; add chain ip {_CUT} passing {{ type filter hook forward priority 1; }}'\n")
        for end in ("saddr", "daddr"):
            self._sh(router, f"nft add rule ip {_CUT} passing ip {end} {address} drop\n")

    def let_pass(self, router: str) -> None:
        """Everything that was cut off."""
        self._sh(router, f"nft delete table ip {_CUT}\n")

    # ---- making

    def _build(self) -> None:
        for node in self._planner.nodes():
            self._command(["ip", "netns", "add", self.namespace(node)], "")
            self._sh(node, self._planner.first_script(node))
        for part in self.topology.parts:
            self._connect(part, part.behind)
        addresses = {host.name: self.address(host.name) for host in self.topology.hosts}
        for router in self.topology.routers:
            self._sh(router.name, self._planner.router_script(router, addresses))
        self._write_files()

    def _connect(self, part: Host | Router, behind: str) -> None:
        wire = self._planner.wire(part, behind)
        if wire.line.delay_ms:
            self._pipes[wire.node] = self._delayed(wire)
        else:
            self._sh(wire.node, self._planner.veth_script(wire))
        self._wires[wire.node] = wire
        self._sh(wire.node, self._planner.node_script(wire))
        self._sh(wire.parent, self._planner.parent_script(wire))

    def _delayed(self, wire: Wire) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-I", "-S", str(_DELAY_PIPE), wire.device, wire.port, str(wire.line.delay_ms)]
        command = inside_command(self.namespace(wire.node), program)
        pipe = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        assert pipe.stdout is not None
        if pipe.stdout.readline() != b"ready\n":
            pipe.wait(COMMAND_S)
            raise LabFailed(f"the delayed wire of {wire.node} did not start")
        self._sh(wire.node, f"ip link set {wire.port} netns {self.namespace(wire.parent)}\n")
        return pipe

    def _write_files(self) -> None:
        """What the hosts see in /etc: the names of the lab, and no name server (the machine's own cannot be reached)."""
        named = [f"{self.address(host.name).ip} {host.dns}" for host in self.topology.hosts if host.dns]
        for host in self.topology.hosts:
            folder = self.files(host.name)
            folder.mkdir(parents=True)
            (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *named, ""]))
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")

    def _sh(self, node: str, script: str) -> None:
        self._command(["ip", "netns", "exec", self.namespace(node), "sh", "-e"], script)

    def _command(self, command: list[str], script: str) -> None:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        if done.returncode:
            raise LabFailed(f"{' '.join(command)}: {done.stderr.strip()}\n{script}")
