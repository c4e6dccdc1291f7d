"""`gwtf top`: a running swarm on the whole screen, with a keyboard.

From the records in its DHT (`--initial_peers`, `--run_id`), or from a monitor that somebody serves (`gwtf top http://HOST:PORT`).
It takes no part in the run.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gwtf_p2p.cli.shared.observing import add_observer_flags, initial_peers_of, observe_until, run_ids_of
from gwtf_p2p.cli.shared.peer_flags import token_flag
from gwtf_p2p.protocol.errors import InputError

if TYPE_CHECKING:
    from gwtf_p2p.monitor.top.source import Source


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("top", help="a running swarm on the whole screen", description=__doc__)
    monitor = "address of a monitor's page; without it the swarm is looked at itself, at --initial_peers"
    parser.add_argument("monitor", nargs="?", default="", metavar="URL", help=monitor)
    add_observer_flags(parser, several_runs=True, once=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Until q or Ctrl+C. Raises InputError."""
    source = source_of(args)
    if not sys.stdout.isatty():
        raise InputError("stdout", "", "expected a terminal; `gwtf monitor` prints lines and JSON")
    from gwtf_p2p.monitor.top.app import Top

    app = Top(source)
    app.run()
    if app.trouble and not app.runs:
        print(f"gwtf top: {app.trouble}", file=sys.stderr)
        return 3
    return 0


def source_of(args: argparse.Namespace) -> Source:
    """Where to look. Raises InputError."""
    from gwtf_p2p.monitor.top.source import ApiSource

    if not args.monitor:
        return _swarm(args)
    parts = urlsplit(args.monitor)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("URL", args.monitor, "expected the address of a monitor, such as http://127.0.0.1:8080")
    of_swarms = {"--initial_peers": args.initial_peers, "--run_owner": args.run_owner, "--token": token_flag(args) == "--token"}
    for flag, is_given in of_swarms.items():
        if is_given:
            raise InputError(f"URL, {flag}", args.monitor, "expected one of them")
    if len(args.run_id) > 1:
        raise InputError("--run_id", " ".join(args.run_id), "expected one run of that monitor, or none for all (key n)")
    url = f"{parts.scheme}://{parts.netloc}{parts.path.split('/runs/')[0]}"
    return ApiSource(url, args.run_id[0] if args.run_id else "")


def _swarm(args: argparse.Namespace) -> Source:
    from gwtf_p2p.monitor.history.store import open_history
    from gwtf_p2p.monitor.page.watched_runs import WatchedRuns
    from gwtf_p2p.monitor.top.source import SwarmSource

    run_ids, peers = run_ids_of(args), initial_peers_of(args)

    def observe(on_look: Callable[..., bool], stop: threading.Event) -> str:
        return observe_until(peers, run_ids, on_look, stop, args.run_owner, args.token or "")

    return SwarmSource(", ".join(run_ids), WatchedRuns(open_history(None)), observe)
