"""Ports mapped by a real router daemon, and reached by a stranger. Where it is not installed, skipped with the reason."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.lab.lab import Lab
from experiments.lab.programs.agent import Agents
from experiments.lab.programs.miniupnpd import OUTSIDE, mappings, start_miniupnpd, why_no_miniupnpd
from experiments.lab.topology import load_topology
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.nat import port_mapping
from gwtf_p2p.live.nat.nat_pmp import Gateway, MappingRefused, NatPmpGateway, NoGateway, default_router, find_pmp_gateway
from gwtf_p2p.live.nat.port_mapping import PortMapper
from gwtf_p2p.live.nat.upnp import find_upnp_gateway

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(why_no_miniupnpd()), reason=why_no_miniupnpd())]

PORT = 31330
LIMIT_S = 5.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("miniupnpd")
    with Lab(load_topology("nat_upnp")) as made:
        start_miniupnpd(made, "router", folder)
        start_miniupnpd(made, "router_inner", folder, outside="")
        yield made


def in_host(lab: Lab, host: str, body: Callable[[], Awaitable[Any]]) -> Any:
    """Run it in a host, in an event loop of its own."""

    async def bounded() -> Any:
        async with asyncio.timeout(8 * LIMIT_S):
            return await body()

    with lab.inside(host):
        return asyncio.run(bounded())


def reached(lab: Lab, host: str, port: int) -> bool:
    """Does a stranger's connection to the router's port come to a listener of this host?"""
    with lab.socket(host, socket.SOCK_STREAM, PORT) as listener, lab.socket("first", socket.SOCK_STREAM) as stranger:
        listener.listen()
        stranger.settimeout(1.0)
        try:
            stranger.connect((lab.public_address(host), port))
        except OSError:
            return False
        return True


async def pmp() -> Gateway:
    return await find_pmp_gateway(LIMIT_S)


async def old_pmp() -> Gateway:
    return NatPmpGateway(default_router(), LIMIT_S)


async def upnp() -> Gateway:
    return await find_upnp_gateway(LIMIT_S)


@pytest.mark.parametrize(("find", "kind"), [(pmp, "PCP"), (old_pmp, "NAT-PMP"), (upnp, "UPnP")])
def test_each_protocol_maps_renews_and_takes_back(lab: Lab, find: Callable[[], Awaitable[Gateway]], kind: str) -> None:
    async def use() -> None:
        gateway = await find()
        assert gateway.kind == kind
        granted = await gateway.map(PORT, PORT, 600)
        assert granted.external_ip == OUTSIDE
        assert reached(lab, "home", granted.external_port)
        assert await gateway.map(PORT, granted.external_port, 600) == granted
        await gateway.unmap(PORT, granted.external_port)

    assert not reached(lab, "home", PORT)
    in_host(lab, "home", use)
    assert mappings(lab, "router") == ""
    assert not reached(lab, "home", PORT)


def test_the_mapper_keeps_a_port_mapped_and_takes_it_back(lab: Lab) -> None:
    async def use() -> None:
        changed = asyncio.Event()
        mapper = PortMapper(changed.set, renew_s=0.05)
        assert await mapper.map_port(PORT) == f"/ip4/{OUTSIDE}/tcp/{PORT}"
        assert mapper.reason == ""
        assert reached(lab, "home", PORT)
        lab.run("router", ["nft", "flush", "chain", "inet", "miniupnpd", "prerouting"])  # as a restart of the router does
        while not await asyncio.to_thread(mappings, lab, "router"):
            pass
        assert not changed.is_set()  # it is the same address again
        await mapper.close()
        await mapper.close()

    in_host(lab, "home", use)
    assert mappings(lab, "router") == ""


def test_a_router_that_comes_later_is_found_when_the_machine_has_moved(lab: Lab) -> None:
    async def use() -> None:
        changed = asyncio.Event()
        mapper = PortMapper(changed.set)
        assert await mapper.map_port(PORT, 0.2) is None
        lab.move("plain", behind="router")
        mapper.look_again()
        await changed.wait()
        assert mapper.mapped is not None
        assert mapper.reason == ""
        await mapper.close()

    in_host(lab, "plain", use)
    lab.move("plain", behind="router_plain")
    assert mappings(lab, "router") == ""


def test_a_peer_behind_such_a_router_is_called_directly(lab: Lab, tmp_path: Path) -> None:
    """And its port is free again when it has left."""
    agents = Agents(lab, tmp_path)
    public = f"/ip4/{lab.public_address('first')}/tcp/31337"
    boot = agents.start("first", P2POptions((), (public,), nat_port_map=False, check_identity=False))
    listen = (f"/ip4/0.0.0.0/tcp/{PORT}",)
    initial = parse_initial_peers(boot.maddrs, {})
    home = agents.start("home", P2POptions(initial, listen, dht_mode="client", nat_port_map=False, check_identity=False))
    home.ask("become_reachable", boot.maddrs)
    end = time.monotonic() + 4 * LIMIT_S
    while (reachable := home.ask("reachable"))[0] != "public":
        assert time.monotonic() < end, reachable
    assert reachable[1][0] == f"/ip4/{lab.public_address('home')}/tcp/{PORT}"
    stranger = agents.start("second", P2POptions((), (), nat_port_map=False, check_identity=False))
    assert stranger.ask("connect", home.peer, f"{reachable[1][0]}/p2p/{home.peer}") == ""
    stranger.ask("push", home.peer, 1 << 20)
    assert all("p2p-circuit" not in path for path in stranger.ask("paths", home.peer))
    for agent in (stranger, home, boot):
        agent.stop()
    assert mappings(lab, "router") == ""


def test_a_port_that_somebody_else_has_gives_way_to_the_next(lab: Lab) -> None:
    async def neighbour() -> None:
        assert (await (await upnp()).map(PORT, PORT, 600)).external_port == PORT

    async def use() -> None:
        gateway = await upnp()
        granted = await gateway.map(PORT, PORT, 600)
        assert granted.external_port == PORT + 1
        assert reached(lab, "home", granted.external_port)
        await gateway.unmap(PORT, granted.external_port)

    async def neighbour_leaves() -> None:
        await (await upnp()).unmap(PORT, PORT)

    in_host(lab, "neighbour", neighbour)
    in_host(lab, "home", use)
    in_host(lab, "neighbour", neighbour_leaves)


def test_behind_a_second_nat_no_mapping_is_claimed(lab: Lab) -> None:
    async def use() -> None:
        mapper = PortMapper()
        assert await mapper.map_port(PORT) is None
        assert mapper.reason
        await mapper.close()

    in_host(lab, "double", use)
    assert mappings(lab, "router_inner") == ""


def test_a_router_that_maps_to_a_private_address_is_no_help(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    """Some routers do map there; this one is told that its outside address is the provider's."""
    monkeypatch.setattr(port_mapping, "is_public", lambda ip: ip != OUTSIDE)

    async def use() -> None:
        mapper = PortMapper()
        assert await mapper.map_port(PORT) is None
        assert f"is itself behind a NAT, at {OUTSIDE}" in mapper.reason
        assert mapper.outside_ip == OUTSIDE

    in_host(lab, "home", use)
    assert mappings(lab, "router") == ""


def test_a_router_that_maps_nothing_is_told_from_one_that_refuses(lab: Lab) -> None:
    async def silent() -> None:
        for find in (find_pmp_gateway, find_upnp_gateway):
            with pytest.raises(NoGateway):
                await find(1.0)

    async def refused() -> None:
        with pytest.raises(MappingRefused):
            await (await upnp()).map(80, 80, 600)  # the daemon's rules allow no such port

    in_host(lab, "plain", silent)
    in_host(lab, "home", refused)
