"""`gwtf sim` as a swarm grows, at 10 % churn: `python -m experiments.sim_scale --peers 100 300 1000 --json`.

Twenty stages, ten regions, one data peer with 8 microbatches for fifty stage peers (`scenario`: `scenarios/large.toml` with
other counts). Each size is run by a `gwtf sim` in a process of its own, with the build that is imported here. A size that takes
more than `--most_cpu_s` is ended, and said to be.

The last line has, for each size, CPU seconds (user and system, imports included), microbatches, CPU per microbatch and that
over the first size's, the process's peak memory, and the simulated seconds of an iteration (`{"sizes": [{"peers", "cpu_s",
"microbatches", "cpu_per_microbatch_s", "ratio", "peak_mb", "iteration_s", "crashes"}]}`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.sim_scale.scenario import scaled, to_toml


@dataclass(frozen=True, slots=True)
class Run:
    """One size. `iteration_s`: simulated. What it did not come to is None."""

    peers: int
    cpu_s: float
    peak_mb: float
    microbatches: int | None = None
    cpu_per_microbatch_s: float | None = None
    ratio: float | None = None
    iteration_s: float | None = None
    crashes: int | None = None


def simulated(peers: int, chosen: argparse.Namespace, folder: Path) -> Run:
    """Raises CalledProcessError when `gwtf sim` fails."""
    scenario, told = folder / f"large_{peers}.toml", folder / "told.json"
    scenario.write_text(to_toml(scaled(peers, chosen.iterations)))
    command = [sys.executable, "-m", "gwtf_p2p", "sim", str(scenario), "--router", chosen.router]
    command += ["--seeds", str(chosen.seed), "--json"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (chosen.most_cpu_s, chosen.most_cpu_s))

    with told.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, preexec_fn=limited)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s, peak_mb = round(used.ru_utime + used.ru_stime, 2), round(used.ru_maxrss / 1024)
    if process.returncode < 0 and cpu_s >= chosen.most_cpu_s - 1:
        return Run(peers, cpu_s, peak_mb)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    outcome: dict[str, Any] = json.loads(told.read_text())
    done = int(outcome["microbatches_done"])
    return Run(
        peers=peers,
        cpu_s=cpu_s,
        peak_mb=peak_mb,
        microbatches=done,
        cpu_per_microbatch_s=round(cpu_s / done, 4),
        iteration_s=round(outcome["mean_iteration_seconds"], 2),
        crashes=outcome["crashes"],
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[100, 300, 1000], help="stage peers")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--router", default="gwtf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most_cpu_s", type=int, default=3600, help="of one size")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gwtf-sim-scale-") as folder:
        for peers in chosen.peers:
            run = asdict(simulated(peers, chosen, Path(folder)))
            first, each = (runs or [run])[0]["cpu_per_microbatch_s"], run["cpu_per_microbatch_s"]
            run["ratio"] = round(each / first, 2) if each and first else None
            runs.append(run)
            print(run if run["microbatches"] else f"{run}: ended, not through", flush=True)
    told = {"sizes": runs}
    print(json.dumps(told) if chosen.json else told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
