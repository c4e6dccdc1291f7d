"""Peers behind routers of every kind join a run, by nothing but an initial peer and a run id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.lab.lab import Lab
from experiments.lab.programs.training import Training
from experiments.lab.topology import load_topology
from experiments.support.control import control_losses
from gwtf_p2p.cli.shared.run_file import read_run_file

pytestmark = pytest.mark.netns

JOIN_S = 60.0
"""What the issue allows from the start command to the first microbatch."""
PATHS = {"full_cone": "public"} | dict.fromkeys(("port_restr", "symmetric", "double_nat", "firewalled"), "relayed")
"""How strangers reach a peer at each host."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """A run on two public peers, whose stage peer cannot hold all of its microbatches."""
    folder: Path = tmp_path_factory.mktemp("joining")
    with Lab(load_topology("nat_swarm")) as lab, Training(lab, folder, microbatches=16) as run:
        run.bootstrap("boot")
        public = ["--public_ip", lab.public_address("second")]
        run.data("second", *public)
        run.relay("second", *public, "--port", "31331", "--capacity", "2", name="relay")
        run.wait(lambda: run.steps() >= 1, 90)
        yield run


@pytest.mark.parametrize("host", PATHS)
def test_a_stage_peer_behind_any_router_joins_a_running_swarm(running: Training, host: str) -> None:
    """Its first microbatch is back, forward and backward, at the data peer. One newcomer at a time: of several that measure
    themselves at once on a small machine, planners leave the slowest out for as long as the others suffice."""
    run = running
    run.relay(host, "--capacity", "2")
    seconds = run.wait(lambda: run.done_by(host), 2 * JOIN_S)
    speed = run.wait(lambda: run.speed(host, "second"), JOIN_S)
    [started] = run.reports(host, "started")
    run.leave(host)
    print(
        f"{host}: first microbatch after {seconds:.1f} s, called {started['path']} ({started['why']}), "
        f"path to the data peer {run.path(host, 'second')}, {speed:.0f} MB/s"
    )
    assert seconds < JOIN_S
    assert started["path"] == PATHS[host]
    assert run.path(host, "second") == "public", "it dials the public peer itself"
    if started["path"] == "relayed":
        assert all("/p2p-circuit/" in maddr for maddr in started["maddrs"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this kernel has no IPv6")
@pytest.mark.parametrize("transport", ["tcp/31337", "udp/31337/quic-v1"])
def test_a_stage_peer_that_has_ipv6_only_joins_it_too(running: Training, transport: str) -> None:
    """The data peer announces an IPv4 address alone, so the two meet through the bootstrap peer, which has both."""
    run, host = running, "port_restr2"
    run.lab.run(host, ["ip", "-4", "address", "flush", "dev", "eth0"])
    maddr = f"/ip6/{run.lab.address('boot').ip6}/{transport}/p2p/{run.ids['boot']}"
    run.relay(host, "--capacity", "2", "--initial_peers", maddr)
    seconds = run.wait(lambda: run.done_by(host), 2 * JOIN_S)
    [*_, started] = run.reports(host, "started")
    run.leave(host)
    path = run.path(host, "second")
    print(f"IPv6 only, by {transport}: first microbatch after {seconds:.1f} s, path to the data peer {path}")
    assert seconds < JOIN_S
    assert all(maddr.startswith("/ip6/") for maddr in started["maddrs"])


@pytest.mark.slow
def test_a_swarm_whose_every_peer_is_behind_a_router_trains_as_one_process_does(tmp_path: Path) -> None:
    """Two data peers and four stage peers behind six routers of five kinds; only the bootstrap is public."""
    steps = 10
    shape = {"data_peers": 2, "stages": 2, "relays_per_stage": 2, "iterations": steps}
    with Lab(load_topology("nat_swarm")) as lab, Training(lab, tmp_path, **shape) as run:
        run.bootstrap("boot")
        run.data("port_restr")
        run.data("double_nat", shard=1)
        for stage, hosts in ((1, ("full_cone", "symmetric")), (2, ("port_restr2", "firewalled"))):
            for host in hosts:
                run.relay(host, "--stage", str(stage))
        run.wait(lambda: run.state.iterations >= steps and not run.state.accounting()["lost"], 180)
        paths = sorted(f"{h.who}: {h.report['path']}" for h in run.heard if h.report["name"] == "path")
        losses = [run.state.loss(step) for step in range(steps)]
        accounting = run.state.accounting()
    control = control_losses(read_run_file(run.run_file), steps, 2)
    difference = max(abs(ours - alone) for ours, alone in zip(losses, control, strict=True))
    print(f"{steps} steps: loss {losses[0]:.4f} -> {losses[-1]:.4f}, largest difference to one process {difference:.1e}")
    print(f"{accounting}; {', '.join(paths)}")
    assert accounting["lost"] == accounting["double_counted"] == 0
    assert accounting["done"] == steps * 8
    assert difference < 1e-4
