"""`gwtf plan PROBLEM.json`: plans a problem file without a network.

With `--json` one object on stdout; otherwise the flows drawn stage by stage, their costs, and how good the plan is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.cli.shared.pictures import STILL, plan_picture
from gwtf_p2p.drawing.files import check_picture_path, write_picture
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.flow.plan_keeper import Plan, check_plan, plan_problem
from gwtf_p2p.protocol.flow.problem import Problem
from gwtf_p2p.protocol.flow.problem_file import parse_problem
from gwtf_p2p.protocol.routers.greedy import greedy_plan
from gwtf_p2p.protocol.routers.optimal import optimal_plan
from gwtf_p2p.protocol.routers.random import random_plan
from gwtf_p2p.simulation.negotiation_run import negotiate


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, one line on how good it is and why, and what else the answer should say."""

    plan: Plan
    reason: str
    figures: Mapping[str, object] = field(default_factory=dict)


PlanMaker = Callable[[Problem, int], Planned]
COSTS = ("paper",)
"""A problem file says what a flow costs, not what a pipeline does: see `gwtf sim` for plans of the latter."""


def _negotiated(problem: Problem, seed: int) -> Planned:
    found = negotiate(problem, seed)
    return Planned(found.plan, found.reason, {"messages": found.messages})


PLANNERS: dict[str, PlanMaker] = {
    "gwtf": lambda problem, _: Planned(*plan_problem(problem)),
    "negotiated": _negotiated,
    "greedy": lambda problem, _: Planned(*greedy_plan(problem)),
    "random": lambda problem, seed: Planned(*random_plan(problem, Random(seed))),
    "optimal": lambda problem, _: Planned(*optimal_plan(problem)),
}
"""By a problem and a seed."""


def add_parser(subparsers: Any) -> None:
    """Flags of `gwtf plan`."""
    summary = (__doc__ or "").split("\n", 1)[0]
    parser = subparsers.add_parser("plan", help="plan the flows of a problem file", description=summary)
    parser.add_argument("problem", metavar="PROBLEM.json")
    parser.add_argument("--router", default="gwtf", help=f"{', '.join(PLANNERS)} (default gwtf)")
    parser.add_argument("--seed", type=int, default=0, help="of routers that draw at random (default 0)")
    parser.add_argument("--cost", default="paper", help=f"what gwtf makes least: {', '.join(COSTS)} (default paper)")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="the flows stage by stage, as .svg or .png")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises InputError for an unknown router or cost model and for a bad problem file."""
    _expect_one_of("--router", args.router, PLANNERS)
    _expect_one_of("--cost", args.cost, COSTS)
    if args.draw is not None:
        check_picture_path(args.draw, "--draw", STILL)
    problem = parse_problem(read_text(Path(args.problem)), args.problem)
    began = time.perf_counter()
    planned = PLANNERS[args.router](problem, args.seed)
    seconds = time.perf_counter() - began
    check_plan(problem, planned.plan)
    if args.draw is not None:
        flows = planned.plan.flows
        title = f"{problem.name}: {len(flows)} flows by {args.router}, total cost {planned.plan.total_cost_us}"
        notes = (
            planned.reason,
            "a line is as wide as the number of flows over it; numbers: flows of how many the peer has room for",
        )
        write_picture(args.draw, plan_picture(problem, (flow.peers for flow in flows), title, notes), "--draw")
    if args.json:
        print(to_json(answer(args.router, planned, seconds)))
    else:
        print("\n".join(drawn(problem, args.router, planned, seconds)))
    return 0


def answer(router: str, planned: Planned, seconds: float) -> dict[str, object]:
    """The object that `--json` prints. Costs are integers (microseconds, or the unit of the file's `cost` fields)."""
    plan = planned.plan
    bound = {} if plan.lower_bound_us is None else {"lower_bound": plan.lower_bound_us}
    return {
        "router": router,
        "flows": [{"data_peer": f.data_peer, "peers": list(f.peers), "cost": f.cost_us} for f in plan.flows],
        "flow_count": len(plan.flows),
        "total_cost": plan.total_cost_us,
        "max_cost": plan.max_cost_us,
        **bound,
        "seconds": round(seconds, 6),
        **planned.figures,
        "reason": planned.reason,
    }


def drawn(problem: Problem, router: str, planned: Planned, seconds: float) -> list[str]:
    """The flows, one line each with a column per stage, and two lines of summary."""
    plan = planned.plan
    headings = ["data peer", *(f"stage {k}" for k in range(1, problem.stages + 1)), "data peer"]
    columns = [[heading, *(flow.peers[k] for flow in plan.flows)] for k, heading in enumerate(headings)]
    widths = [max(len(cell) for cell in column) for column in columns]
    costs = [str(flow.cost_us) for flow in plan.flows]
    cost_width = max(len(cost) for cost in ["cost", *costs])
    lines = ["   ".join(h.ljust(w) for h, w in zip(headings, widths, strict=True)) + "   " + "cost".rjust(cost_width)]
    for flow, cost in zip(plan.flows, costs, strict=True):
        hops = " > ".join(peer.ljust(w) for peer, w in zip(flow.peers, widths, strict=True))
        lines.append(f"{hops}   {cost.rjust(cost_width)}")
    bound = "" if plan.lower_bound_us is None else f", lower bound {plan.lower_bound_us}"
    summary = f"{len(plan.flows)} flows, total cost {plan.total_cost_us}, dearest {plan.max_cost_us}{bound}"
    return [*lines, "", f"{router}: {summary}, {seconds:.3f} s", planned.reason]


def read_text(path: Path) -> str:
    """Raises InputError when the file cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(str(path), "", f"expected UTF-8 text, but {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise InputError(str(path), "", f"expected a readable file, but {error.strerror or error}") from error


def _expect_one_of(flag: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise InputError(flag, "", f"expected one of {', '.join(choices)}, got {value!r}")
