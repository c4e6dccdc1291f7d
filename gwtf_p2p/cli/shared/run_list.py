"""`gwtf runs` (`gwtf run list`): the runs that there are on the DHT of an initial peer, one line each."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.cli.shared.observing import initial_peers_of

if TYPE_CHECKING:
    from gwtf_p2p.protocol.wire.run_notice import RunNotice


def add_parser(actions: Any) -> None:
    """The flags of the action."""
    parser = actions.add_parser("list", help="list the runs that an initial peer knows", description=__doc__)
    whom = "multiaddrs, comma lists or @file (env GWTF_INITIAL_PEERS)"
    parser.add_argument("--initial_peers", nargs="*", default=[], metavar="MADDR", help=whom)
    parser.add_argument("--json", action="store_true", help="one JSON object per run on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0, also when there is no run. Raises InputError."""
    peers = initial_peers_of(args)
    logging.basicConfig(level="ERROR", stream=sys.stderr)
    import uvloop

    from gwtf_p2p.live.libp2p.daemon import DaemonFailed, NetworkUnreachable
    from gwtf_p2p.monitor.observer import list_runs

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(list_runs(peers))
    except (NetworkUnreachable, DaemonFailed) as error:
        print(f"gwtf runs: {error}", file=sys.stderr)
        return int(error.exit_code)
    for notice in found:
        print(to_json(asdict(notice)) if args.json else _line(notice), flush=True)
    if not found and not args.json:
        print("no run is there", file=sys.stderr)
    return 0


def _line(notice: RunNotice) -> str:
    end = f"{notice.total_iterations} iterations" if notice.total_iterations else "no end"
    return f"{notice.run_id}  {notice.model}, {notice.stages} stage(s), {end}"
