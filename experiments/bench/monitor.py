"""What `gwtf monitor --port` costs as a process: `python -m experiments.bench.monitor`.

A small live swarm trains on this machine, and a monitor with a page reads its records as anybody's would, through a p2pd of its
own. Printed: the share of one core and the resident memory of the monitor and of its p2pd, over a minute after its first look.
(`experiments.bench.page` has the page's own part, for a run of 1,000 peers.)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.bench.startup import memory_mb
from experiments.support.live_swarm import SmallRun, Swarm

START_S = 90.0


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Of the first thread."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def monitor(swarm: Swarm, folder: Path) -> Iterator[int]:
    """Serves a page of the swarm; the process's id."""
    whom = ["--initial_peers", swarm.run.initial_peer(), "--run_id", swarm.run.record.run_id]
    flags = ["--port", "0", "--history", str(folder / "history.sqlite"), "--json"]
    command = [sys.executable, "-m", "gwtf_p2p", "monitor", *whom, *flags]
    looks = folder / "looks.jsonl"
    with looks.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + START_S
            while not looks.stat().st_size and time.monotonic() < end:
                swarm.poll()
            yield process.pid
        finally:
            process.terminate()


def measure(seconds: float) -> dict[str, float]:
    """All figures."""
    with tempfile.TemporaryDirectory() as name, Swarm(SmallRun(steps=100_000), Path(name) / "swarm") as swarm:
        swarm.until_step(2)
        with monitor(swarm, Path(name)) as pid:
            found: dict[str, float] = {}
            processes = {"monitor": pid, **{f"p2pd_{i}": child for i, child in enumerate(children(pid))}}
            before, began = {what: cpu_s(number) for what, number in processes.items()}, time.monotonic()
            while time.monotonic() - began < seconds:
                swarm.poll()
            passed = time.monotonic() - began
            for what, number in processes.items():
                found[f"{what}_cpu_share"] = round((cpu_s(number) - before[what]) / passed, 4)
                found[f"{what}_resident_mb"] = round(memory_mb(number)[0], 1)
            maps = Path(f"/proc/{pid}/maps").read_text()
            return {**found, "has_torch": "libtorch" in maps}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    print(json.dumps(measure(parser.parse_args().seconds), indent=2))


if __name__ == "__main__":
    main()
