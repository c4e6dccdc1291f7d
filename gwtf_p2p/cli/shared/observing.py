"""What `gwtf monitor` and `gwtf routes` share: flags, and running an observer until Ctrl+C."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.peer_flags import add_token_flag, token_flag
from gwtf_p2p.protocol.errors import InputError, OtherWireVersion
from gwtf_p2p.protocol.ids import PeerId, RunId

if TYPE_CHECKING:
    from gwtf_p2p.live.libp2p.maddrs import InitialPeer
    from gwtf_p2p.monitor.observer import OnLook


def add_observer_flags(parser: argparse.ArgumentParser, *, several_runs: bool = False, once: bool = True) -> None:
    """Whom to ask, and for which run; `several_runs`: --run_id may be given again, and is a list. `once`: with --once."""
    add = parser.add_argument
    add("-c", "--config", metavar="FILE", help="flags from a TOML file")
    whom = "multiaddrs, comma lists or @file (env GWTF_INITIAL_PEERS)"
    add("--initial_peers", nargs="*", default=[], metavar="MADDR", help=whom)
    if several_runs:
        add("--run_id", type=takes.run_id, nargs="+", action="extend", default=[], metavar="RUN", help="runs to look at")
    else:
        add("--run_id", type=takes.run_id, help="the run to look at")
    add("--run_owner", type=takes.peer_id, metavar="PEER_ID", help="believe this owner's run record only")
    add_token_flag(add)
    if once:
        add("--once", action="store_true", help="one look, then end")
    add(
        "--log_level",
        type=takes.log_level,
        default=os.environ.get("HIVEMIND_LOGLEVEL", "WARNING"),
        help="DEBUG, INFO, WARNING or ERROR",
    )


def initial_peers_of(args: argparse.Namespace) -> tuple[InitialPeer, ...]:
    """Whom to ask. Raises InputError."""
    from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers

    peers = parse_initial_peers(args.initial_peers, os.environ)
    if not peers:
        raise InputError("--initial_peers", "", "expected at least one multiaddr, as `gwtf bootstrap` prints it")
    return peers


def run_ids_of(args: argparse.Namespace) -> tuple[RunId, ...]:
    """The runs to look at, each once. Raises InputError."""
    given = [args.run_id] if isinstance(args.run_id, str) else args.run_id or []
    if not given or not all(given):
        raise InputError("--run_id", "", "expected the id of the run to look at")
    found = tuple(RunId(run_id) for run_id in dict.fromkeys(given))
    if len(found) > 1 and (args.run_owner or args.token):
        raise InputError("--run_owner" if args.run_owner else token_flag(args), "", f"expected with one run, got {len(found)}")
    return found


def observe_until(
    peers: tuple[InitialPeer, ...],
    run_ids: tuple[RunId, ...],
    on_look: OnLook,
    stop: threading.Event,
    owner: PeerId | None = None,
    token: str = "",
) -> str:
    """Observe in the thread of the caller, until `stop` is set. Returns why it ended when it did by itself."""
    import uvloop

    from gwtf_p2p.live.libp2p.light_import import without_torch

    without_torch()
    from gwtf_p2p.live.discovery.run_trust import RunConflict
    from gwtf_p2p.live.libp2p.daemon import DaemonFailed, NetworkUnreachable
    from gwtf_p2p.monitor.observer import Access, observe_runs

    async def main() -> None:
        ended = asyncio.Event()
        told = asyncio.ensure_future(asyncio.to_thread(stop.wait))
        told.add_done_callback(lambda _: ended.set())
        try:
            await observe_runs(peers, run_ids, on_look, ended, Access(owner, token))
        finally:
            stop.set()
            await told

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except (NetworkUnreachable, DaemonFailed, RunConflict, OtherWireVersion, InputError) as error:
        return str(error)
    return ""


def watch(args: argparse.Namespace, on_look: OnLook) -> int:
    """Observe until Ctrl+C or SIGTERM, or until `on_look` has seen enough. Returns the exit code. Raises InputError."""
    run_ids = run_ids_of(args)
    peers = initial_peers_of(args)
    logging.basicConfig(level=args.log_level.upper(), stream=sys.stderr)
    import uvloop

    from gwtf_p2p.live.libp2p.light_import import without_torch

    without_torch()
    from gwtf_p2p.live.discovery.run_trust import RunConflict
    from gwtf_p2p.live.libp2p.daemon import DaemonFailed, NetworkUnreachable
    from gwtf_p2p.monitor.observer import Access, observe_runs

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await observe_runs(peers, run_ids, on_look, stop, Access(args.run_owner, args.token or ""))

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except (NetworkUnreachable, DaemonFailed, RunConflict, OtherWireVersion) as error:
        print(f"gwtf {args.verb}: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0
