"""`gwtf sim SCENARIO.toml --router NAME`: a scenario in virtual time, one line per seed, compared with what is possible.

With `--json` one object per seed on stdout, otherwise a table: the mean iteration after the warm-up, the
bound of an iteration and of the steady throughput (`simulation/bounds/bound`), and how near the run came to each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from gwtf_p2p.ab.trials.arms import WIRES
from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.cli.shared.pictures import MOVING, STILL, iteration_page, run_picture
from gwtf_p2p.drawing.files import check_picture_path, write_picture
from gwtf_p2p.drawing.replay import Bar
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.routers.factory import KINDS, configure, router_kind
from gwtf_p2p.simulation.measure.metrics import Outcome
from gwtf_p2p.simulation.measure.trace import Trace, check_trace_path
from gwtf_p2p.simulation.run import simulate
from gwtf_p2p.simulation.scenario.scenario import load_scenario
from gwtf_p2p.simulation.swarm.build import Arm, Memory

MOST_SEEDS = 100_000

HEADINGS = (
    *("seed", "iteration s", "bound s", "of it", "mb/s", "bound", "of it", "waste", "recovered f/b/a"),
    *("lost", "twice", "messages"),
)
ROW = "{:>6} {:>11} {:>8} {:>6} {:>7} {:>7} {:>6} {:>7} {:>16} {:>5} {:>6} {:>9}"


def add_parser(subparsers: Any) -> None:
    """Flags of `gwtf sim`."""
    parser = subparsers.add_parser("sim", help="run a scenario in virtual time", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("scenario", type=Path, metavar="SCENARIO.toml")
    parser.add_argument("--router", default="gwtf", help=", ".join(KINDS))
    parser.add_argument("--seeds", help="such as 0-4 or 1,5,7; default: the scenario's")
    parser.add_argument("--cost", help="of gwtf, the same as --set cost=...: iteration (default) or paper")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting of the router; repeatable")
    parser.add_argument("--recovery", choices=("exact", "fast"), default="exact", help="redo a lost peer's part, or drop it")
    parser.add_argument(
        "--memory",
        choices=[memory.value for memory in Memory],
        default=Memory.ADAPTIVE.value,
        help="activations are kept up to the capacity and computed again beyond it (adaptive), or what is beyond it waits "
        "(limited) or is refused by SWARM's stage peers too (strict); always recomputed; or unlimited",
    )
    parser.add_argument("--wire", choices=WIRES, default="float32", help="how tensors travel, averages in the nearest format")
    fewer = "another model, of which N times fewer values cross a boundary"
    parser.add_argument("--subspace", type=takes.whole(2), default=0, metavar="N", help=fewer)
    parser.add_argument(
        "--thin_data_peers", action="store_true", help="data peers hold no weights: the first and the last stage do"
    )
    averages = "average the copies of a stage every N iterations, instead of their gradients in each"
    parser.add_argument("--replica_sync", type=takes.whole(2), default=0, metavar="N", help=averages)
    parser.add_argument("--elastic_shares", action="store_true", help="data peers' microbatches go by their lines and devices")
    parser.add_argument(
        "--delay_optimizer_step", action="store_true", help="the next iteration is computed while one is averaged"
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="of one seed: .jsonl (events), .json (Chrome trace)")
    draw = "of one seed: the flows of all its microbatches as .svg or .png, or an iteration to play as .html"
    parser.add_argument("--draw", type=Path, metavar="FILE", help=draw)
    parser.add_argument("--iteration", type=takes.whole(0), metavar="N", help="of --draw FILE.html: from 0 (default: the last)")
    parser.add_argument("--json", action="store_true", help="one object per seed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises InputError for a bad scenario, router, setting, seed or trace file."""
    router_kind(args.router)
    config = configure(args.router, _settings(args.set, args.cost))
    model = {"subspace": args.subspace, "thin": args.thin_data_peers, "elastic": args.elastic_shares}
    model["delayed"] = args.delay_optimizer_step
    wire = replace(WIRES[args.wire], averages="float32") if args.replica_sync else WIRES[args.wire]
    arm = Arm(args.router, config, args.recovery, Memory(args.memory), wire, replica_sync=args.replica_sync, **model)
    scenario = load_scenario(args.scenario)
    seeds = parse_seeds(args.seeds) if args.seeds is not None else scenario.seeds
    if args.trace is not None:
        check_trace_path(args.trace)
        if len(seeds) > 1:
            raise InputError("--trace", "", f"expected one seed (--seeds {seeds[0]}), a file holds one run")
    if args.draw is not None:
        check_picture_path(args.draw, "--draw", (*STILL, MOVING))
        if len(seeds) > 1:
            raise InputError("--draw", "", f"expected one seed (--seeds {seeds[0]}), a picture shows one run")
    if args.iteration is not None and (args.draw is None or args.draw.suffix != MOVING):
        raise InputError("--iteration", str(args.iteration), "expected --draw FILE.html with it")
    outcomes: list[Outcome] = []
    if not args.json:
        print(f"{scenario.name}, router {arm.router}, recovery {arm.recovery}, memory {arm.memory.value}")
        print(ROW.format(*HEADINGS))
    for seed in seeds:
        trace = Trace(keep=args.trace is not None or args.draw is not None)
        outcomes.append(simulate(scenario, arm, seed, trace))
        print(to_json(outcomes[-1].to_json()) if args.json else _row(str(seed), outcomes[-1:]), flush=True)
        if args.trace is not None:
            trace.write(args.trace)
        if args.draw is not None:
            title = f"{scenario.name}, router {arm.router}, seed {seed}"
            write_picture(args.draw, _drawn(trace, title, outcomes[-1], args), "--draw")
    if not args.json and len(outcomes) > 1:
        print(_row("median", outcomes))
    return 0


def _drawn(trace: Trace, title: str, outcome: Outcome, args: argparse.Namespace) -> str:
    """The picture that --draw asks for. Raises InputError for an iteration that there is not."""
    routes = trace.ways()
    if args.draw.suffix == MOVING:
        bars = [Bar(s.peer, s.what, s.about, s.began, s.ended, s.to or "") for s in trace.spans]
        stages = {peer: stage for route in routes for stage, peer in enumerate(route[:-1])}
        return iteration_page(bars, stages, args.iteration, title)
    done, seconds = sum(routes.values()), outcome.mean_iteration_s
    notes = (f"{done} microbatches in {len(outcome.iteration_seconds)} iterations of {seconds:.3f} s on average; "
             "a line is as wide as the number of microbatches over it",)  # fmt: skip
    return run_picture(routes, title, notes)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0-4` or `1,5,7` or both mixed. Raises InputError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or not (last.isdecimal() or not dash):
            raise InputError("--seeds", "", f"expected whole numbers such as 0-4 or 1,5,7, got {text!r}")
        low, high = int(first), int(last or first)
        if not low <= high < low + MOST_SEEDS:
            raise InputError("--seeds", "", f"expected a range upwards of at most {MOST_SEEDS} seeds, got {part!r}")
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds):
        raise InputError("--seeds", "", f"expected each seed once, got {text!r}")
    return tuple(seeds)


def _settings(texts: Sequence[str], cost: str | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in (*texts, *([f"cost={cost}"] if cost is not None else []))]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise InputError("--set", "", f"expected FIELD=VALUE, got {name!r}")
    return {name: value for name, _, value in pairs}


def _row(label: str, outcomes: Sequence[Outcome]) -> str:
    """One seed's figures, or the median of each column."""
    kinds = ("forward", "backward", "aggregation")
    recovered = "/".join(f"{median(o.recoveries.get(kind, 0) for o in outcomes):g}" for kind in kinds)
    return ROW.format(
        label,
        f"{median(o.mean_iteration_s for o in outcomes):.3f}",
        f"{median(o.bound_iteration_seconds for o in outcomes):.3f}",
        f"{median(o.bound_iteration_seconds / o.mean_iteration_s for o in outcomes):.1%}",
        f"{median(o.microbatches_per_second for o in outcomes):.3f}",
        f"{median(o.bound_microbatches_per_second for o in outcomes):.3f}",
        f"{median(o.microbatches_per_second / o.bound_microbatches_per_second for o in outcomes):.1%}",
        f"{median(o.wasted_compute_fraction for o in outcomes):.2%}",
        recovered,
        f"{median(o.microbatches_lost for o in outcomes):g}",
        f"{median(o.double_counted for o in outcomes):g}",
        f"{median(float(o.extra['messages']) for o in outcomes):.0f}",
    )
