"""`gwtf monitor`: what running swarms are doing, in the terminal; with `--port` also as a web page, JSON and metrics.

It reads the records that peers publish, takes no part in the run and holds nothing. With `--json` one object per look on
stdout, the same as /api/v1/runs/RUN/state. What it has seen is kept in `--history`, so that a fresh monitor begins where an
earlier one on this disk has ended.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.cli.shared.observing import add_observer_flags, initial_peers_of, run_ids_of, watch
from gwtf_p2p.cli.shared.peer_flags import add_alert_flags
from gwtf_p2p.protocol.errors import InputError

if TYPE_CHECKING:
    from gwtf_p2p.monitor.page.join_line import JoinLine
    from gwtf_p2p.monitor.page.server import PageServer
    from gwtf_p2p.monitor.page.watched_runs import WatchedRuns
    from gwtf_p2p.monitor.swarm_state import Change, SwarmState


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("monitor", help="watch running swarms", description=__doc__)
    add_observer_flags(parser, several_runs=True)
    add = parser.add_argument
    add("--port", type=takes.port, help="serve a web page, a JSON API and /metrics there (0: any free port)")
    add("--host", default="127.0.0.1", help="address of the web server (default 127.0.0.1)")
    add("--public", action="store_true", help="tell no addresses of peers on the page and in the API")
    join = "initial peers that the page's join line names (default: --initial_peers; with --public: none)"
    add("--join_peers", nargs="*", default=[], metavar="MADDR", help=join)
    add("--history", type=takes.file, metavar="FILE", help="what was seen is kept there (default ~/.gwtf/monitor.sqlite)")
    add("--no_history", action="store_true", help="keep what was seen in memory only")
    add_alert_flags(add)
    add("--json", action="store_true", help="one JSON object per look on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Until Ctrl+C. Raises InputError."""
    from rich.console import Console, Group
    from rich.live import Live

    from gwtf_p2p.monitor.alerts import Alerts
    from gwtf_p2p.monitor.terminal.swarm_view import plain_line, swarm_view

    several = len(run_ids_of(args)) > 1
    console = Console()
    with ExitStack() as stack:
        runs = _watched_runs(args, stack)
        if args.port is not None:
            server = _server(args, runs)
            server.start()
            stack.callback(server.stop)
            print(f"serving {server.url}", file=sys.stderr, flush=True)
        in_terminal = console.is_terminal and not args.json and not several
        live = stack.enter_context(Live(console=console, auto_refresh=False)) if in_terminal else None

        alerts = Alerts(args.on_alert, args.alert_after)

        def on_look(state: SwarmState, changes: list[Change]) -> bool:
            alerts.look(state)
            if args.port is not None or args.json:
                runs.look(state, changes)
            if args.json:
                print(to_json(runs.by_id[state.run.run_id].feed.document), flush=True)
            elif live is not None:
                size = console.size
                live.update(Group(*swarm_view(state, (size.width, size.height - 1))), refresh=True)
            else:
                name = f"{state.run.run_id}: " if several else ""
                for text in (*(change.text for change in changes), plain_line(state)):
                    print(name + text, flush=True)
            return bool(args.once)

        return watch(args, on_look)


def _watched_runs(args: argparse.Namespace, stack: ExitStack) -> WatchedRuns:
    """With the history on disk where a page is served. Raises InputError."""
    from gwtf_p2p.live.libp2p.identity import state_dir
    from gwtf_p2p.monitor.history.store import open_history
    from gwtf_p2p.monitor.page.watched_runs import PageOptions, WatchedRuns

    if args.no_history and args.history:
        raise InputError("--history, --no_history", str(args.history), "expected one of them")
    in_memory = args.no_history or args.port is None
    history = open_history(None if in_memory else args.history or state_dir(os.environ) / "monitor.sqlite")
    stack.callback(history.close)
    return WatchedRuns(history, PageOptions(args.public, _join_line(args)))


def _join_line(args: argparse.Namespace) -> JoinLine:
    from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
    from gwtf_p2p.monitor.page.join_line import JoinLine

    if args.join_peers:
        return JoinLine(parse_initial_peers(args.join_peers, {}, "--join_peers"))
    return JoinLine(() if args.public else initial_peers_of(args))


def _server(args: argparse.Namespace, runs: WatchedRuns) -> PageServer:
    """Raises InputError when the port cannot be had, or the web server is not installed."""
    try:
        from gwtf_p2p.monitor.page.server import PageServer
    except ImportError as error:
        expected = "the page needs: pip install 'gwtf-p2p[monitor]'"
        raise InputError("--port", str(args.port), f"{expected} ({error.name} is missing)") from error
    return PageServer(args.host, args.port, runs)
