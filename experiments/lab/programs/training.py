"""A training run in the lab: real peers in its hosts, started by the flags that a user would type.

    with Lab(load_topology("nat_swarm")) as lab, Training(lab, folder) as run:
        run.bootstrap("boot")
        run.data("second", "--public_ip", lab.public_address("second"))
        run.circuit relay("symmetric")
        run.wait(lambda: run.done_by("symmetric"), 60)

Reports of all peers are kept with the time of their arrival.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.lab.lab import Lab
from experiments.lab.programs.warm import LabSwarm
from gwtf_p2p.cli.main import build_parser
from gwtf_p2p.cli.verbs import bootstrap as dht
from gwtf_p2p.cli.verbs import data, peer
from gwtf_p2p.monitor.run_state import RunState

RUN_FILE = """
run_id = "{run_id}"
seed = 0
stages = {stages}
data_peers = {data_peers}
relays_per_stage = {relays_per_stage}
model = "tiny-llama"
dataset = "stdlib"
sequence_length = {sequence_length}
microbatch_size = 2
microbatches_per_data_peer = {microbatches}
total_iterations = {iterations}
optimizer = {{ learning_rate = 1e-3 }}
"""
DEFAULTS = {
    "run_id": "lab",
    "stages": 1,
    "data_peers": 1,
    "relays_per_stage": 1,
    "microbatches": 4,
    "iterations": 0,
    "sequence_length": 64,
}


class PeerGone(Exception):
    """A peer ended that was to run; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A report of a peer, and when it came (monotonic seconds)."""

    at: float
    who: str
    report: Mapping[str, Any]


class Training:
    """One run. `shape`: fields of `DEFAULTS` that differ."""

    def __init__(self, lab: Lab, folder: Path, **shape: Any) -> None:
        self.lab, self.folder = lab, folder
        self.shape = {**DEFAULTS, **shape}
        self.run_file = folder / "run.toml"
        self.run_file.write_text(RUN_FILE.format(**self.shape))
        self.swarm = LabSwarm(lab, folder)
        self.join: Sequence[str] = ()
        self.heard: list[Heard] = []
        self.began: dict[str, float] = {}
        self.ids: dict[str, str] = {}
        self.stages: dict[str, int] = {}
        self.may_end: set[str] = set()
        expected = self.shape["data_peers"] * self.shape["microbatches"]
        self.state = RunState(stages=self.shape["stages"], expected=expected, tokens_per_microbatch=128)

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        self.swarm.stop()

    # ---- peers

    def bootstrap(self, host: str, *flags: str, name: str = "", **options: Any) -> str:
        """A bootstrap peer that announces its public address, all others' initial peer; returns its multiaddr.

        `options`: fields of `P2POptions` that no flag sets.
        """
        name = name or host
        self._start(host, name, dht, ["bootstrap", "--public_ip", self.lab.public_address(host), *flags], options)
        self.wait(lambda: name in self.ids, 120)
        maddr = str(self.reports(name, "started")[-1]["maddrs"][0])
        self.join = [maddr]
        return maddr

    def data(self, host: str, *flags: str, name: str = "", shard: int = 0) -> None:
        words = ["--run_id", self.shape["run_id"]] if shard else ["--new_run", str(self.run_file)]
        self._start(host, name or host, data, ["data", *words, "--shard", str(shard), *flags])

    def relay(self, host: str, *flags: str, name: str = "") -> None:
        self._start(host, name or host, peer, ["peer", "--run_id", self.shape["run_id"], *flags])

    def _start(self, host: str, name: str, verb: Any, words: Sequence[str], options: Mapping[str, Any] | None = None) -> None:
        initial = [] if "--initial_peers" in words or not self.join else ["--initial_peers", *self.join]
        own = [*words, *initial, "--identity_path", str(self.folder / f"{name}.key")]
        if verb is not dht:
            own += ["--threads", "1"]
        self.began[name] = time.monotonic()
        config = verb.config_of(build_parser(words[0]).parse_args(own))
        self.swarm.start_in(host, name, replace(config, options=replace(config.options, **(options or {}))))

    def leave(self, *names: str) -> None:
        """Have peers drain and leave, as Ctrl+C does."""
        self.may_end.update(names)
        before = len(self.heard)
        for name in names:
            self.swarm.peers[name].pipe.send("stop")
        self.wait(lambda: {h.who for h in self.heard[before:] if h.report["name"] == "exited"}.issuperset(names), 90)

    # ---- what they tell

    def wait(self, holds: Callable[[], Any], limit_s: float) -> Any:
        """Hear reports until something holds; returns it. Raises PeerGone, and TimeoutError with what was heard last."""
        end = time.monotonic() + limit_s
        while not (found := holds()):
            if time.monotonic() > end:
                raise TimeoutError(f"{limit_s:.0f} s; heard last: {self.heard[-5:]}")
            self.hear(0.1)
        return found

    def hear(self, limit_s: float) -> None:
        for who, report in self.swarm.poll(limit_s):
            if report["name"] in ("failed", "exited") and who not in self.may_end:
                raise PeerGone(f"{who}: {report}\n{self.log(who)[-3000:]}")
            now = time.monotonic()
            self.heard.append(Heard(now, who, report))
            if report["name"] == "started":
                self.ids[who] = report["peer"]
                self.state.names[report["peer"]] = who
            elif report["name"] == "online":
                self.stages[who] = report["stage"]
            self.state.hear(who, self.stages.get(who, 0), report, now)

    def reports(self, who: str, name: str) -> list[Mapping[str, Any]]:
        return [heard.report for heard in self.heard if heard.who == who and heard.report["name"] == name]

    def done_by(self, who: str, since: float | None = None) -> float:
        """Seconds from `since`, or this peer's start, until a data peer had a microbatch back that it did, and that was begun
        after `since`; 0 before. By the peers' own clocks: a report may be heard late."""
        since = self.began[who] if since is None else since
        begun = set()
        for heard in self.heard:
            report = heard.report
            if report["name"] == "injected" and report["at"] >= since:
                begun.add(report["microbatch"])
            elif report["name"] == "microbatch_done" and report["microbatch"] in begun and self.ids.get(who) in report["route"]:
                return float(report["at"] - since)
        return 0.0

    def steps(self) -> int:
        """Iterations that the data peers have been through."""
        return len(self.state.ended_at)

    def path(self, who: str, to: str) -> str:
        """The newest kind of path that a peer told of to another; empty when it told none."""
        kinds = [report["path"] for report in self.reports(who, "path") if report["peer"] == self.ids[to]]
        return str(kinds[-1]) if kinds else ""

    def speed(self, who: str, to: str) -> float:
        """Megabytes per second of the newest probe from one peer to another; 0 without one."""
        told = [report["megabytes_per_s"] for report in self.reports(who, "link") if report["peer"] == self.ids[to]]
        return float(told[-1]) if told else 0.0

    def log(self, who: str) -> str:
        return self.swarm.peers[who].log.read_text(errors="replace")
