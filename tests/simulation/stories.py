"""Scenarios as text with some fields changed, and simulations of them whose peers can be changed before the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.routers.factory import default_config
from gwtf_p2p.simulation.run import Simulation
from gwtf_p2p.simulation.scenario.scenario import Scenario, load_scenario
from gwtf_p2p.simulation.swarm.build import Arm

TEXT = """
name = "story"
seeds = [0]
iterations = {iterations}
warmup_iterations = 1
[model]
stages = {stages}
microbatch_bytes = 100_000
microbatches_per_data_peer = {microbatches}
stage_gradient_bytes = 200_000
stage_state_bytes = 1_000_000
[links]
uniform = {{ latency_ms = 1, gbps = 8.0 }}
[[peers]]
role = "data"
count = {data_peers}
forward_s = 0.002
backward_s = 0.004
[[peers]]
role = "stage"
count_per_stage = {stage_peers}
forward_s = {forward_s}
backward_factor = 2.0
capacity = {capacity}
"""

USUAL = {
    "iterations": 4, "stages": 3, "microbatches": 8, "data_peers": 1, "stage_peers": 2, "forward_s": 0.01, "capacity": 8,
}  # fmt: skip


def story(folder: Path, **changes: object) -> Scenario:
    """A scenario of `TEXT` with these fields."""
    path = folder / "story.toml"
    path.write_text(TEXT.format(**{**USUAL, **changes}))
    return load_scenario(path)


def simulation(scenario: Scenario, router: str = "swarm", config: object = None, seed: int = 0) -> Simulation:
    return Simulation(scenario, Arm(router, config or default_config(router)), seed)


def slow_down(run: Simulation, peer: str, by_s: float) -> None:
    """Make one peer's passes slower, before the start."""
    name = PeerId(peer)
    drawn = run.swarm.drawn[name]
    run.swarm.drawn[name] = replace(drawn, forward_s=drawn.forward_s + by_s, backward_s=drawn.backward_s + by_s)
    run.world.add(run.swarm.new_peer(name))
