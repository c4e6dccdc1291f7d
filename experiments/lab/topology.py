"""What a lab consists of: routers and hosts around one internet, read from a TOML file.

- A host without `behind` has a public address. One behind a router has a private address, except behind a `firewall`, which
  translates nothing and drops whatever was not asked for: its hosts have public addresses that nobody can dial.
- A router behind a router makes a double NAT; the outer one is then the provider's (CGNAT, 100.64.0.0/10 inside).
- Routers drop unsolicited packets, as home routers do. (One that lets them pass to itself would answer them, and Linux would
  then map the next connection of its hosts to another port: punching would fail for a reason that no real router has.)
- `line` is the access line of a host or router: megabits per second up and down (0: no limit) and one-way delay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.simulation.scenario.fields import Fields, read_toml

FOLDER = Path(__file__).parent / "topologies"
INTERNET = "internet"
"""Name of the namespace that everything public hangs on."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,15}")
_DNS_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
MOST_MBPS = 10_000.0
MOST_DELAY_MS = 1_000.0


class Nat(Enum):
    """How a router translates and filters (RFC 4787: mapping, filtering). All of them translate UDP and TCP alike."""

    FULL_CONE = "full_cone"
    """Same public port for every destination; anybody may answer to it."""
    ADDRESS_RESTRICTED = "address_restricted"
    """Same public port; only addresses that the host has sent to may answer, from any port."""
    PORT_RESTRICTED = "port_restricted"
    """Same public port; only the exact address and port that the host has sent to may answer. Most home routers."""
    SYMMETRIC = "symmetric"
    """Another public port for every destination: it cannot be foretold, so it cannot be punched."""
    FIREWALL = "firewall"
    """No translation; inbound only what belongs to a connection from inside."""


@dataclass(frozen=True, slots=True)
class Line:
    """An access line. 0 is no limit and no delay."""

    up_mbps: float = 0.0
    down_mbps: float = 0.0
    delay_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the router that its owner forwarded to a host by hand (same port, TCP and UDP)."""

    port: int
    host: str


@dataclass(frozen=True, slots=True)
class Router:
    name: str
    nat: Nat
    behind: str = ""
    line: Line = Line()
    forwards: tuple[Forward, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """`dns`: a name under which all other hosts know its address."""

    name: str
    behind: str = ""
    line: Line = Line()
    dns: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """Routers come before what is behind them."""

    name: str
    description: str
    hosts: tuple[Host, ...]
    routers: tuple[Router, ...] = ()
    _by_name: dict[str, Host | Router] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Raises InputError that names the first thing wrong."""
        for part in self.parts:
            self._check(part)
            self._by_name[part.name] = part
        for router in self.routers:
            for forward in router.forwards:
                if getattr(self._by_name.get(forward.host), "behind", None) != router.name:
                    raise InputError(self.name, f"{router.name}.forward", f"{forward.host!r} is no host behind {router.name}")

    @property
    def parts(self) -> tuple[Host | Router, ...]:
        """Everything but the internet, in the order in which it can be made."""
        return (*self.routers, *self.hosts)

    def __getitem__(self, name: str) -> Host | Router:
        return self._by_name[name]

    def router(self, name: str) -> Router:
        """Raises KeyError when there is no router of this name."""
        part = self._by_name[name]
        if not isinstance(part, Router):
            raise KeyError(name)
        return part

    def routers_of(self, name: str) -> tuple[Router, ...]:
        """The routers between a host and the internet, nearest first."""
        found: list[Router] = []
        behind = self._by_name[name].behind
        while behind:
            found.append(self.router(behind))
            behind = found[-1].behind
        return tuple(found)

    def _check(self, part: Host | Router) -> None:
        if _NAME.fullmatch(part.name) is None or part.name == INTERNET:
            raise InputError(self.name, part.name, "expected a name of 1-16 small letters, digits and _, other than internet")
        if part.name in self._by_name:
            raise InputError(self.name, part.name, "this name is used twice")
        if not part.behind:
            return
        outer = self._by_name.get(part.behind)
        if not isinstance(outer, Router):
            raise InputError(self.name, f"{part.name}.behind", f"{part.behind!r} is no router listed before it")
        if isinstance(part, Router) and Nat.FIREWALL in (part.nat, outer.nat):
            raise InputError(self.name, f"{part.name}.behind", "a firewall stands at the internet, with hosts behind it only")


def names() -> list[str]:
    """The topologies that come with the lab."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_topology(name_or_file: str) -> Topology:
    """By the name of one that comes with the lab, or a TOML file. Raises InputError."""
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = FOLDER / f"{name_or_file}.toml"
        if not path.is_file():
            raise InputError("topology", name_or_file, f"expected a TOML file or one of {', '.join(names())}")
    fields = read_toml(path)
    topology = Topology(
        name=fields.text("name"),
        description=fields.text("description"),
        routers=tuple(map(_router, fields.tables("routers"))) if fields.has("routers") else (),
        hosts=tuple(map(_host, fields.tables("hosts"))),
    )
    fields.finish()
    return topology


def _router(fields: Fields) -> Router:
    nat = fields.text("nat")
    if nat not in {kind.value for kind in Nat}:
        raise fields.error("nat", f"expected one of {', '.join(kind.value for kind in Nat)}, got {nat!r}")
    forwards = fields.texts("forwards") if fields.has("forwards") else ()
    router = Router(
        name=fields.text("name"),
        nat=Nat(nat),
        behind=fields.text("behind", ""),
        line=_line(fields),
        forwards=tuple(_forward(fields, text) for text in forwards),
    )
    fields.finish()
    return router


def _host(fields: Fields) -> Host:
    host = Host(fields.text("name"), fields.text("behind", ""), _line(fields), fields.text("dns", ""))
    if host.dns and _DNS_NAME.fullmatch(host.dns) is None:
        raise fields.error("dns", f"expected a name such as relay.example, got {host.dns!r}")
    fields.finish()
    return host


def _line(fields: Fields) -> Line:
    up = fields.number("up_mbps", 0.0, positive=False, most=MOST_MBPS)
    down = fields.number("down_mbps", 0.0, positive=False, most=MOST_MBPS)
    return Line(up, down, fields.number("delay_ms", 0.0, positive=False, most=MOST_DELAY_MS))


def _forward(fields: Fields, text: str) -> Forward:
    port, _, host = text.partition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536 and host):
        raise fields.error("forwards", f"expected PORT:HOST, got {text!r}")
    return Forward(int(port), host)
