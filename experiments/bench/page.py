"""What the monitor's page costs: `python -m experiments.bench.page`.

A monitor of a simulated run of 1,000 peers with 10,000 iterations of history behind it. Its records change as a swarm's do:
each peer publishes once per period of 15 s, and each data peer after every iteration too; the monitor looks every 2 s. There is
no DHT here: what is measured is the monitor's own work (state, plan, document, changes, history), its web server, and readers.

Printed: CPU share of one core and resident memory (and its growth), without and with followers; bytes of the first visit; bytes
per minute that a follower gets; seconds to the page's first answer and, where Chromium is installed, to its first paint, and
from the begin of a look that finds a new iteration to the page that shows it (the median of some). That
no request reaches the swarm is shown by asking for everything while no look is made: the number of looks does not change.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gwtf_p2p.monitor.history.store import open_history
from gwtf_p2p.monitor.page.server import PageServer
from gwtf_p2p.monitor.page.watched_runs import WatchedRuns
from gwtf_p2p.monitor.swarm_state import Sample, SwarmState
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.contributions import Contribution, Contributions
from gwtf_p2p.protocol.view.contributions_told import Told
from gwtf_p2p.protocol.view.plans import tag
from gwtf_p2p.protocol.wire.records import (
    Account,
    LinkMeasurement,
    LinkSource,
    PathType,
    PeerState,
    RunRecord,
    StageRecord,
    Timing,
)

LOOK_S, PERIOD_S, ITERATION_S = 2.0, 15.0, 20.0
STAGES, LINKS = 8, 8
UPDATES = 7
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@dataclass
class SimulatedRun:
    """Records of a run that goes on; drawn by a seed."""

    peers: int
    version: int
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    records: dict[PeerId, StageRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = max(1, self.peers // 20)
        split = tuple((k, k + 1) for k in range(STAGES))
        config = {"model_type": "llama", "hidden_size": 1024, "vocab_size": 32000}
        self.run = RunRecord(RunId("large"), config, split, 0, 1024, 1, 4, data_peers=data, total_iterations=100_000)
        names = [PeerId(f"Qm{self.rng.getrandbits(256):064x}"[:46]) for _ in range(self.peers)]
        self.stage_of = {name: Stage(0 if i < data else 1 + i % STAGES) for i, name in enumerate(names)}
        self.stages = [[p for p, s in self.stage_of.items() if s == k] for k in range(STAGES + 1)]
        for name in names:
            self.records[name] = self._record(name)

    def _record(self, name: PeerId) -> StageRecord:
        rng, stage = self.rng, self.stage_of[name]
        beside = self.stages[(stage + 1) % (STAGES + 1)]
        links = tuple(
            LinkMeasurement(
                to, rng.uniform(0.01, 0.2), rng.uniform(1e6, 1e7), LinkSource.TRAFFIC, 3, 0.0, rng.choice(list(PathType))
            )
            for to in rng.sample(beside, min(LINKS, len(beside)))
        )
        timing = Timing(rng.uniform(0.1, 0.5), 5, 0.0)
        return StageRecord(
            name, self.run.run_id, stage, PeerState.ONLINE, 8, forward=timing, backward=timing, finish=timing, links=links,
            weights_version=self.version, progress={"microbatches": 0.0}, account=Account(computed_s=1.0, useful_s=1.0),
        )  # fmt: skip

    def period(self, share: float) -> None:
        """So large a share of the peers publishes again."""
        for name in self.rng.sample(sorted(self.records), int(share * len(self.records))):
            self._publish(name, occupancy=self.rng.randrange(8))

    def iteration(self) -> None:
        """The data peers commit one more iteration, publish new plans, and some peers come and go."""
        self.version += 1
        for name in self.stages[0]:
            routes = [[self.rng.choice(self.stages[k]) for k in range(1, STAGES + 1)] for _ in range(4)]
            base = 4 * self.stages[0].index(name)
            flows = tuple(f"{base + n}:{''.join(map(tag, route))}" for n, route in enumerate(routes))
            loss = 3.0 + 2.0 / (1 + self.version / 500) + self.rng.gauss(0, 0.02)
            progress = {"loss": loss, "iteration_s": ITERATION_S, "microbatches": 4.0 * self.version}
            seconds = {">".join(p[-6:] for p in route): self.rng.uniform(5, 15) for route in routes}
            self._publish(name, progress=progress, flows=flows, flows_iteration=self.version, route_seconds=seconds)

    def contributions(self) -> Told:
        """What data peers tell of so many iterations: every peer has done its part."""
        done = Contribution(4 * self.version, 800 * self.version)
        data = len(self.stages[0])
        return Told(Contributions({(s, p): done for p, s in self.stage_of.items()}), 0, self.version, data, data)

    def _publish(self, name: PeerId, **fields: Any) -> None:
        before = self.records[name]
        progress = {"microbatches": before.progress["microbatches"] + 2.0}
        account = Account(computed_s=10.0 + before.sequence_number, useful_s=9.0 + before.sequence_number)
        changed = {"progress": {**before.progress, **progress}, "account": account, "weights_version": self.version, **fields}
        self.records[name] = replace(before, sequence_number=before.sequence_number + 1, **changed)


def cpu_s() -> float:
    """Of this process, all threads."""
    return time.process_time()


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Follower(threading.Thread):
    """One reader's event stream, in a process of its own so that its CPU is not counted; `bytes` so far."""

    CODE = (
        "import http.client, sys\n"
        "c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1])); c.request('GET', sys.argv[2]); a = c.getresponse()\n"
        "while True:\n"
        "    got = a.read1(65536)\n"
        "    if not got: break\n"
        "    print(len(got), flush=True)\n"
    )

    def __init__(self, port: int, path: str) -> None:
        super().__init__(daemon=True)
        self.process = subprocess.Popen([sys.executable, "-c", self.CODE, str(port), path], stdout=subprocess.PIPE, text=True)
        self.bytes = 0

    def run(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.bytes += int(line)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


NOTICE = """
window.changed = 0;
new MutationObserver(() => (window.changed = Date.now())).observe(
    document.getElementById("f-iterations"), { childList: true, characterData: true, subtree: true });
"""


def in_a_browser(url: str, iterate: Callable[[], float]) -> dict[str, float] | None:
    """Seconds from the start of the navigation to the first paint with content, and to the whole picture; from what `iterate`
    returns, the moment at which a look with a new iteration began, to the page's change. None: no browser."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        return None
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        chromium = webdriver.Chrome(options=options, service=Service(driver))
        try:
            chromium.get(url)
            drawn = "return document.querySelectorAll('.node').length"
            while not chromium.execute_script(drawn):
                time.sleep(0.01)
            whole_s = chromium.execute_script("return performance.now()") / 1000
            paint = chromium.execute_script("return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0")
            while chromium.execute_script("return document.getElementById('connection').textContent") != "live":
                time.sleep(0.01)
            chromium.execute_script(NOTICE)
            took = [_update_s(chromium, iterate) for _ in range(UPDATES)]
            drawn_s = {"first_contentful_paint_s": round(paint / 1000, 2), "swarm_drawn_s": round(whole_s, 2)}
            return {**drawn_s, "update_s": round(statistics.median(took), 2), "slowest_update_s": round(max(took), 2)}
        finally:
            chromium.quit()


def _update_s(chromium: Any, iterate: Callable[[], float]) -> float:
    chromium.execute_script("window.changed = 0")
    began = iterate()
    while not (changed := chromium.execute_script("return window.changed")):
        time.sleep(0.02)
    return float(changed) / 1000 - began


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        history = open_history(Path(folder) / "history.sqlite")
        simulated = SimulatedRun(args.peers, args.iterations)
        seen = [Sample(i, 3.0 + 2.0 / (1 + i / 500), ITERATION_S, None) for i in range(args.iterations)]
        history.add(simulated.run.run_id, seen, [], time.time() - 1000)
        simulated.iteration()
        before_mb = resident_mb()
        runs = WatchedRuns(history)
        server = PageServer("127.0.0.1", 0, runs)
        server.start()
        try:
            return _measured(args, simulated, runs, server.url, before_mb)
        finally:
            server.stop()
            history.close()


def _measured(
    args: argparse.Namespace, simulated: SimulatedRun, runs: WatchedRuns, url: str, before_mb: float
) -> dict[str, Any]:
    state, port = SwarmState(simulated.run), _port(url)

    def look() -> float:
        """Publishes, looks, and returns the CPU seconds that the monitor's part took."""
        if state.looks % round(ITERATION_S / LOOK_S) == 0:
            simulated.iteration()
            state.told = simulated.contributions()
        simulated.period(LOOK_S / PERIOD_S)
        records, began = list(simulated.records.values()), cpu_s()
        runs.look(state, state.look(records, time.time()))
        return cpu_s() - began

    def share(looks: int) -> float:
        """CPU per second of a swarm's time; what the server does between the looks is waited for and counted."""
        total = 0.0
        for _ in range(looks):
            total += look()
            began = cpu_s()
            time.sleep(0.05)
            total += cpu_s() - began
        return total / (looks * LOOK_S)

    share(3)  # the first look loads the history; the first plans are made
    found: dict[str, Any] = {
        "peers": args.peers,
        "iterations": args.iterations,
        "cpu_share_no_reader": round(share(args.looks), 4),
    }
    base = f"/api/v1/runs/{simulated.run.run_id}"
    document = json.loads(_get(port, f"{base}/state")[0])
    followers = [Follower(port, f"{base}/events?after={document['id']}") for _ in range(args.followers)]
    for follower in followers:
        follower.start()
    while not all(follower.bytes for follower in followers):
        time.sleep(0.05)
    began = followers[0].bytes
    found["cpu_share_with_followers"] = round(share(args.looks), 4)
    time.sleep(0.5)
    found["followers"] = args.followers
    found["update_bytes_per_minute"] = round((followers[0].bytes - began) / (args.looks * LOOK_S) * 60)
    for follower in followers:
        follower.stop()
    return {
        **found,
        **_visits(simulated, state, runs, url),
        "resident_mb": round(resident_mb(), 1),
        "of_it_the_run_mb": round(resident_mb() - before_mb, 1),
    }


def _visits(simulated: SimulatedRun, state: SwarmState, runs: WatchedRuns, url: str) -> dict[str, Any]:
    """What one reader's first visit costs, while nobody looks, and how soon the reader sees a new iteration."""
    port, base = _port(url), f"/api/v1/runs/{simulated.run.run_id}"
    looks, names = state.looks, ("state", "history?points=800", "work", "plan")
    paths = {
        f"/runs/{simulated.run.run_id}": "page",
        **{f"{base}/{name}": name.split("?")[0] for name in names},
        "/metrics": "metrics",
    }
    visit = {name: _get(port, path) for path, name in paths.items()}
    looks_by_requests = state.looks - looks

    def iterate() -> float:
        simulated.iteration()
        began = time.time()
        runs.look(state, state.look(list(simulated.records.values()), began))
        return began

    return {
        "first_answer_ms": {name: round(1000 * seconds, 1) for name, (_, seconds, _) in visit.items()},
        "bytes": {name: size for name, (_, _, size) in visit.items()},
        "in_a_browser": in_a_browser(f"{url}runs/{simulated.run.run_id}", iterate),
        "looks_made_by_requests": looks_by_requests,
    }


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1][:-1])


def _get(port: int, path: str) -> tuple[bytes, float, int]:
    """The body, seconds to the last byte, and bytes on the wire."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    began = time.perf_counter()
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    body = answer.read()
    seconds, size = time.perf_counter() - began, len(body)
    connection.close()
    assert answer.status == 200, f"{path}: {answer.status}"
    return (gzip.decompress(body) if answer.getheader("Content-Encoding") == "gzip" else body), seconds, size


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--looks", type=int, default=30, help="looks over which each figure is taken (default 30: a minute)")
    parser.add_argument("--followers", type=int, default=10)
    print(json.dumps(measure(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
