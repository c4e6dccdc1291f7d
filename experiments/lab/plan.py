"""A topology as commands: what has to run in which namespace. Pure text, nothing is executed here.

Each host and router is a namespace with one `Wire` to the namespace that it hangs on: the internet (a bridge), or the inner
bridge of a router. Scripts are for `sh -e` inside the namespace. No device is ever made in the machine's own namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.lab.addresses import Address, AddressBook
from experiments.lab.nat_rules import BRIDGE, OUTER_DEVICE, nat_rules
from experiments.lab.topology import INTERNET, Host, Line, Router, Topology

HOST_DEVICE = "eth0"

_IPV6_SETTINGS = ("accept_dad", 0), ("accept_ra", 0), ("keep_addr_on_down", 1)
_QUEUE_MS = 50
_LEAST_BURST = 64 << 10


@dataclass(frozen=True, slots=True)
class Wire:
    """The access line of a node: `device` in its namespace, `port` on the bridge of `parent`."""

    node: str
    device: str
    parent: str
    port: str
    line: Line
    address: Address


class Planner:
    """Gives addresses and ports; `prefix` begins the name of every namespace of this run."""

    def __init__(self, topology: Topology, prefix: str, ipv6: bool) -> None:
        self.topology = topology
        self._prefix = prefix
        self._ipv6 = ipv6
        self._book = AddressBook(topology)
        self._ports = 0

    def namespace(self, node: str) -> str:
        return f"{self._prefix}{node}"

    def nodes(self) -> list[str]:
        """All namespaces, in the order in which they can be made."""
        return [INTERNET, *(part.name for part in self.topology.parts)]

    def wire(self, part: Host | Router, behind: str) -> Wire:
        """A new wire for a node, with a fresh address. Raises ValueError when no address is left."""
        self._ports += 1
        device = OUTER_DEVICE if isinstance(part, Router) else HOST_DEVICE
        return Wire(part.name, device, behind or INTERNET, f"port{self._ports}", part.line, self._book.give(part, behind))

    # ---- scripts

    def first_script(self, node: str) -> str:
        """What a namespace gets before it has a wire."""
        lines = ["ip link set lo up", *self._bare_ipv6()]
        if node == INTERNET:
            lines += _bridge()
        elif isinstance(router := self.topology[node], Router):
            inside = self._book.gateway(router)
            lines += [*_bridge(), f"ip address add {inside.ip}/{inside.prefix_bits} dev {BRIDGE}"]
            lines.append("echo 1 > /proc/sys/net/ipv4/ip_forward")
            if self._ipv6:
                lines.append("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
                lines.append(f"ip -6 address add {inside.ip6}/128 dev {BRIDGE} nodad")
        return _script(lines)

    def veth_script(self, wire: Wire) -> str:
        """In the node: an undelayed wire."""
        parent = self.namespace(wire.parent)
        return _script([f"ip link add {wire.device} type veth peer name {wire.port} netns {parent}"])

    def node_script(self, wire: Wire) -> str:
        """In the node, when the wire is there: address, routes, upload limit."""
        address, device = wire.address, wire.device
        lines = [f"ip address add {address.ip}/{address.prefix_bits} dev {device}"]
        if self._ipv6 and address.ip6:
            lines.append(f"ip -6 address add {address.ip6}/{128 if address.gateway6 else 64} dev {device} nodad")
        if device == OUTER_DEVICE:  # a firewall answers for its hosts, at once
            lines += [f"echo 0 > /proc/sys/net/{family}/neigh/{device}/proxy_delay" for family in self._families]
            lines += [f"echo 1 > /proc/sys/net/ipv6/conf/{device}/proxy_ndp"] if self._ipv6 else []
        return _script([*lines, f"ip link set {device} up", *_limit(device, wire.line.up_mbps)]) + self.route_script(wire)

    def route_script(self, wire: Wire) -> str:
        """In the node, whenever its wire comes up: the kernel forgets routes over a wire that is down."""
        address, lines = wire.address, []
        if address.gateway:
            lines.append(f"ip route replace default via {address.gateway} dev {wire.device} onlink")
        if self._ipv6 and address.ip6 and address.gateway6:
            lines.append(f"ip -6 route replace default via {address.gateway6} dev {wire.device} onlink")
        return _script(lines)

    def parent_script(self, wire: Wire) -> str:
        """In the namespace that the wire leads to: the port, download limit, and what a router must know of a host."""
        lines = [f"ip link set {wire.port} master {BRIDGE}", f"ip link set {wire.port} up"]
        lines += _limit(wire.port, wire.line.down_mbps)
        if wire.address.routed:
            lines.append(f"ip route replace {wire.address.ip}/32 dev {BRIDGE}")
            lines.append(f"ip neighbour replace proxy {wire.address.ip} dev {OUTER_DEVICE}")
        if self._ipv6 and wire.address.ip6 and wire.address.gateway6:
            lines.append(f"ip -6 route replace {wire.address.ip6}/128 dev {BRIDGE}")
            lines.append(f"ip -6 neighbour replace proxy {wire.address.ip6} dev {OUTER_DEVICE}")
        return _script(lines)

    def router_script(self, router: Router, hosts: Mapping[str, Address]) -> str:
        """In a router: translation and filter. `hosts`: addresses of its hosts, for forwards."""
        forwards = [(forward.port, str(hosts[forward.host].ip)) for forward in router.forwards]
        return _script(["nft -f - <<'RULES'", nat_rules(router, forwards), "RULES"])

    @property
    def _families(self) -> tuple[str, ...]:
        return ("ipv4", "ipv6") if self._ipv6 else ("ipv4",)

    def _bare_ipv6(self) -> list[str]:
        if not self._ipv6:
            return []
        conf = "/proc/sys/net/ipv6/conf"
        return [f"echo {value} > {conf}/{which}/{what}" for which in ("all", "default") for what, value in _IPV6_SETTINGS]


def _bridge() -> list[str]:
    return [f"ip link add {BRIDGE} type bridge", f"ip link set {BRIDGE} up"]


def _limit(device: str, mbps: float) -> list[str]:
    """A token bucket that passes 10 ms at a time and holds 50 ms, like a decent modem."""
    if not mbps:
        return []
    burst = max(_LEAST_BURST, int(mbps * 1e6 / 8 * 0.010))
    return [f"tc qdisc replace dev {device} root tbf rate {mbps:g}mbit burst {burst} latency {_QUEUE_MS}ms"]


def _script(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
