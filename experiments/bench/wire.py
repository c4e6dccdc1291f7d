"""What the emulated links really impose, measured: bytes over time against the lines of a scenario.

    python -m experiments.bench.wire experiments/scenarios/acceptance_churn_0.toml --time_scale 0.35

Peers of the scenario's first seed send to random others at random moments over the wire of `gwtf ab`; the simulator does the
same transfers in virtual time. Prints how long they took in both and how far they are apart; exit code 1 when the median
transfer is more than `--allowed` off. No libp2p: this measures the wire and the clock of this machine, at the load that it has.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median

from gwtf_p2p.ab.live.wire import Wire
from gwtf_p2p.ab.trials.scaling import scaled
from gwtf_p2p.live.emulation.wire_client import Load, WireClient, connect_wire
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.routers.factory import default_config
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import Links
from gwtf_p2p.simulation.scenario.scenario import load_scenario
from gwtf_p2p.simulation.swarm.build import Arm, Swarm, build

LEAST_S = 0.05
"""Transfers that take less say more about the clock than about the lines."""


@dataclass(frozen=True, slots=True)
class Sending:
    """`began` in seconds after the start."""

    began: float
    sender: PeerId
    receiver: PeerId
    size: int


def draw(swarm: Swarm, count: int, span_s: float, seed: int) -> list[Sending]:
    """Random pairs and moments; the size is an activation's."""
    random, peers = Random(seed), sorted(swarm.drawn)
    pairs = [random.sample(peers, 2) for _ in range(count)]
    size = swarm.scenario.model.microbatch_bytes
    return sorted((Sending(random.uniform(0, span_s), a, b, size) for a, b in pairs), key=lambda s: s.began)


def simulated(swarm: Swarm, sendings: Sequence[Sending]) -> list[float]:
    """Seconds of each, in virtual time."""
    kernel, took = Kernel(), dict[int, float]()
    links = Links(kernel, swarm.links.spec, swarm.links.line_bytes_per_s)

    def begin(index: int, sending: Sending) -> None:
        links.start(sending.sender, sending.receiver, sending.size, lambda: took.update({index: kernel.now - sending.began}))

    for i, s in enumerate(sendings):
        kernel.at(s.began, partial(begin, i, s))
    kernel.run(lambda: len(took) == len(sendings), 1e6)
    return [took[i] for i in range(len(sendings))]


async def real(wire: Wire, swarm: Swarm, sendings: Sequence[Sending]) -> list[float]:
    """Seconds of each over the wire."""
    clients = {peer: await connect_wire(wire.socket, peer, links=True) for peer in swarm.drawn}
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(client: WireClient, s: Sending) -> float:
        await asyncio.sleep(start + s.began - loop.time())
        began, passage = loop.time(), client.passage(Load(s.receiver, s.size, "forward", ""))
        passage.begin()
        await passage.sent()
        return loop.time() - began

    took = await asyncio.gather(*(one(clients[s.sender], s) for s in sendings))
    for client in clients.values():
        await client.close()
    return took


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--time_scale", type=float, default=1.0)
    parser.add_argument("--transfers", type=int, default=80)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--allowed", type=float, default=0.1)
    flags = parser.parse_args(arguments)
    scenario = scaled(load_scenario(flags.scenario), flags.time_scale)
    swarm = build(scenario, Arm("random", default_config("random")), scenario.seeds[0], lambda peer, report, now: None)
    sendings = draw(swarm, flags.transfers, flags.seconds, 0)
    with tempfile.TemporaryDirectory(prefix="gwtf-wire-") as folder:
        wire = Wire(Path(folder) / "w.sock", swarm.links.spec, swarm.links.line_bytes_per_s)
        wire.start()
        took = asyncio.run(real(wire, swarm, sendings))
        wire.stop()
    pairs = [(r, s) for r, s in zip(took, simulated(swarm, sendings), strict=True) if s >= LEAST_S]
    off = [r / s - 1 for r, s in pairs]
    late = sorted(1000 * (r - s) for r, s in pairs)
    print(f"{len(pairs)} transfers of {scenario.model.microbatch_bytes} bytes, load average {os.getloadavg()[0]:.1f}")
    print(f"simulated {median(s for _, s in pairs):.3f} s, over the wire {median(r for r, _ in pairs):.3f} s (medians)")
    print(f"difference: median {median(off):+.2%}, from {min(off):+.2%} to {max(off):+.2%}; allowed {flags.allowed:.0%}")
    print(f"late by {late[len(late) // 2]:.1f} ms (median), {late[-1]:.1f} ms (most)")
    return 0 if abs(median(off)) <= flags.allowed else 1


if __name__ == "__main__":
    raise SystemExit(main())
