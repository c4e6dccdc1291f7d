"""`gwtf routes`: the plan of a running swarm: flows, predicted and measured time, and the reason of each change.

The flows are those that the data peers publish, forecast by the planner's own model. Without `--once` it goes on: what changes
is told with its reason until Ctrl+C. Routes that are used but not in the plan have 0 microbatches.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.cli.shared.observing import add_observer_flags, watch

if TYPE_CHECKING:
    from gwtf_p2p.monitor.routes import RoutePlans
    from gwtf_p2p.monitor.swarm_state import Change, SwarmState

ROW = "{:<8} {:<40} {:>12} {:>11} {:>11}"


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("routes", help="the plan of a running swarm", description=__doc__)
    add_observer_flags(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per look on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Until Ctrl+C. Raises InputError."""
    from gwtf_p2p.monitor.routes import RoutePlans

    plans: list[RoutePlans] = []

    def on_look(state: SwarmState, changes: list[Change]) -> bool:
        if not plans:
            plans.append(RoutePlans(state.run))
        told = plans[0].look(list(state.records.values()))
        if args.json:
            print(to_json({**plans[0].plain(), "changes": [*(c.text for c in changes), *told]}), flush=True)
        else:
            _tell(plans[0], [change.text for change in changes], told, state.looks == 1)
        return bool(args.once)

    return watch(args, on_look)


def _tell(plans: RoutePlans, changes: list[str], told: list[str], first: bool) -> None:
    for text in changes:
        print(text, flush=True)
    if first or told:
        for text in [] if first else told:
            print(text, flush=True)
        print("\n".join(table(plans)), flush=True)


def table(plans: RoutePlans) -> list[str]:
    """The plan as lines."""
    lines = [f"{plans.run.run_id}, router {plans.run.router}: {plans.reason}"]
    lines.append(ROW.format("data", "route", "microbatches", "predicted s", "measured s"))
    for line in plans.lines:
        predicted = "" if line.predicted_s is None else f"{line.predicted_s:.3f}"
        measured = "" if line.measured_s is None else f"{line.measured_s:.3f}"
        lines.append(ROW.format(line.data_peer[-6:], line.route.replace(">", " > "), line.microbatches, predicted, measured))
    return lines
