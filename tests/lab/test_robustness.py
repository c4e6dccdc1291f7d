"""What goes wrong with a volunteer's line and machine, and that the peer trains on afterwards, by itself."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.lab.lab import Lab
from experiments.lab.programs.observing import LabObserver
from experiments.lab.programs.training import Training
from experiments.lab.topology import load_topology
from gwtf_p2p.protocol.wire.records import PeerState

pytestmark = [pytest.mark.netns, pytest.mark.slow]

AGAIN_S = 150.0
"""Bounds a test that hangs; what it really took is printed."""
ASLEEP_S = 60.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """A bootstrap; a public host with the data peer and a stage peer that cannot hold all; and a stage peer behind NAT."""
    folder: Path = tmp_path_factory.mktemp("robustness")
    with Lab(load_topology("nat_swarm")) as lab, Training(lab, folder, microbatches=16) as run:
        run.bootstrap("boot")
        public = ["--public_ip", lab.public_address("second")]
        run.data("second", *public)
        run.relay("second", *public, "--port", "31331", "--capacity", "2", name="relay")
        run.relay("port_restr", "--capacity", "2")
        run.wait(lambda: run.done_by("port_restr"), AGAIN_S)
        yield run


def trains_again(run: Training, what: str, since: float) -> None:
    """The peer behind NAT does microbatches that were begun after `since`, which is later than the disturbance."""
    seconds = run.wait(lambda: run.done_by("port_restr", since), AGAIN_S)
    print(f"{what}: a microbatch done again after {seconds:.1f} s")


def test_the_laptop_moves_and_has_another_address(running: Training) -> None:
    running.lab.set_up("port_restr", False)
    running.lab.move("port_restr", behind="router_port2")
    trains_again(running, "another router, another address", time.monotonic())


def test_the_laptop_sleeps(running: Training) -> None:
    """Both of its processes stand still; the others go on without it and take it back."""
    run, peer = running, running.ids["port_restr"]
    observer = LabObserver(run.lab, "second", run.join, "lab")

    def is_online() -> bool:
        record = observer.view().records.get(peer)
        return record is not None and record.state is PeerState.ONLINE

    assert run.wait(is_online, AGAIN_S)
    [*_, started] = run.reports("port_restr", "started")
    both = run.swarm.peers["port_restr"].pid, started["p2pd"]
    before = run.steps()
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + ASLEEP_S
    while time.monotonic() < end:
        run.hear(0.5)
    assert peer not in observer.view().records, "its record has expired"
    slept_through = run.steps() - before
    assert slept_through > 1
    woken = time.monotonic()
    for pid in reversed(both):
        os.kill(pid, signal.SIGCONT)
    run.wait(is_online, AGAIN_S)
    seconds = time.monotonic() - woken
    print(f"asleep for {ASLEEP_S:.0f} s, {slept_through} steps of the others: online again after {seconds:.1f} s")
    trains_again(run, "asleep", woken)
    observer.stop()


def test_its_p2pd_is_killed(running: Training) -> None:
    [*_, started] = running.reports("port_restr", "started")
    os.kill(started["p2pd"], signal.SIGKILL)
    running.wait(lambda: running.reports("port_restr", "restarting"), AGAIN_S)
    trains_again(running, "p2pd killed", time.monotonic())


def test_the_bootstrap_restarts_with_its_identity(running: Training) -> None:
    """It knows nobody and nothing then; the circuit relay that it was to others has to be found again."""
    run = running
    run.may_end.add("boot")
    run.swarm.kill("boot")
    run.wait(lambda: run.reports("boot", "exited"), AGAIN_S)
    before = run.steps()
    run.wait(lambda: run.steps() > before + 1, AGAIN_S)
    run.ids.pop("boot")
    [maddr] = run.join
    assert run.bootstrap("boot") == maddr
    trains_again(run, "bootstrap restarted", time.monotonic())
    begin = time.monotonic()
    run.relay("double_nat", "--capacity", "2")
    run.wait(lambda: run.done_by("double_nat"), AGAIN_S)
    print(f"a newcomer through it: first microbatch after {time.monotonic() - begin:.1f} s")
    run.leave("double_nat")


def test_the_bootstrap_is_gone_for_good(running: Training) -> None:
    """The run goes on at its other public peers, and one who was here before finds it through them."""
    run = running
    run.swarm.kill("boot")
    trains_again(run, "bootstrap gone", time.monotonic())
    assert (run.folder / "double_nat.peers.json").exists()
    begin = time.monotonic()
    run.relay("double_nat", "--capacity", "2")
    run.wait(lambda: run.done_by("double_nat", begin), AGAIN_S)
    print(f"one who was here before: first microbatch after {time.monotonic() - begin:.1f} s")


def test_a_stock_hivemind_dht_serves_as_bootstrap_and_relay(tmp_path: Path) -> None:
    """Nothing of ours runs there, and the peers are told nothing of it."""
    steps = 3
    with Lab(load_topology("nat_swarm")) as lab, Training(lab, tmp_path, iterations=steps, microbatches=2) as run:
        here = f"/ip4/{lab.public_address('boot')}/tcp/31337"
        command = [sys.executable, "-m", "hivemind.hivemind_cli.run_dht", "--host_maddrs", here]
        stock = lab.start("boot", [*command, "--identity_path", str(tmp_path / "stock.key")], tmp_path / "stock.log")
        while (found := re.search(rf"{here}/p2p/(\w+)", stock.read_log())) is None:
            assert stock.exit_code is None, stock.read_log()
        run.join = [found[0]]
        run.data("port_restr")
        run.relay("symmetric")
        run.wait(lambda: run.state.iterations >= steps and not run.state.accounting()["lost"], 180)
        print(f"path {run.path('port_restr', 'symmetric')}; {run.state.accounting()}")
        assert run.path("port_restr", "symmetric") == "relayed"
        assert run.state.accounting()["done"] == steps * 2
