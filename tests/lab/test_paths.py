"""The path between two peers: punched where the routers allow it, relayed where not; and circuits that end are no errors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.lab.lab import Lab
from experiments.lab.programs.agent import Agent, Agents
from experiments.lab.programs.observing import LabObserver
from experiments.lab.programs.training import Training
from experiments.lab.topology import Line, Topology, load_topology
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import Lending, P2POptions
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PathType

pytestmark = [pytest.mark.netns, pytest.mark.slow]

PORT, BOOT_PORT = 31330, 31337
PUSH_BYTES = 32 << 20
SMALL_BYTES, SHORT_S = 1 << 20, 2
GENEROUS_BYTES = Lending().circuit_bytes


class Swarm:
    """Agents that find the best path to each other, as running peers do."""

    def __init__(self, lab: Lab, folder: Path, *relay_flags: str) -> None:
        self.lab, self.agents = lab, Agents(lab, folder)
        self.options = {"relay_flags": relay_flags} if relay_flags else {}
        self.boot = self._relay()

    def _relay(self) -> Agent:
        here = (f"/ip4/{self.lab.public_address('boot')}/tcp/{BOOT_PORT}",)
        public = P2POptions(host_maddrs=here, is_public=True, check_identity=False, nat_port_map=False, **self.options)
        return self.agents.start("boot", public)

    def join(self, host: str) -> Agent:
        peers = parse_initial_peers(self.boot.maddrs, {})
        here = (f"/ip4/0.0.0.0/tcp/{PORT}",)
        hidden = P2POptions(peers, here, dht_mode="auto", check_identity=False, nat_port_map=False)
        agent = self.agents.start(host, hidden, with_paths=True)
        end = time.monotonic() + 60
        while not agent.ask("record").maddrs:
            assert time.monotonic() < end, f"{host} has no slot at the circuit relay"
        return agent

    @staticmethod
    def granting(
        budget_bytes: int, lab: Lab, folder: Path, hosts: Sequence[str], *relay_flags: str
    ) -> tuple[Swarm, list[Agent]]:
        """Of such circuits: p2pd's race between its two circuit relay services is lost now and then (see `public_relay`)."""
        while True:
            swarm = Swarm(lab, folder, *relay_flags)
            joined = [swarm.join(host) for host in hosts]
            if joined[0].ask("record").circuit_bytes == budget_bytes:
                return swarm, joined
            for agent in (*joined, swarm.boot):
                agent.stop()

    def introduce(self, one: Agent, other: Agent) -> None:
        """Both read the other's record, as from the DHT."""
        one.ask("learn", other.ask("record"))
        other.ask("learn", one.ask("record"))


def speeds(one: Agent, to: str) -> str:
    figures = [one.ask("push", to, PUSH_BYTES) for _ in range(3)]
    return f"{statistics.median(figures):.0f} ({min(figures):.0f}-{max(figures):.0f})"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(load_topology("nat_swarm")) as made:
        yield made


def test_tensors_go_direct_punched_or_relayed_as_the_routers_allow(lab: Lab, tmp_path: Path) -> None:
    """Two cone NATs are punched with the help of one public peer alone; a symmetric one leaves the relay."""
    hosts = ("port_restr", "port_restr2", "symmetric")
    swarm, (cone, other, symmetric) = Swarm.granting(GENEROUS_BYTES, lab, tmp_path, hosts)
    swarm.introduce(cone, other)
    swarm.introduce(cone, symmetric)
    rows = [("direct, NAT to public", speeds(cone, swarm.boot.peer))]
    past_p2pd = cone.ask("direct_bytes")
    assert past_p2pd >= PUSH_BYTES
    begin = time.monotonic()
    cone.ask("call", other.peer)
    first_s = time.monotonic() - begin
    rows.append(("punched, dialler to waiting", speeds(cone, other.peer)))
    rows.append(("punched, waiting to dialler", speeds(other, cone.peer)))
    rows.append(("relayed", speeds(cone, symmetric.peer)))
    print(f"first call between two cone NATs, punch included: {first_s:.2f} s")
    print(f"MB/s of {PUSH_BYTES >> 20} MiB, median of 3 (range)")
    for label, figure in rows:
        print(f"{label:30} {figure}")
    assert cone.ask("direct_bytes") == past_p2pd  # a punched path and a circuit are p2pd's
    assert cone.ask("kind", other.peer) == other.ask("kind", cone.peer) == "punched"
    assert any("p2p-circuit" not in path for path in cone.ask("paths", other.peer))  # the circuit may still stand beside it
    assert cone.ask("kind", symmetric.peer) == "relayed"
    for agent in (cone, other, symmetric, swarm.boot):
        agent.stop()


def test_a_transfer_goes_on_over_as_many_circuits_as_it_takes(lab: Lab, tmp_path: Path) -> None:
    """Larger than a circuit's bytes, and longer than its life."""
    flags = (f"-relayDataLimit={SMALL_BYTES}", f"-relayTimeLimit={SHORT_S}s")
    swarm, (one, other) = Swarm.granting(SMALL_BYTES, lab, tmp_path, ("symmetric", "double_nat"), *flags)
    swarm.introduce(one, other)
    seconds, circuits = one.ask("push_for", other.peer, 64 * SMALL_BYTES, 120.0, limit_s=130.0)
    megabytes = SMALL_BYTES >> 20
    print(f"{64 * megabytes} MiB in {seconds:.1f} s over {circuits} circuits of {megabytes} MiB and {SHORT_S} s")
    assert one.ask("kind", other.peer) == "relayed"
    assert circuits > 64
    assert seconds > SHORT_S
    for agent in (one, other, swarm.boot):
        agent.stop()


def test_training_does_not_notice_that_its_circuits_end(lab: Lab, tmp_path: Path) -> None:
    """Through a stock circuit relay, which gives a circuit 128 KiB; one activation is larger than that."""
    steps = 3
    shape = {"iterations": steps, "sequence_length": 256, "microbatches": 2}
    with Training(lab, tmp_path, **shape) as run:
        run.bootstrap("boot", is_public=False, lending=None)
        run.data("symmetric")
        run.relay("double_nat")
        run.wait(lambda: run.state.iterations >= steps and not run.state.accounting()["lost"], 180)
        accounting = run.state.accounting()
        print(f"{accounting}; step seconds {[round(s, 1) for s in run.state.iteration_seconds()]}")
        assert run.path("symmetric", "double_nat") == "relayed"
    assert [h.report for h in run.heard if h.report["name"] in ("recovery", "peer_lost", "average_failed")] == []
    assert accounting == {"done": steps * 2, "retried": 0, "lost": 0, "double_counted": 0}


RELAY_MBPS = 8.0


def with_slow_relay() -> Topology:
    topology = load_topology("nat_swarm")
    line = Line(up_mbps=RELAY_MBPS, down_mbps=RELAY_MBPS)
    hosts = tuple(replace(host, line=line) if host.name == "boot" else host for host in topology.hosts)
    return Topology(topology.name, topology.description, hosts, topology.routers)


def test_planners_see_what_a_relayed_path_costs_and_that_it_has_become_a_punched_one(tmp_path: Path) -> None:
    """Two homes whose packets do not get to each other at first; the circuit relay between them has a slow line."""
    ends = ("port_restr", "port_restr2")
    with Lab(with_slow_relay()) as lab, Training(lab, tmp_path, sequence_length=256, microbatches=2) as run:
        lab.cut_off("router_port", lab.public_address("port_restr2"))
        run.bootstrap("boot")
        run.data("port_restr")
        run.relay("port_restr2")
        run.wait(lambda: run.steps() >= 1, 120)
        observer = LabObserver(lab, "second", run.join, "lab")

        def published(kind: PathType) -> NetworkView | None:
            """The records, when both ends have measured their link over this kind of path."""
            run.hear(0.0)
            view = observer.view()
            links = [link for record in view.records.values() for link in record.links]
            return view if len(links) == 2 and all(link.path is kind for link in links) else None

        relayed = run.wait(lambda: published(PathType.RELAYED), 120)
        lab.let_pass("router_port")
        begin = time.monotonic()
        punched = run.wait(lambda: published(PathType.PUNCHED), 240)
        seconds = time.monotonic() - begin
        observer.stop()
        run.wait(lambda: {run.path(*ends), run.path(*reversed(ends))} == {"punched"}, 30)
    sender, receiver = (run.ids[end] for end in ends)
    before, after = (view.link(sender, receiver).bandwidth_bytes_per_s / 1e6 for view in (relayed, punched))
    costs = [view.hop_cost_us(sender, receiver) / 1e3 for view in (relayed, punched)]
    print(f"relayed over {RELAY_MBPS / 8:.1f} MB/s: published {before:.2f} MB/s, the hop costs {costs[0]:.0f} ms")
    print(f"punched {seconds:.0f} s after it could be: published {after:.1f} MB/s, the hop costs {costs[1]:.0f} ms")
    assert before < 1.2 * RELAY_MBPS / 8
    assert after > 4 * before
    assert costs[1] < costs[0]
