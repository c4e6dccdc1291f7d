"""What doing a share of all work again costs: the same simulated run with and without audits, by its seed.

`python -m experiments.audits.cost --seeds 0-4 --json` prints one line for each scenario and seed: {"scenario", "seed", "share",
"iteration_s": [without, with], "ratio", "audits", "bytes_share" (what is sent to auditors, of all bytes of tensors)}; the last
line of a scenario has the median ratio. Times are virtual, so equal runs take equal times, and the first iteration, which is
planned on guesses, is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.routers.factory import default_config
from gwtf_p2p.simulation.run import Simulation
from gwtf_p2p.simulation.scenario.scenario import Scenario, load_scenario
from gwtf_p2p.simulation.swarm.build import Arm

FOLDER = Path(__file__).parent.parent / "scenarios"
SCENARIOS = ("acceptance_churn_0", "acceptance_homogeneous")


def measured(scenario: Scenario, seed: int, share: float) -> tuple[float, int, float]:
    """Mean seconds of an iteration, audits that were done, and their share of the bytes of tensors."""
    simulation = Simulation(scenario, Arm("gwtf", default_config("gwtf"), audit=share), seed)
    found = 0

    def count(peer: PeerId, report: ef.Report, now: float) -> None:
        nonlocal found
        found += report.name == "audit_passed"

    simulation.listeners.append(count)
    simulation.run()
    ends = simulation.metrics.ends
    world, model = simulation.world, scenario.model
    hops = scenario.data_peers * model.microbatches_per_data_peer * (model.stages + 1) * scenario.iterations
    return (ends[-1] - ends[0]) / (len(ends) - 1), found, world.audits.bytes / (2 * model.microbatch_bytes * hops)


def compared(name: str, seeds: Sequence[int], share: float, iterations: int, as_json: bool) -> None:
    """All seeds of one scenario."""
    scenario = replace(load_scenario(FOLDER / f"{name}.toml"), iterations=iterations)
    ratios = []
    for seed in seeds:
        without, _, _ = measured(scenario, seed, 0.0)
        with_it, audits, bytes_share = measured(scenario, seed, share)
        ratios.append(with_it / without)
        line = {"scenario": name, "seed": seed, "share": share, "iteration_s": [round(without, 3), round(with_it, 3)]}
        told = {**line, "ratio": round(ratios[-1], 4), "audits": audits, "bytes_share": round(bytes_share, 4)}
        print(json.dumps(told) if as_json else told, flush=True)
    last = {
        "scenario": name,
        "median_ratio": round(statistics.median(ratios), 4),
        "mean_ratio": round(statistics.mean(ratios), 4),
    }
    print(json.dumps(last) if as_json else last, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    first, _, last = str(chosen.seeds).partition("-")
    for name in chosen.scenarios:
        compared(name, range(int(first), int(last or first) + 1), chosen.share, chosen.iterations, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
