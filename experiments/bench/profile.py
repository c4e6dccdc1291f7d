"""What our own runtime costs a peer: CPU seconds of its event loop, by what they were spent on, beside those of the model.

    python -m experiments.bench.profile --steps 20

Runs the demo's swarm; one stage peer of it lives in this process, under cProfile. Prints the CPU of its threads and of its
p2pd from the first microbatch to the last step, and the event loop's part by subject: functions' own CPU time, summed over the
files that they belong to; what is nobody's (the standard library, pydantic, base58) counts as its callers'. The profiler makes
Python calls about twice as dear; the totals are measured in a second run without it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvloop

from gwtf_p2p.ab.live.cpu import cpu_seconds
from gwtf_p2p.cli.main import build_parser
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.cli.verbs.demo import plain_run
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.lifecycle import run_peer
from gwtf_p2p.live.peer.local_swarm import LocalSwarm
from gwtf_p2p.protocol.wire.records import RunRecord

SUBJECTS = (
    (
        "planning",
        ("protocol/routers", "protocol/flow", "protocol/schedule", "protocol/negotiation", "network_view"),
    ),
    (
        "records and DHT",
        ("hivemind/dht", "live/discovery/dht", "record_keeper", "hivemind/p2p", "hivemind/utils", "protocol/wire/records"),
    ),
    ("serialisation", ("wire/codec.py", "rpc/api.py", "wire/messages.py")),
    ("protocol", ("gwtf_p2p/protocol",)),
    ("streams", ("live/rpc", "libp2p", "dialling", "live/nat/paths")),
    ("averaging", ("all_reduce", "hivemind/averaging", "hivemind/compression")),
    ("driver", ("gwtf_p2p/live",)),
)
"""The first that fits. hivemind's own streams and signatures serve the DHT alone."""

ROUNDS = 30
"""How far up the callers a helper's time is carried."""


Function = tuple[str, int, str]
Stats = Mapping[Function, tuple[int, int, float, float, Mapping[Function, tuple[int, int, float, float]]]]


@dataclass
class Books:
    """CPU marks at the first microbatch and at the end. `p2pd` is a process id."""

    steps: int
    microbatches: int = 0
    p2pd: int = 0
    begin: dict[str, float] = field(default_factory=dict)
    end: dict[str, float] = field(default_factory=dict)

    def marks(self) -> dict[str, float]:
        by_thread = {t.name: t.native_id for t in threading.enumerate()}
        found = {name: sum(_thread_cpu_s(tid)) for name, tid in by_thread.items() if tid is not None}
        kernel_s = _thread_cpu_s(threading.main_thread().native_id or 0)[1]
        found |= {"kernel": kernel_s, "process": time.process_time(), "p2pd": cpu_seconds(self.p2pd)}
        return {**found, "wall": time.monotonic()}


def _thread_cpu_s(native_id: int) -> tuple[float, float]:
    """In the program, in the kernel."""
    fields = Path(f"/proc/self/task/{native_id}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) / 100.0, int(fields[12]) / 100.0


def _config(record: RunRecord, folder: Path, role: str, name: str, maddr: str, **more: Any) -> PeerConfig:
    options = P2POptions.on_this_machine(maddr)
    return PeerConfig(role=role, options=options, identity_path=folder / f"{name}.key", run_id=record.run_id, threads=1, **more)


async def _own_peer(config: PeerConfig, books: Books, profile: cProfile.Profile | None, swarm: LocalSwarm) -> None:
    stop = asyncio.Event()

    def report(fields: dict[str, Any]) -> None:
        if fields["name"] == "started":
            books.p2pd = fields["p2pd"]
        elif fields["name"] == "first_microbatch":
            books.begin = books.marks()
            if profile is not None:
                profile.enable()
        elif fields["name"] == "stepped":
            books.microbatches += fields["microbatches"]
            if fields["iteration"] + 1 >= books.steps:
                if profile is not None:
                    profile.disable()
                books.end = books.marks()
                stop.set()

    await run_peer(config, report, stop)


def _run(record: RunRecord, profile: cProfile.Profile | None) -> Books:
    books = Books(record.total_iterations)
    with tempfile.TemporaryDirectory(prefix="gwtf-prof-") as name:
        folder = Path(name)
        swarm = LocalSwarm(folder)
        try:
            swarm.start("bootstrap", _config(record, folder, "bootstrap", "bootstrap", ""))
            started = swarm.wait_for("bootstrap", "started", 60)
            assert started is not None, "the bootstrap peer did not start"
            maddr = started["maddrs"][0]
            for shard in range(record.data_peers):
                new = record if shard == 0 else None
                swarm.start(f"data{shard}", _config(record, folder, "data", f"data{shard}", maddr, shard=shard, new_run=new))
            for stage in range(1, record.stages + 1):
                for number in range(record.peers_per_stage):
                    if (stage, number) != (1, 0):
                        who = f"stage{stage}.{number}"
                        swarm.start(who, _config(record, folder, "peer", who, maddr, stage=stage))
            own = _config(record, folder, "peer", "own", maddr, stage=1)
            threading.Thread(target=_keep_hearing, args=(swarm, books), daemon=True).start()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_own_peer(own, books, profile, swarm))
        finally:
            swarm.stop()
    return books


def _keep_hearing(swarm: LocalSwarm, books: Books) -> None:
    """The others' reports must be taken, or their pipes fill up."""
    while not books.end:
        swarm.poll(0.5)


def subjects(profile: cProfile.Profile) -> dict[str, float]:
    """Own seconds by subject; "event loop" is what no subject has called."""
    found: dict[str, float] = defaultdict(float)
    stats: Stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    left: Mapping[Function, float] = {function: own for function, (_, _, own, _, _) in stats.items()}
    for _ in range(ROUNDS):
        upwards: dict[Function, float] = defaultdict(float)
        for function, seconds in left.items():
            name = next((name for name, parts in SUBJECTS if any(part in function[0] for part in parts)), None)
            callers = stats[function][4]
            if name is not None or not callers:
                found[name or "event loop"] += seconds
                continue
            total = sum(spent for _, _, _, spent in callers.values())
            for caller, (calls, _, _, spent) in callers.items():
                part = spent / total if total > 0 else calls / sum(c for c, _, _, _ in callers.values())
                upwards[caller] += seconds * part
        left = upwards
    found["event loop"] += sum(left.values())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--top", type=int, default=12, help="dearest functions of the event loop")
    flags, demo = parser.parse_known_args(arguments)
    record = run_from_plain(plain_run(build_parser("demo").parse_args(["demo", "--steps", str(flags.steps), *demo])), "demo")
    torch.set_num_threads(1)
    profile = cProfile.Profile(time.thread_time)
    _run(record, profile)
    told = dict(sorted(subjects(profile).items(), key=lambda item: -item[1]))
    pstats.Stats(profile).sort_stats("tottime").print_stats(flags.top)
    books = _run(record, None)
    spent = {name: books.end[name] - books.begin.get(name, 0.0) for name in books.end}
    compute = sum(seconds for name, seconds in spent.items() if name.startswith("compute"))
    loop = spent["MainThread"]
    print(json.dumps({
        "microbatches": books.microbatches,
        "wall_s": round(spent["wall"], 2),
        "event_loop_cpu_s": round(loop, 2),
        "of_it_in_the_kernel_s": round(spent["kernel"], 2),
        "compute_thread_cpu_s": round(compute, 2),
        "other_threads_cpu_s": round(spent["process"] - loop - compute, 2),
        "p2pd_cpu_s": round(spent["p2pd"], 2),
        "event_loop_ms_per_microbatch": round(1000 * loop / max(1, books.microbatches), 1),
        "event_loop_share_of_peer_cpu": round(loop / (spent["process"] + spent["p2pd"]), 3),
        "event_loop_share_of_wall": round(loop / spent["wall"], 3),
        "event_loop_by_subject": {name: f"{own / sum(told.values()):.0%}" for name, own in told.items()},
    }, indent=1))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
