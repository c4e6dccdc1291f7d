"""Each kind of router behaves as its name says, measured with plain sockets."""

from __future__ import annotations

import socket

import pytest

from experiments.lab import runs
from experiments.lab.lab import Lab
from tests.lab.nat_probe import DROPPED_S, LIMIT_S, NatBehaviour, tcp_behaviour, udp_behaviour

pytestmark = pytest.mark.netns

EXPECTED = {
    "public": NatBehaviour("independent", "independent"),
    "full_cone": NatBehaviour("independent", "independent"),
    "addr_restr": NatBehaviour("independent", "address"),
    "port_restr": NatBehaviour("independent", "address_and_port"),
    "symmetric": NatBehaviour("address_and_port", "address_and_port"),
    "firewalled": NatBehaviour("independent", "address_and_port"),
    "double_nat": NatBehaviour("independent", "address_and_port"),
}


@pytest.mark.parametrize("host", EXPECTED)
def test_udp_behaviour(nat_kinds: Lab, host: str) -> None:
    assert udp_behaviour(nat_kinds, host) == EXPECTED[host]


@pytest.mark.parametrize("host", EXPECTED)
def test_tcp_behaviour(nat_kinds: Lab, host: str) -> None:
    assert tcp_behaviour(nat_kinds, host) == EXPECTED[host]


def test_a_port_forwarded_by_hand_is_open_to_strangers(nat_kinds: Lab) -> None:
    with nat_kinds.socket("forwarded", socket.SOCK_STREAM, 31330) as listener:
        listener.listen()
        listener.settimeout(LIMIT_S)
        with nat_kinds.socket("first", socket.SOCK_STREAM) as caller:
            caller.settimeout(LIMIT_S)
            caller.connect((nat_kinds.public_address("forwarded"), 31330))
            with listener.accept()[0]:
                pass


def test_a_private_address_means_nothing_behind_another_router(nat_kinds: Lab) -> None:
    with nat_kinds.socket("port_restr", socket.SOCK_STREAM) as caller:
        caller.settimeout(LIMIT_S)
        with pytest.raises(OSError, match="unreachable"):
            caller.connect((str(nat_kinds.address("double_nat").ip), 9))


@pytest.mark.parametrize("host", ["public", "port_restr", "firewalled"])
def test_ipv6_goes_out_and_no_stranger_comes_in_through_a_router(nat_kinds: Lab, host: str) -> None:
    server, inner = str(nat_kinds.address("first").ip6), str(nat_kinds.address(host).ip6)
    with nat_kinds.inside("first"):
        listener = socket.create_server((server, 7010), family=socket.AF_INET6)
    with nat_kinds.inside(host):
        own = socket.create_server((inner, 7010), family=socket.AF_INET6)
        out = socket.create_connection((server, 7010), LIMIT_S)
    with listener, own, out:
        listener.settimeout(LIMIT_S)
        with listener.accept()[0]:
            pass
        with nat_kinds.inside("second"):
            stranger = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        with stranger:
            stranger.settimeout(LIMIT_S if host == "public" else DROPPED_S)
            if host == "public":
                stranger.connect((inner, 7010))
            else:
                with pytest.raises(TimeoutError):
                    stranger.connect((inner, 7010))


def test_nothing_of_the_lab_leads_out_of_it(nat_kinds: Lab) -> None:
    """Every device has its other end in the lab, and an address of the real internet is nowhere."""
    for node in ("internet", "first", "port_restr", "router_port"):
        devices = nat_kinds.run(node, ["ip", "-o", "link"]).stdout.splitlines()
        ends = [line.rpartition("link-netns ")[2] for line in devices if "@" in line]
        assert ends
        assert all(end.startswith(runs.prefix(nat_kinds.run_name)) for end in ends)
        with nat_kinds.socket(node, socket.SOCK_STREAM) as caller:
            caller.settimeout(LIMIT_S)
            with pytest.raises(OSError, match="unreachable"):
                caller.connect(("8.8.8.8", 53))
