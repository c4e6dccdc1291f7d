"""Either side from its start to the last microbatch that is timed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.bench.official_swarm.processes import SideFailed, Talkers, descendants, is_p2pd, spent
from experiments.bench.official_swarm.shape import Shape
from experiments.bench.official_swarm.theirs import Arguments, bootstrap, server, trainer
from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig, RunFailed

START_S, TRAIN_S = 400.0, 600.0
TOLERANCE = 1e-5
POLL_S = 0.02


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds of all processes for each microbatch, `p2pd_ms` of them in p2pds, and how fast it was by the wall clock.

    `beside_idle_ms`: without what the same swarm spends in that time when it has nothing to do, `idle_ms_per_s` of all."""

    microbatches: int
    cpu_ms: float
    p2pd_ms: float
    beside_idle_ms: float
    idle_ms_per_s: float
    per_second: float
    processes: int


@dataclass
class Meter:
    """CPU of this process's descendants since `begin`."""

    at: float = 0.0
    before: dict[int, float] = field(default_factory=dict)

    def begin(self) -> None:
        self.at, self.before = time.monotonic(), spent(descendants(os.getpid()))

    def since(self) -> tuple[float, dict[int, float]]:
        """Seconds since then, and CPU seconds of each process."""
        wall_s = time.monotonic() - self.at
        return wall_s, {pid: total - self.before.get(pid, 0.0) for pid, total in spent(descendants(os.getpid())).items()}

    def rate(self) -> float:
        """CPU seconds a second since then."""
        wall_s, since = self.since()
        return sum(since.values()) / wall_s


def cost_of(since: tuple[float, dict[int, float]], idle: float, microbatches: int) -> Cost:
    """Of what `Meter.since` said, where `idle` CPU seconds a second go anyway."""
    wall_s, by_process = since
    per = 1e3 / microbatches
    spent_s = sum(by_process.values())
    return Cost(
        microbatches=microbatches,
        cpu_ms=round(per * spent_s, 1),
        p2pd_ms=round(per * sum(seconds for pid, seconds in by_process.items() if is_p2pd(pid)), 1),
        beside_idle_ms=round(per * (spent_s - idle * wall_s), 1),
        idle_ms_per_s=round(1e3 * idle, 1),
        per_second=round(microbatches / wall_s, 2),
        processes=len(by_process),
    )


def ours(shape: Shape, folder: Path) -> Cost:
    """Raises SideFailed."""
    config = LocalRunConfig(
        data_peers=shape.clients, peers_per_stage=shape.peers_per_stage, capacity=shape.in_flight, start_s=START_S
    )
    run = LocalRun(config, shape.record(), folder)
    try:
        run.begin()
        meter = Meter()
        _until_step(run, shape.steps[0])
        begun = run.state.iterations
        meter.begin()
        _until_step(run, sum(shape.steps))
        done, since = run.state.iterations - begun, meter.since()
        meter.begin()
        while time.monotonic() < meter.at + shape.idle_s:
            run.poll(POLL_S)
        return cost_of(since, meter.rate(), done * shape.per_step)
    except RunFailed as error:
        raise SideFailed(str(error)) from error
    finally:
        run.stop()


def _until_step(run: LocalRun, step: int) -> None:
    end = time.monotonic() + START_S + TRAIN_S
    while run.state.iterations < step:
        if time.monotonic() > end:
            raise SideFailed(f"ours: step {step} is not done in {START_S + TRAIN_S:.0f} s")
        run.poll(POLL_S)


def theirs(shape: Shape, folder: Path, source: Path, messages: Path) -> Cost:
    """Raises SideFailed."""
    talkers = Talkers(folder)
    common = Arguments(source, messages, shape, shape.record())
    online: set[str] = set()
    try:
        talkers.start("bootstrap", bootstrap, common)
        common = replace(common, initial_peers=tuple(_maddrs(talkers)))
        servers, trainers = [], []
        for stage in range(1, shape.stages + 1):
            for number in range(shape.peers_per_stage):
                servers.append(f"stage{stage}.0.{number}")
                talkers.start(servers[-1], server, replace(common, stage=stage, number=number))
        _all_online(talkers, online, servers)
        for number in range(shape.clients):
            trainers.append(f"trainer{number}")
            talkers.start(trainers[-1], trainer, replace(common, number=number))
        _all_online(talkers, online, trainers)
        meter = Meter()
        meter.begin()
        time.sleep(shape.idle_s)
        idle = meter.rate()
        for name in trainers:
            talkers.ask(name)
        _count(talkers, shape.warm_up)
        meter.begin()
        _count(talkers, shape.timed)
        return cost_of(meter.since(), idle, shape.timed)
    finally:
        talkers.stop()


def _maddrs(talkers: Talkers) -> list[str]:
    found: list[str] = []

    def holds(name: str, said: dict[str, Any]) -> bool:
        found.extend(said.get("maddrs", []))
        return bool(found)

    talkers.until("the bootstrap node is there", holds, START_S)
    return found


def _all_online(talkers: Talkers, online: set[str], names: list[str]) -> None:
    """Wait for all of them; what a trainer's first forward gave has to be what the model gives here."""

    def holds(name: str, said: dict[str, Any]) -> bool:
        if "online" in said:
            online.add(said["online"])
            if abs(said.get("remote", 0.0) - said.get("local", 0.0)) > TOLERANCE:
                raise SideFailed(f"{name}: the swarm's loss is {said['remote']}, the model's {said['local']}")
        return online >= set(names)

    talkers.until(f"{', '.join(names)} are online", holds, START_S)


def _count(talkers: Talkers, microbatches: int) -> None:
    done = 0

    def holds(name: str, said: dict[str, Any]) -> bool:
        nonlocal done
        done += said.get("done", 0)
        return done >= microbatches

    talkers.until(f"{microbatches} microbatches are done", holds, TRAIN_S)
