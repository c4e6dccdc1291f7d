"""Runs scenarios with several arms and seeds in the simulator, and appends one JSON line per run to a file.

    python -m experiments.run --out results.jsonl --scenarios experiments/scenarios/ten_regions_home_churn_0.toml \\
        --arms gwtf swarm swarm:in_flight=4 --seeds 0-9

Arms are written as in `arms`. Every line carries the arm, the commit and what was measured; runs that the file already holds
for this commit are not repeated, so an interrupted comparison goes on where it was. `compare` reads the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.support.arms import expand, parse_arm
from gwtf_p2p.cli.verbs.sim import parse_seeds
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.simulation.run import Simulation
from gwtf_p2p.simulation.scenario.scenario import load_scenario

Task = tuple[str, str, str, int, int]
"""Scenario file, arm, recovery, seed, iterations."""


def commit() -> str:
    """Of the working tree, marked when it differs from it."""
    folder = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    status = ["git", "status", "--porcelain", "--untracked-files=no", "--", "../gwtf_p2p/protocol", "../gwtf_p2p/simulation"]
    dirty = subprocess.run(status, cwd=folder, capture_output=True, text=True, check=True).stdout
    return head.stdout.strip() + ("+" if dirty else "")


def run_one(task: Task) -> dict[str, Any]:
    """One run, with the CPU seconds that it took."""
    path, arm, recovery, seed, iterations = task
    began = time.process_time()
    simulation = Simulation(replace(load_scenario(Path(path)), iterations=iterations), parse_arm(arm, recovery), seed)
    line = {"arm": arm, **simulation.run().to_json(), "cpu_seconds": time.process_time() - began}
    bounds = [seconds for seconds in simulation.clairvoyant_s() if seconds is not None]
    return {**line, "clairvoyant_seconds": bounds, "mean_clairvoyant_seconds": mean(bounds) if bounds else None}


def tasks_of(flags: argparse.Namespace) -> Iterator[Task]:
    for path in flags.scenarios:
        scenario = load_scenario(Path(path))
        iterations = flags.iterations or scenario.iterations
        if iterations <= scenario.warmup_iterations:
            raise InputError("--iterations", str(iterations), f"expected more than {scenario.warmup_iterations}, the warm-up")
        for seed in parse_seeds(flags.seeds) if flags.seeds else scenario.seeds:
            for arm in flags.arms:
                yield path, arm, flags.recovery, seed, iterations


def done_already(out: Path, now_at: str) -> set[Task]:
    """(scenario, arm, recovery, seed, iterations) of this commit's lines in the file."""
    if not out.exists():
        return set()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {
        (line["scenario"], line["arm"], line["recovery"], line["seed"], line["iterations"])
        for line in lines
        if line["commit"] == now_at
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--arms", nargs="+", required=True, metavar="ARM")
    parser.add_argument("--seeds", help="such as 0-9; default: the scenario's")
    parser.add_argument("--iterations", type=int, default=0, metavar="N", help="instead of the scenarios' number")
    parser.add_argument("--recovery", choices=("exact", "fast"), default="exact")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    flags = parser.parse_args(arguments)
    try:
        flags.arms = expand(flags.arms)
        for arm in flags.arms:
            parse_arm(arm)
        tasks = list(tasks_of(flags))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    now_at = commit()
    done = done_already(flags.out, now_at)
    names = {path: load_scenario(Path(path)).name for path in flags.scenarios}
    tasks = [task for task in tasks if (names[task[0]], *task[1:]) not in done]
    with flags.out.open("a", encoding="utf-8") as file, ProcessPoolExecutor(flags.jobs) as pool:
        for i, line in enumerate(pool.map(run_one, tasks), 1):
            file.write(json.dumps({"commit": now_at, **line}) + "\n")
            file.flush()
            what = f"{line['scenario']} {line['arm']} seed {line['seed']}"
            print(f"{i}/{len(tasks)} {what}: {line['mean_iteration_seconds']:.2f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
