"""Every form of initial peer that is promised leads to the same bootstrap, from behind a router."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.lab.lab import Lab
from experiments.lab.programs.agent import Agent, Agents
from experiments.lab.topology import load_topology
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HAS_IPV6 = Path("/proc/net/if_inet6").exists()
DEAD = "/ip4/192.0.0.129/tcp/9/p2p/12D3KooWRahQcr9Awj8Jih9zivoS3f7A3W8RUsmXvj7cJ1NmQ4cK"
FORMS = {
    "ip4": "/ip4/{ip4}/tcp/31337/p2p/{peer}",
    "dns4": "/dns4/boot.example/tcp/31337/p2p/{peer}",
    "quic": "/ip4/{ip4}/udp/31337/quic-v1/p2p/{peer}",
    "ip6": "/ip6/{ip6}/tcp/31337/p2p/{peer}",
    "list": DEAD + ",/ip4/{ip4}/tcp/31337/p2p/{peer}",
}


@pytest.fixture(scope="module", params=["ed25519", "rsa"])
def bootstrap(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Agents, Agent]]:
    """One whose id begins with 12D3Koo, and one with Qm."""
    folder = tmp_path_factory.mktemp("initial")
    listens = ["/ip4/0.0.0.0/tcp/31337", "/ip4/0.0.0.0/udp/31337/quic-v1", *(["/ip6/::/tcp/31337"] if HAS_IPV6 else [])]
    with Lab(load_topology("nat_swarm")) as lab:
        agents = Agents(lab, folder)
        identity = {"identity_path": str(folder / "identity")} if request.param == "rsa" else {}
        boot = agents.start("boot", P2POptions(host_maddrs=tuple(listens), nat_port_map=False), **identity)
        assert boot.peer.startswith("Qm" if request.param == "rsa" else "12D3Koo")
        yield lab, agents, boot
        boot.stop()


@pytest.mark.parametrize("form", FORMS)
def test_a_peer_joins_by_it(bootstrap: tuple[Lab, Agents, Agent], form: str) -> None:
    lab, agents, boot = bootstrap
    if form == "ip6" and not HAS_IPV6:
        pytest.skip("this kernel has no IPv6")
    address = lab.address("boot")
    text = FORMS[form].format(ip4=address.ip, ip6=address.ip6, peer=boot.peer)
    peers = parse_initial_peers([], {"GWTF_INITIAL_PEERS": text})
    options = P2POptions(peers, ("/ip4/0.0.0.0/tcp/31330",), dht_mode="auto", check_identity=False, nat_port_map=False)
    joined = agents.start("port_restr", options)
    [path] = joined.ask("paths", boot.peer)
    transport = {"quic": f"/ip4/{address.ip}/udp/31337/quic-v1", "ip6": f"/ip6/{address.ip6}/tcp/31337"}
    assert path == transport.get(form, f"/ip4/{address.ip}/tcp/31337")
    joined.stop()
