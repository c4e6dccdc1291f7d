"""`gwtf ledger`: who has contributed what to a run, in committed microbatches.

The data peers keep the sums as part of the run's state: work that was tried again, done again or rolled back is not in them.
Seconds are by each peer's own published medians. Names are what peers call themselves; ids are what is true.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.cli.shared.observing import add_observer_flags, watch

if TYPE_CHECKING:
    from gwtf_p2p.monitor.swarm_state import Change, SwarmState

ROW = "{:>4}  {:<24} {:<8} {:<7} {:>12} {:>14} {:>10} {:>7} {:>6}"
LOOKS = 3
"""A record that is on its way is waited for so many looks."""


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("ledger", help="who has contributed what to a run", description=__doc__)
    add_observer_flags(parser, once=False)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """One look. Raises InputError."""
    from gwtf_p2p.monitor.ledger import plain

    def on_look(state: SwarmState, changes: list[Change]) -> bool:
        if not state.told.contributions.of and state.looks < LOOKS:
            return False
        if args.json:
            print(to_json(plain(state.told, state.run, state.records)), flush=True)
        else:
            print("\n".join(table(state)), flush=True)
        return True

    return watch(args, on_look)


def table(state: SwarmState) -> list[str]:
    """The ledger as lines."""
    from gwtf_p2p.monitor.ledger import entries
    from gwtf_p2p.protocol.stall.rules import duration

    told = state.told
    if not told.contributions.of:
        return [f"{state.run.run_id}: no data peer tells of committed microbatches yet"]
    lines = [f"{state.run.run_id} after {told.version} iterations, as {told.agree} of {told.data_peers} data peers say"]
    if not told.complete:
        lines.append("some pages of it have not been found; look again")
    for stage, version in told.contributions.rebuilt:
        lines.append(f"stage {stage} was rebuilt from its neighbours' weights after {version} iterations: nobody had its own")
    lines.append(ROW.format("", "name", "id", "stages", "microbatches", "tokens", "computed", "share", "audits"))
    for place, e in enumerate(entries(told, state.run, state.records), start=1):
        stages = ",".join(str(stage) if stage else "data" for stage in e.stages)
        tokens, computed = f"{e.tokens:,}", duration(e.seconds)
        share = f"{e.share:.1%}"
        lines.append(ROW.format(place, e.name[:24], e.peer[-6:], stages[:7], e.microbatches, tokens, computed, share, e.audits))
    return lines
