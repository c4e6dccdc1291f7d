"""Memory and start-up of a local swarm: runs the demo and looks at its processes from outside.

    python -m experiments.bench.startup --steps 10 [FLAGS OF gwtf demo]

RSS counts shared pages in every process that maps them; PSS divides them among the processes, so PSS adds up to what the
machine spends. Peers are forked from one warm process, hence the difference between the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

LOOK_S, LOOK_PART = 0.5, 30.0
"""How often it is looked, and at least how many times as long as a look takes: it costs tens of milliseconds a process."""


def main() -> int:
    """Prints a table: kind of process, how many, median and largest RSS and PSS at their peak, and all
    PSS at the fullest moment; then the seconds to ONLINE and what the run came to. Returns the demo's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    args, demo_flags = parser.parse_known_args()
    command = [sys.executable, "-m", "gwtf_p2p", "demo", "--json", "--steps", str(args.steps), *demo_flags]
    peak: dict[int, tuple[str, float, float]] = {}
    fullest: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as demo:
        while demo.poll() is None:
            began, now = time.process_time(), defaultdict[str, float](float)
            for pid, kind in descendants(demo.pid).items():
                rss, pss = memory_mb(pid)
                old = peak.get(pid, (kind, 0.0, 0.0))
                peak[pid] = (kind, max(rss, old[1]), max(pss, old[2]))
                now[kind] += pss
            fullest = max(fullest, now, key=lambda each: sum(each.values()))
            time.sleep(max(LOOK_S, LOOK_PART * (time.process_time() - began)))
        assert demo.stdout is not None
        result = json.loads(demo.stdout.read())
        code = demo.returncode
    by_kind: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for kind, rss, pss in peak.values():
        by_kind[kind].append((rss, pss))
    print(f"{'process':12} {'count':>5} {'RSS median':>11} {'RSS most':>9} {'PSS median':>11} {'PSS most':>9} {'PSS all':>8}")
    for kind, sizes in sorted(by_kind.items()):
        rss_s, pss_s = [s[0] for s in sizes], [s[1] for s in sizes]
        medians = statistics.median(rss_s), statistics.median(pss_s)
        figures = f"{medians[0]:11.0f} {max(rss_s):9.0f} {medians[1]:11.0f} {max(pss_s):9.0f} {fullest.get(kind, 0.0):8.0f}"
        print(f"{kind:12} {len(sizes):5} {figures} (MB)")
    print(f"{result['peers']} peers online after {result['seconds_to_online']} s; {result['microbatches']}")
    print(f"{result['steps']} steps in {result['iteration_seconds']} s, {result['wall_seconds']} s in all")
    print(f"loss {result['losses']}")
    if code:
        print(f"failed: {result.get('failure', f'exit code {code}')}")
    return int(code)


def descendants(root: int) -> dict[int, str]:
    """Process ids below `root`, by kind: peer, p2pd, or warm (the fork server)."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found: dict[int, str] = {}
    for pid in parents:
        chain = [pid]
        while chain[-1] in parents and chain[-1] != root:
            chain.append(parents[chain[-1]])
        if chain[-1] == root and pid != root:
            found[pid] = kind_of(pid, len(chain) - 1)
    return {pid: kind for pid, kind in found.items() if kind}


def kind_of(pid: int, depth: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    if "p2pd " in command:
        return "p2pd"
    if "forkserver" in command:
        return "warm parent" if depth == 1 else "peer"
    return ""


def memory_mb(pid: int) -> tuple[float, float]:
    """(RSS, PSS) in MB; zeros when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("Rss:", "Pss:"))}
    return sizes.get("Rss", 0.0), sizes.get("Pss", 0.0)


if __name__ == "__main__":
    raise SystemExit(main())
