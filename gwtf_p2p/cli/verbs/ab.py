"""`gwtf ab SCENARIO.toml --routers gwtf,swarm`: the same scenario under several routers, simulated or live, and the report.

All arms of a seed have the same peers, links, start weights, data order and churn script. Runs are interleaved; finished runs
stay in OUT/runs.jsonl, so a comparison that was stopped (Ctrl+C) goes on with the same command. Several scenarios make one
report, such as one per level of churn. OUT gets report.md, report.html (one file with its pictures) and runs.jsonl.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from gwtf_p2p.ab.trials.arms import NAMED, parse_arms
from gwtf_p2p.ab.trials.result import BACKENDS, LIVE, SIM, RunFile, RunResult
from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.flags.names import COMMAND_LINE, naming_flags
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.cli.verbs.sim import parse_seeds
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.routers.factory import KINDS
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.simulation.scenario.scenario import Scenario, load_scenario

LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 4
RUNS = "runs.jsonl"
LIVE_FLAGS: dict[str, Any] = {
    "time_scale": 1.0,
    "emulate_links": True,
    "model": "",
    "dataset": "stdlib",
    "microbatch_size": 4,
    "sequence_length": 64,
    "learning_rate": LEARNING_RATE,
}
"""Flags that only the live backend looks at, with their defaults."""

USUAL = "gwtf,gwtf-paper,swarm,swarm:in_flight=4,swarm-official,swarm+rebalance,swarm-hub,greedy,random"


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("ab", help="compare routers on one scenario", description=__doc__)
    add = parser.add_argument
    add("scenarios", nargs="+", type=Path, metavar="SCENARIO.toml")
    known = ", ".join([*KINDS, *NAMED])
    add("--routers", default=USUAL, metavar="ARM,...", help=f"of {known}, with :FIELD=VALUE (default {USUAL})")
    add("--backend", default=SIM, help="sim, live, or sim,live (default sim)")
    add("--seeds", help="such as 0-4; default: the scenario's")
    add(
        "--out",
        type=takes.folder,
        required=True,
        metavar="DIR",
        help="report, pictures and finished runs; the same DIR resumes",
    )
    add("--iterations", type=takes.whole(1), help="instead of the scenario's, its warm-up included")
    add(
        "--time_scale",
        type=takes.number(0, 100, above=True),
        help="live: seconds for each second of the scenario (default 1)",
    )
    add(
        "--emulate_links",
        action=takes.OnOff,
        default=None,
        help="live: links as in the scenario (default), or the machine's",
    )
    add("--recovery", choices=("exact", "fast"), default="exact")
    add("--model", help="live: tiny-llama, a config.json or a hub id (default: a layer of 64 per stage)")
    add("--dataset", help="live: stdlib (default), text:GLOB or a hub name")
    add("--microbatch_size", type=takes.whole(1), help="live: sequences (default 4)")
    add("--sequence_length", type=takes.whole(1), help="live: tokens (default 64)")
    add("--learning_rate", type=takes.number(0, above=True), help=f"live: peak (default {LEARNING_RATE})")
    add("--report_only", action="store_true", help="run nothing, write the report of what OUT holds")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when all runs came to their end. Raises InputError."""
    arms, backends = parse_arms(args.routers, "--routers"), _backends(args.backend)
    _settle_live_flags(args, backends)
    seeds = None if args.seeds is None else parse_seeds(args.seeds)
    scenarios = [_shortened(load_scenario(path), args.iterations) for path in args.scenarios]
    if len({s.name for s in scenarios}) < len(scenarios):
        raise InputError("SCENARIO", "name", "expected scenarios with different names")
    if args.report_only and not (args.out / RUNS).exists():
        raise InputError("--report_only", str(args.out), f"expected a folder with finished runs ({RUNS}), there are none")
    from gwtf_p2p.ab.report.report import write_report
    from gwtf_p2p.ab.trials.schedule import Schedule, interleaved

    tasks = interleaved(_tasks(args, scenarios, seeds, arms, backends))
    args.out.mkdir(parents=True, exist_ok=True)
    file = RunFile(args.out / RUNS)
    schedule = Schedule(tasks, file, _run_one, lambda text: print(text, file=sys.stderr, flush=True))
    stopped = False
    if not args.report_only:
        # A comparison that a shell started in the background has Ctrl+C ignored; it must stop all the same, and clean up.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            schedule.work(_failures(backends))
        except KeyboardInterrupt:
            stopped = True
    results = list(file.read().values())
    if args.report_only and not results:
        raise InputError("--report_only", str(file.path), "expected finished runs, there are none")
    if results:
        _add_controls(args.out, tasks, results)
        write_report(args.out, results, [(str(t.key), why) for t, why in schedule.failures], _command())
        print(args.out / "report.html")
    if stopped:
        print(f"stopped; {len(results)} finished runs are in {file.path}, the same command goes on", file=sys.stderr)
        return 130
    return 1 if schedule.failures else 0


def _settle_live_flags(args: argparse.Namespace, backends: tuple[str, ...]) -> None:
    """Their defaults, where nothing is said. Raises InputError for one that no backend of this comparison looks at."""
    for name, default in LIVE_FLAGS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif LIVE not in backends:
            raise InputError(f"--{name}", "", "expected --backend live with it: the simulator trains no model")


def _tasks(
    args: argparse.Namespace,
    scenarios: list[Scenario],
    seeds: tuple[int, ...] | None,
    arms: tuple[str, ...],
    backends: tuple[str, ...],
) -> list[Any]:
    from gwtf_p2p.ab.report.environment import commit
    from gwtf_p2p.ab.trials.task import RunTask

    now_at = commit()
    tasks = []
    for scenario in scenarios:
        record = _record(args, scenario)
        for backend in backends:
            tasks += [
                RunTask(scenario, arm, seed, backend, args.time_scale, record, args.out, now_at, args.emulate_links)
                for seed in seeds or scenario.seeds
                for arm in arms
            ]
    return tasks


def _run_one(task: Any) -> RunResult:
    if task.backend == SIM:
        from gwtf_p2p.ab.trials.simulated import run_simulated

        return run_simulated(task)
    from gwtf_p2p.ab.live.run import run_live

    return run_live(task)


def _add_controls(out: Path, tasks: list[Any], results: list[RunResult]) -> None:
    """The losses of one process alone, for each seed that has live results; computed once."""
    from gwtf_p2p.ab.trials.controls import add_controls

    done = {(r.settings, r.seed) for r in results if r.backend == LIVE}
    add_controls(out, [t for t in tasks if t.backend == LIVE and (t.settings, t.seed) in done])


def _failures(backends: tuple[str, ...]) -> tuple[type[Exception], ...]:
    from gwtf_p2p.simulation.run import StuckError

    if LIVE not in backends:
        return (StuckError,)
    from gwtf_p2p.ab.live.run import RunFailed

    return (StuckError, RunFailed)


def _record(args: argparse.Namespace, scenario: Scenario) -> RunRecord:
    """What live peers train, in every arm. Raises InputError."""
    stages = scenario.model.stages
    model: Any = args.model or {
        "model_type": "llama", "vocab_size": 257, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": stages,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024,
        "bos_token_id": None, "eos_token_id": 256,
    }  # fmt: skip
    plain = {
        "run_id": "ab",
        "seed": 0,
        "stages": stages,
        "model": model,
        "dataset": args.dataset,
        "microbatch_size": args.microbatch_size,
        "sequence_length": args.sequence_length,
        "microbatches_per_data_peer": scenario.model.microbatches_per_data_peer,
        "data_peers": scenario.data_peers,
        "recovery": args.recovery,
        "total_iterations": scenario.iterations,
        "optimizer": {"learning_rate": args.learning_rate, "warmup_iterations": WARMUP_STEPS},
    }
    with naming_flags({"optimizer.learning_rate": "--learning_rate", "model_config": "--model", "stages": "SCENARIO"}):
        return run_from_plain(plain, COMMAND_LINE)


def _backends(text: str) -> tuple[str, ...]:
    backends = tuple(text.split(","))
    if not set(backends) <= set(BACKENDS) or len(set(backends)) < len(backends):
        raise InputError("--backend", "", f"expected sim, live or sim,live, got {text!r}")
    return backends


def _shortened(scenario: Scenario, iterations: int | None) -> Scenario:
    from dataclasses import replace

    if iterations is None:
        return scenario
    if iterations <= scenario.warmup_iterations:
        raise InputError("--iterations", "", f"expected more than the warm-up ({scenario.warmup_iterations}), got {iterations}")
    return replace(scenario, iterations=iterations)


def _command() -> str:
    return " ".join(["gwtf", *sys.argv[1:]])
