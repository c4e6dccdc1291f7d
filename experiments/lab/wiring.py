"""Carries out a plan: makes the namespaces of a lab and the wires between them, and runs scripts inside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from experiments.lab import runs
from experiments.lab.plan import Planner, Wire
from experiments.lab.processes import inside_command
from experiments.lab.topology import Host, Router

COMMAND_S = 30.0
_DELAY_PIPE = Path(__file__).parent / "delay_pipe.py"


class LabFailed(RuntimeError):
    """A command of the lab failed; the text has the command and what it said."""


class Wiring:
    """What the namespaces of one lab are connected by. `wires` are those of now, by the node whose access line each is."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._pipes: dict[str, subprocess.Popen[bytes]] = {}
        self.wires: dict[str, Wire] = {}

    def namespace(self, node: str) -> str:
        """For `ip netns exec`."""
        return self._planner.namespace(node)

    def files(self, node: str) -> Path:
        """The files that a host sees in /etc in place of the machine's."""
        return runs.ETC_FILES / self.namespace(node)

    def build(self) -> None:
        """Everything that the topology names. Raises LabFailed."""
        topology = self._planner.topology
        for node in self._planner.nodes():
            _command(["ip", "netns", "add", self.namespace(node)], "")
            self.sh(node, self._planner.first_script(node))
        for part in topology.parts:
            self.connect(part, part.behind)
        addresses = {host.name: self.wires[host.name].address for host in topology.hosts}
        for router in topology.routers:
            self.sh(router.name, self._planner.router_script(router, addresses))
        self._write_files()

    def connect(self, part: Host | Router, behind: str) -> None:
        """A wire from a host or router to what it is behind, with a fresh address."""
        wire = self._planner.wire(part, behind)
        if wire.line.delay_ms:
            self._pipes[wire.node] = self._delayed(wire)
        else:
            self.sh(wire.node, self._planner.veth_script(wire))
        self.wires[wire.node] = wire
        self.sh(wire.node, self._planner.node_script(wire))
        self.sh(wire.parent, self._planner.parent_script(wire))

    def disconnect(self, node: str) -> None:
        """Remove the access line of a host or router."""
        self.sh(node, f"ip link delete {self.wires[node].device}\n")
        if pipe := self._pipes.pop(node, None):
            pipe.communicate(timeout=COMMAND_S)

    def set_up(self, node: str, up: bool) -> None:
        """Bring an access line up or down, with the routes that lead over it."""
        wire = self.wires[node]
        self.sh(node, f"ip link set {wire.device} {'up' if up else 'down'}\n")
        if up:
            self.sh(node, self._planner.route_script(wire))

    def sh(self, node: str, script: str) -> None:
        """Run a script of `sh -e` in a namespace. Raises LabFailed."""
        _command(["ip", "netns", "exec", self.namespace(node), "sh", "-e"], script)

    def wait(self) -> None:
        """The programs that delay lines have been killed: wait until they are gone."""
        for pipe in self._pipes.values():
            pipe.communicate(timeout=COMMAND_S)

    def _delayed(self, wire: Wire) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-I", "-S", str(_DELAY_PIPE), wire.device, wire.port, str(wire.line.delay_ms)]
        command = inside_command(self.namespace(wire.node), program)
        pipe = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        assert pipe.stdout is not None
        if pipe.stdout.readline() != b"ready\n":
            pipe.wait(COMMAND_S)
            raise LabFailed(f"the delayed wire of {wire.node} did not start")
        self.sh(wire.node, f"ip link set {wire.port} netns {self.namespace(wire.parent)}\n")
        return pipe

    def _write_files(self) -> None:
        """What the hosts see in /etc: the names of the lab, and no name server (the machine's own cannot be reached)."""
        hosts = self._planner.topology.hosts
        named = [f"{self.wires[host.name].address.ip} {host.dns}" for host in hosts if host.dns]
        for host in hosts:
            folder = self.files(host.name)
            folder.mkdir(parents=True)
            (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *named, ""]))
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")


def _command(command: list[str], script: str) -> None:
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    if done.returncode:
        raise LabFailed(f"{' '.join(command)}: {done.stderr.strip()}\n{script}")
