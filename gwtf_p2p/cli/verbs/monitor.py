"""`gwtf monitor`: what a running swarm is doing, in the terminal; with `--port` also as a web page, JSON and metrics.

It reads the records that peers publish, takes no part in the run and holds nothing. With `--json` one object per look on
stdout, the same as /api/v1/state.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.shared.observing import add_observer_flags, watch

if TYPE_CHECKING:
    from gwtf_p2p.monitor.swarm_state import Change, SwarmState


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("monitor", help="watch a running swarm", description=__doc__)
    add_observer_flags(parser)
    parser.add_argument("--port", type=int, help="serve a web page, /api/v1/state and /metrics there (0: any free port)")
    parser.add_argument("--host", default="127.0.0.1", help="address of the web server (default 127.0.0.1)")
    parser.add_argument("--json", action="store_true", help="one JSON object per look on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Until Ctrl+C. Raises InputError."""
    from rich.console import Console
    from rich.live import Live

    from gwtf_p2p.monitor.swarm_view import plain_line, render_swarm
    from gwtf_p2p.monitor.web import WebServer

    seen: list[SwarmState] = []
    console = Console()
    with ExitStack() as stack:
        if args.port is not None:
            server = WebServer(
                args.host,
                args.port,
                lambda: seen[-1].plain() if seen else None,
                lambda: seen[-1].prometheus() if seen else None,
            )
            server.start()
            stack.callback(server.stop)
            print(f"serving {server.url}", file=sys.stderr, flush=True)
        in_terminal = console.is_terminal and not args.json
        live = stack.enter_context(Live(console=console, auto_refresh=False)) if in_terminal else None

        def on_look(state: SwarmState, changes: list[Change]) -> bool:
            seen[:] = [state]
            if args.json:
                print(json.dumps(state.plain()), flush=True)
            elif live is not None:
                live.update(render_swarm(state), refresh=True)
            else:
                for change in changes:
                    print(change.text, flush=True)
                print(plain_line(state), flush=True)
            return bool(args.once)

        return watch(args, on_look)
