"""How good are negotiated flows? Every problem file of a folder, many seeds, against the exact optimum.

    python -m experiments.bench.negotiated_quality ../shared/data/flow_cases --seeds 20

Prints per file: flows found (of the most possible), mean and worst cost above the optimum, messages, adverts and moves, virtual
seconds until the flows were full and until all was converged; means over the seeds. Settings as in `gwtf sim --set`.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, pstdev

from gwtf_p2p.protocol.flow.plan_keeper import check_plan
from gwtf_p2p.protocol.flow.problem_file import parse_problem
from gwtf_p2p.protocol.negotiation.negotiator import NegotiationConfig
from gwtf_p2p.protocol.routers.factory import configure
from gwtf_p2p.protocol.routers.optimal import optimal_plan
from gwtf_p2p.simulation.negotiation_run import THOROUGH, Negotiated, negotiate

HEADINGS = ("problem", "flows", "mean gap", "spread", "worst", "messages", "adverts", "moves", "full at s", "converged at s")
ROW = "{:<22} {:>9} {:>8} {:>8} {:>8} {:>9} {:>8} {:>7} {:>9} {:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of NegotiationConfig; repeatable")
    args = parser.parse_args()
    settings = dict(text.split("=", 1) for text in args.set)
    config = configure("negotiated", settings) if settings else THOROUGH
    assert isinstance(config, NegotiationConfig)
    print(f"{args.seeds} seeds, {config}")
    print(ROW.format(*HEADINGS))
    with ProcessPoolExecutor(args.processes) as pool:
        for path in sorted(args.folder.glob("*.json")):
            print(_row(path, list(pool.map(partial(run_one, path, config), range(args.seeds)))), flush=True)


def run_one(path: Path, config: NegotiationConfig, seed: int) -> Negotiated:
    """One negotiation, checked."""
    problem = parse_problem(path.read_text(), path.name)
    found = negotiate(problem, seed, config)
    check_plan(problem, found.plan)
    return found


def _row(path: Path, found: list[Negotiated]) -> str:
    best, _ = optimal_plan(parse_problem(path.read_text(), path.name))
    counts = sorted({len(one.plan.flows) for one in found})
    gaps = [one.plan.total_cost_us / best.total_cost_us - 1 for one in found]
    return ROW.format(
        path.stem,
        f"{counts[0] if len(counts) == 1 else counts} of {len(best.flows)}",
        f"{mean(gaps):.2%}",
        f"{pstdev(gaps):.2%}",
        f"{max(gaps):.2%}",
        f"{mean(one.messages for one in found):.0f}",
        f"{mean(one.adverts for one in found):.0f}",
        f"{mean(one.moves for one in found):.0f}",
        f"{mean(one.full_at_s for one in found):.1f}",
        f"{mean(one.seconds for one in found):.0f}",
    )


if __name__ == "__main__":
    main()
