"""A live swarm under steady crashes: `python -m experiments.soak --minutes 30 --kill_every 20`.

Every `kill_every` seconds a peer is killed (SIGKILL) and started again a moment later, with its identity and its checkpoints.
Stage peers and data peers are drawn by the seed; the last living peer of a stage is spared, and one stage peer and one data
peer are never killed: they are the survivors whose memory is watched (the peer and its p2pd, from /proc, after a warm-up of a
fifth of the time or `--warm_up_minutes`; the slope is by least squares).

With `--power_cut` everything is killed at once in the middle of the time, and started again from its disks; with `--full_disk`
the disk of the surviving stage peer is full for a fifth of the time, before that (a small tmpfs: root and Linux).

Verdict, told by the exit code: the loss falls (first to last fifth of the steps), no microbatch is lost or counted twice, every
killed peer comes back, the first step after a power cut takes less than a minute, the full disk is written to again, the
survivors' memory grows by less than `most_mb_per_min`, no process is left at the end. The steps that a soak is broken
off in, of which some stage has told nothing yet, are not counted; more than two of them are wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.support.live_swarm import POLL_S, SmallRun, Swarm
from experiments.support.small_disk import Disk, NoSmallDisk, small_disk
from gwtf_p2p.cli.shared.local_run import BOOTSTRAP, RunFailed

RESTART_AFTER_S = 2.0
SAMPLE_EVERY_S = 2.0
BACK_WITHIN_S = 120.0
RESUMED_WITHIN_S = 60.0
SURVIVORS = ("stage1.0", "data0")
FULL_FROM, FULL_TO, CUT_AT = 0.2, 0.4, 0.5
"""Of the time: when the disk is full, and when the power goes."""

MOST_UNTOLD = 2
"""Steps that are committed, and that a stage has not told of, when a soak is broken off: one of them is being told."""

WARM_UP = 0.2
"""Of the time: so long the memory of a life is left out, unless `--warm_up_minutes` says otherwise."""


@dataclass
class Soak:
    """One soak; `memory` holds (seconds, MB) of each survivor and of its p2pd. `disk` is the small one, if one is to fill up.
    `resumed_s`: from the start after the power cut to the first step."""

    swarm: Swarm
    kill_every_s: float
    seed: int
    cuts: bool = False
    disk: Disk | None = None
    resumed_s: float = 0.0
    redone: int = 0
    warm_up: float = WARM_UP
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)
    kills: dict[str, int] = field(default_factory=dict)
    back_s: list[float] = field(default_factory=list)
    _down: dict[str, float] = field(default_factory=dict)
    _coming: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def go(self, seconds: float) -> None:
        """Raises RunFailed when a peer ends by itself or does not come back."""
        swarm = self.swarm
        swarm.until("everybody is online", lambda: swarm.run.online_s > 0)
        self._note_processes()
        began = time.monotonic()
        kill_at, sample_at, say_at = began + self.kill_every_s, began, began + 60.0
        while (now := time.monotonic()) < began + seconds:
            swarm.poll()
            self._trouble((now - began) / seconds)
            self._note_processes()
            self._restart(now)
            if now >= kill_at:
                kill_at += self.kill_every_s
                self._kill(now)
            if now >= sample_at:
                sample_at += SAMPLE_EVERY_S
                self._sample(now - began)
            if now >= say_at:
                say_at += 60.0
                self._say(now - began)
        swarm.until("everybody is back", lambda: not self._down and self._all_back(), BACK_WITHIN_S)

    def _trouble(self, share: float) -> None:
        """What is due when this share of the time has passed."""
        if self.disk is not None and FULL_FROM <= share < FULL_TO:
            self.disk.fill()
        elif self.disk is not None:
            self.disk.free()
        if self.cuts and share >= CUT_AT:
            self.cuts = False
            self._power_cut()

    def _power_cut(self) -> None:
        """All at once, and back from their disks; what was done after the last common checkpoint is done again."""
        swarm, run = self.swarm, self.swarm.run
        reached, names = swarm.state.iterations, [name for name in run.lines if name != BOOTSTRAP]
        for name in (BOOTSTRAP, *names):
            if run.lines[name].state != "killed":
                run.kill(name)
        self._down.clear()
        self._coming.clear()
        self.memory = {f"{what} before the cut": samples for what, samples in self.memory.items()}
        swarm.heard.clear()
        run.start_again(BOOTSTRAP)
        swarm.wait_for("started", BOOTSTRAP)
        run.lines[BOOTSTRAP].state = "online"
        began = time.monotonic()
        for name in names:
            run.start_again(name)
        swarm.wait_for("iteration_begins")
        begins = int(swarm.said("iteration_begins")[0]["iteration"])
        swarm.state.hear(BOOTSTRAP, 0, {"name": "going_back", "version": begins}, time.monotonic())
        self.redone = reached - begins
        swarm.until("the first step after the power cut", lambda: begins in swarm.state.ended_at)
        self.resumed_s = time.monotonic() - began
        swarm.until("everybody is back after the power cut", lambda: all(run.lines[n].state == "online" for n in names))
        print(f"power cut after {reached} steps, on from {begins} after {self.resumed_s:.1f} s", flush=True)

    def _kill(self, now: float) -> None:
        run = self.swarm.run
        online = [*run.names("stage", "online"), *run.names("data", "online")]
        stages = [run.lines[name].stage for name in online]
        able = sorted(name for name in online if name not in SURVIVORS and stages.count(run.lines[name].stage) > 1)
        if able:
            name = self._random.choice(able)
            self.kills[name] = self.kills.get(name, 0) + 1
            run.kill(name)
            self._down[name] = now

    def _restart(self, now: float) -> None:
        run = self.swarm.run
        for name in [name for name, since in self._down.items() if now - since > RESTART_AFTER_S]:
            del self._down[name]
            self._coming[name] = now
            run.start_again(name)
        self._all_back()
        for name, since in self._coming.items():
            if now - since > BACK_WITHIN_S:
                line, peer = run.lines[name], run.swarm.peers.get(name)
                now_it_is = f"{line.state}, last step {line.done or 'none'}, exit code {peer.exit_code if peer else 'none'}"
                raise RunFailed(f"{name} is not back after {now - since:.0f} s ({now_it_is})\n{run.tail(name, 40)}")

    def _all_back(self) -> bool:
        for name in [name for name in self._coming if self.swarm.run.lines[name].state == "online"]:
            self.back_s.append(time.monotonic() - self._coming.pop(name))
        return not self._coming

    # ---- processes and memory

    def _note_processes(self) -> None:
        self.swarm.heard.clear()
        self.pids |= {peer.pid for peer in self.swarm.run.swarm.peers.values()} | set(self.swarm.run.p2pd.values())

    def _sample(self, second: float) -> None:
        for name in (*SURVIVORS, BOOTSTRAP):
            for what, pid in ((name, self.swarm.run.swarm.peers[name].pid), (f"{name} p2pd", self.swarm.run.p2pd[name])):
                self.memory.setdefault(what, []).append((second, resident_mb(pid)))

    def slopes(self) -> dict[str, float]:
        """MB/min of each, after the warm-up, which is as long in a second life as in the first."""
        found = {}
        end = max(samples[-1][0] for samples in self.memory.values())
        for what, samples in self.memory.items():
            warm = [sample for sample in samples if sample[0] >= samples[0][0] + self.warm_up * end]
            if len(warm) < 2:
                continue
            seconds, mb = np.array(warm).T
            found[what] = float(np.polyfit(seconds / 60, mb, 1)[0])
        return found

    def _say(self, second: float) -> None:
        state = self.swarm.state
        last = [state.loss(i) for i in sorted(state.ended_at)[-20:]]
        memory = ", ".join(f"{name} {self.memory[name][-1][1]:.0f} MB" for name in SURVIVORS)
        print(
            f"{second / 60:5.1f} min  {state.iterations} steps  loss {statistics.mean(last) if last else float('nan'):.4f}  "
            f"{sum(self.kills.values())} kills  recoveries {sum(state.recoveries.values())}  {memory}",
            flush=True,
        )


def resident_mb(pid: int) -> float:
    """Of a process that lives. Raises OSError when it does not."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def left_over(pids: set[int]) -> list[int]:
    """Those of these processes that still live (a zombie does not)."""
    alive = []
    for pid in sorted(pids):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            alive.append(pid)
    return alive


def verdict(soak: Soak, args: argparse.Namespace, failure: str) -> dict[str, object]:
    """All figures, and what is wrong."""
    state = soak.swarm.state
    losses = [state.loss(i) for i in sorted(state.ended_at)]
    fifth = max(1, len(losses) // 5)
    first, last = (statistics.mean(part) if part else float("nan") for part in (losses[:fifth], losses[-fifth:]))
    untold = state.untold()
    accounting, slopes = state.accounting(untold), soak.slopes() if soak.memory else {}
    steepest = max((slopes[name] for name in slopes if not name.startswith(BOOTSTRAP)), default=0.0)
    end = time.monotonic() + 5.0
    while (left := left_over(soak.pids)) and time.monotonic() < end:
        time.sleep(POLL_S)
    wrong = [failure] if failure else []
    wrong += [f"the loss does not fall: {first:.4f} to {last:.4f}"] if not last < first else []
    wrong += [f"the ledger does not add up: {accounting}"] if accounting["lost"] + accounting["double_counted"] else []
    wrong += [f"some stage has told nothing of the steps {untold}"] if len(untold) > MOST_UNTOLD else []
    wrong += [f"memory grows by {steepest:.2f} MB/min"] if steepest > args.most_mb_per_min else []
    wrong += [f"processes are left: {left}"] if left else []
    wrong += ["nothing was written after the disk was full"] if soak.disk is not None and not soak.disk.is_written_again else []
    wrong += ["the power was not cut"] if args.power_cut and not soak.resumed_s else []
    wrong += [f"the first step after the power cut took {soak.resumed_s:.0f} s"] if soak.resumed_s > RESUMED_WITHIN_S else []
    return {
        "minutes": args.minutes,
        "steps": len(losses),
        "first_loss": first,
        "last_loss": last,
        "kills": sum(soak.kills.values()),
        "kills_by_peer": soak.kills,
        "back_median_s": statistics.median(soak.back_s) if soak.back_s else None,
        "back_max_s": max(soak.back_s, default=None),
        "microbatches": accounting,
        "untold_steps": len(untold),
        "resumed_s": round(soak.resumed_s, 1),
        "redone_steps": soak.redone,
        "disk": soak.disk.story if soak.disk is not None else "",
        "withdrawn": state.withdrawn,
        "recoveries": dict(state.recoveries),
        "recovery": state.recovery.plain(),
        "memory_mb_per_min": {name: round(slope, 3) for name, slope in slopes.items()},
        "memory_mb": {name: [round(s[0][1], 1), round(s[-1][1], 1)] for name, s in soak.memory.items()},
        "left_over": left,
        "wrong": wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill_every", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--peers_per_stage", "--relays_per_stage", type=int, default=2)
    parser.add_argument("--data_peers", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--most_mb_per_min", type=float, default=1.0, help="most growth of a survivor's memory")
    parser.add_argument("--warm_up_minutes", type=float, help="of each life, left out of that growth (a fifth of the time)")
    parser.add_argument("--power_cut", action="store_true", help="kill everything at once in the middle of the time")
    parser.add_argument("--full_disk", action="store_true", help="a survivor's disk is full for a fifth of the time")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and checkpoints there")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="gwtf-soak-"))
    small = SmallRun(
        stages=args.stages,
        peers_per_stage=args.peers_per_stage,
        data_peers=args.data_peers,
        steps=0,
        sequence_length=64,
        learning_rate=args.learning_rate,
        seed=args.seed,
        checkpoint_every=20,
    )
    failure = ""
    soak = Soak(Swarm(small, folder), args.kill_every, args.seed, cuts=args.power_cut)
    if args.warm_up_minutes is not None:
        soak.warm_up = args.warm_up_minutes / args.minutes
    try:
        with ExitStack() as stack:
            if args.full_disk:
                soak.disk = stack.enter_context(small_disk(folder / "checkpoints" / SURVIVORS[0]))
            stack.enter_context(soak.swarm)
            soak.go(60 * args.minutes)
    except (RunFailed, AssertionError, NoSmallDisk) as error:
        failure = str(error)
    result = verdict(soak, args, failure)
    print(json.dumps(result, indent=1))
    if not args.keep:
        shutil.rmtree(folder)
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
