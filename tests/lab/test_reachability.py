"""What libp2p's own protocols tell a peer about its NAT, behind each kind of router, with an unforced stock configuration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from experiments.lab.lab import Lab
from experiments.lab.programs.agent import Agent, AgentError, Agents
from experiments.lab.topology import load_topology
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions

pytestmark = pytest.mark.netns

PORT = 31330
KEEPS_PORT = {"full_cone", "addr_restr", "port_restr", "double_nat", "firewalled", "forwarded"}
DIALLED_BACK = {"full_cone", "addr_restr", "forwarded"}
HOSTS = sorted(KEEPS_PORT | {"symmetric"})


def options(listen: str, *initial: Agent) -> P2POptions:
    peers = parse_initial_peers([maddr for agent in initial for maddr in agent.maddrs], {})
    mode = "client" if "0.0.0.0" in listen else "server"
    return P2POptions(peers, (listen,), dht_mode=mode, check_identity=False, nat_port_map=False)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, dict[str, Agent]]]:
    """Two public peers, and one behind each kind of router, all of which know the public ones."""
    folder: Path = tmp_path_factory.mktemp("agents")
    with Lab(load_topology("nat_kinds")) as lab:
        agents = Agents(lab, folder)
        started: dict[str, Agent] = {}
        for host in ("first", "second"):
            listen = f"/ip4/{lab.public_address(host)}/tcp/31337"
            started[host] = agents.start(host, options(listen, *started.values()))
        hidden = options(f"/ip4/0.0.0.0/tcp/{PORT}", *started.values())
        started |= at_once(lambda host: agents.start(host, hidden))
        yield lab, started
        for agent in started.values():
            agent.stop()


def at_once(ask: Callable[[str], Any]) -> dict[str, Any]:
    """What each host's agent answers; most of these questions are waits."""
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        return dict(zip(HOSTS, pool.map(ask, HOSTS), strict=True))


@pytest.mark.parametrize("host", HOSTS)
def test_two_observers_tell_whether_a_nat_keeps_ports(swarm: tuple[Lab, dict[str, Agent]], host: str) -> None:
    lab, agents = swarm
    observed = {agents[host].ask("identify", agents[public].peer)[0] for public in ("first", "second")}
    addresses = {maddr.split("/")[2] for maddr in observed}
    assert addresses == {lab.public_address(host)}
    assert (len(observed) == 1) == (host in KEEPS_PORT)


def test_a_dial_back_reaches_exactly_those_who_can_be_dialled(swarm: tuple[Lab, dict[str, Agent]]) -> None:
    lab, agents = swarm
    first = agents["first"].peer
    answers = at_once(lambda host: agents[host].try_ask("dial_back", first, (), 10.0 if host in DIALLED_BACK else 2.0))
    for host, answer in answers.items():
        if host in DIALLED_BACK:
            assert answer == (f"/ip4/{lab.public_address(host)}/tcp/{PORT}", "")
        else:
            assert "no answer within 2 s" in answer


@pytest.mark.parametrize("host", HOSTS)
def test_a_reserved_peer_is_called_by_a_stranger_through_the_relay(swarm: tuple[Lab, dict[str, Agent]], host: str) -> None:
    _, agents = swarm
    relay, callee = agents["first"], agents[host]
    caller = agents["symmetric" if host != "symmetric" else "port_restr"]
    lasts_s, circuit_bytes, circuit_s = callee.ask("reserve", relay.peer)
    assert lasts_s > 60
    assert circuit_bytes >= 128 << 10
    assert circuit_s >= 120
    assert caller.ask("connect", callee.peer, f"{relay.maddrs[0]}/p2p-circuit/p2p/{callee.peer}") == ""
    caller.ask("call", callee.peer)
    assert all("p2p-circuit" in path for path in caller.ask("paths", callee.peer))


def test_nobody_reserves_at_a_peer_that_is_not_there(swarm: tuple[Lab, dict[str, Agent]]) -> None:
    _, agents = swarm
    nobody = "12D3KooWJipn7Q4KYoVJAFxdqnV74uTGeKiNhUA62EEPq3Sp8cct"
    with pytest.raises(AgentError, match="StreamFailed"):
        agents["port_restr"].ask("reserve", nobody)


@pytest.fixture(scope="module")
def reached(swarm: tuple[Lab, dict[str, Agent]]) -> tuple[list[str], dict[str, tuple[str, tuple[str, ...]]]]:
    """The circuit relays that all were told of, and the path and addresses of each host then."""
    _, agents = swarm
    relays = [*agents["first"].maddrs, *agents["second"].maddrs]
    return relays, at_once(lambda host: agents[host].ask("become_reachable", relays))


@pytest.mark.parametrize("host", HOSTS)
def test_a_peer_knows_how_it_is_reached_and_where(
    swarm: tuple[Lab, dict[str, Agent]], reached: tuple[list[str], dict[str, tuple[str, tuple[str, ...]]]], host: str
) -> None:
    lab, _ = swarm
    relays, found = reached
    path, maddrs = found[host]
    circuits = {f"{relay}/p2p-circuit" for relay in relays}
    if host in DIALLED_BACK:
        assert path == "public"
        assert maddrs[0] == f"/ip4/{lab.public_address(host)}/tcp/{PORT}"
        assert set(maddrs[1:]) == circuits
    else:
        assert path == "relayed"
        assert set(maddrs) == circuits


PUNCHED = [
    ("port_restr", "addr_restr"),
    ("port_restr", "double_nat"),
    ("firewalled", "port_restr"),
    ("symmetric", "addr_restr"),
]
IMPOSSIBLE = [("symmetric", "port_restr"), ("symmetric", "double_nat")]


@pytest.mark.parametrize(("dials", "waits"), PUNCHED + IMPOSSIBLE)
def test_punching_needs_ports_that_are_kept_or_a_wide_filter(
    swarm: tuple[Lab, dict[str, Agent]], dials: str, waits: str
) -> None:
    _, agents = swarm
    one, other, boot = agents[dials], agents[waits], agents["first"]
    one.ask("disconnect", other.peer)
    at_dialler, at_waiting = (agent.ask("identify", boot.peer)[0] for agent in (one, other))
    _, _, address, _, port = at_dialler.split("/")
    other.ask("wait_at_door", PORT, address, int(port))
    reason = one.ask("connect", other.peer, f"{at_waiting}/p2p/{other.peer}", 4.0)
    if (dials, waits) in IMPOSSIBLE:
        assert reason
        assert "nothing came" in other.ask("punch_result")
    else:
        assert reason == ""
        assert any("p2p-circuit" not in path for path in one.ask("paths", other.peer))
        one.ask("push", other.peer, 1 << 20)
        other.ask("push", one.peer, 1 << 20)


@pytest.mark.slow
def test_a_relay_that_restarts_is_reserved_again(tmp_path: Path) -> None:
    """Same identity, same address: the peer behind NAT is called through it again, by a stranger who knew nobody before."""
    identity = str(tmp_path / "identity")
    with Lab(load_topology("nat_kinds")) as lab:
        agents = Agents(lab, tmp_path)
        listen = f"/ip4/{lab.public_address('first')}/tcp/31337"
        boot = agents.start("first", options(listen), identity_path=identity)
        peer = agents.start("port_restr", options(f"/ip4/0.0.0.0/tcp/{PORT}", boot))
        circuits = (f"{boot.maddrs[0]}/p2p-circuit",)
        assert peer.ask("become_reachable", boot.maddrs) == ("relayed", circuits)
        boot.kill()
        wait_until(lambda: peer.ask("reachable")[1] == ())
        again = agents.start("first", options(listen), identity_path=identity)
        assert again.maddrs == boot.maddrs
        wait_until(lambda: peer.ask("reachable")[1] == circuits)
        stranger = agents.start("symmetric", options(f"/ip4/0.0.0.0/tcp/{PORT}", again))
        assert stranger.ask("connect", peer.peer, f"{circuits[0]}/p2p/{peer.peer}") == ""
        stranger.ask("call", peer.peer)
        for agent in (stranger, peer, again):
            agent.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    """Asking takes a round trip through the agent; the bound only ends a test that hangs."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
