"""Topology files are read strictly, and become distinct addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.lab.plan import Planner
from experiments.lab.topology import Host, Nat, Router, Topology, load_topology, names
from gwtf_p2p.protocol.errors import InputError

HOME = '[[routers]]\nname = "home"\nnat = "symmetric"\n'
HOSTS = '[[hosts]]\nname = "a"\nbehind = "home"\n'


@pytest.mark.parametrize("name", names())
def test_every_topology_of_the_lab_is_valid_and_has_distinct_addresses(name: str) -> None:
    topology = load_topology(name)
    planner = Planner(topology, "x-", ipv6=True)
    wires = [planner.wire(part, part.behind) for part in topology.parts]
    assert len({wire.address.ip for wire in wires}) == len(wires)
    assert topology.name == name


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        (HOME.replace("symmetric", "conic") + HOSTS, "routers[0].nat", "full_cone"),
        (HOME + HOSTS.replace("home", "away"), "a.behind", "no router"),
        (HOME + HOSTS + HOSTS, "a", "twice"),
        (HOME + HOSTS + "mtu = 9000\n", "hosts[0].mtu", "unknown field"),
        (HOME + HOSTS + "up_mbps = -1\n", "hosts[0].up_mbps", "number"),
        (HOME + 'forwards = ["31330"]\n' + HOSTS, "routers[0].forwards", "PORT:HOST"),
        (HOME + 'forwards = ["31330:b"]\n' + HOSTS, "home.forward", "no host behind home"),
        (HOME + HOSTS + 'dns = "a b"\n', "hosts[0].dns", "relay.example"),
        (HOME + HOSTS.replace('"a"', '"internet"'), "internet", "other than internet"),
        (HOME + '[[routers]]\nname = "wall"\nnat = "firewall"\nbehind = "home"\n' + HOSTS, "wall.behind", "at the internet"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, field: str, expected: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(f'name = "t"\ndescription = "d"\n{text}')
    with pytest.raises(InputError) as caught:
        load_topology(str(path))
    assert caught.value.field == field
    assert expected in caught.value.expected


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="nat_two_homes"):
        load_topology("nat_three_homes")


def test_addresses_end_with_an_error_not_with_doubles() -> None:
    topology = Topology("t", "", (Host("a", behind="home"),), (Router("home", Nat.FULL_CONE),))
    planner = Planner(topology, "x-", ipv6=False)
    given = set()
    with pytest.raises(ValueError, match="no address is left behind home"):
        while True:
            ip = planner.wire(topology["a"], "home").address.ip
            assert ip not in given
            given.add(ip)
