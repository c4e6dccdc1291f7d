"""`gwtf runs`: the runs that there are on the DHT of an initial peer, one line each; `gwtf ban PEER` and `gwtf allow PEER`: the
owner of a run, or one of its admins, says who may take part in it.

An order is signed with the identity given by --identity_path, which may be in use by a peer at the same time. `gwtf ban --list`
tells anybody who is banned.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.cli.shared.observing import initial_peers_of
from gwtf_p2p.cli.shared.peer_flags import add_token_flag
from gwtf_p2p.protocol.errors import InputError, OtherWireVersion
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.stall.rules import counted

if TYPE_CHECKING:
    from gwtf_p2p.live.libp2p.identity import Identity
    from gwtf_p2p.live.libp2p.maddrs import InitialPeer
    from gwtf_p2p.protocol.trust.entry import Entry
    from gwtf_p2p.protocol.wire.signed import RunNotice

KEPT_S = 1800.0
"""For how long what is published here stays in the DHT by itself; peers of the run pass it on from then on."""


def add_parsers(actions: Any) -> None:
    """The flags of the actions `list`, `ban` and `allow`."""
    _add_list(actions)
    ban = actions.add_parser("ban", help="keep a peer out of a run that you own", description=__doc__)
    ban.add_argument("--list", action="store_true", dest="lists", help="tell who is banned, and ban nobody")
    allow = actions.add_parser("allow", help="let a peer into a listed run, or back into any", description=__doc__)
    allow.set_defaults(lists=False)
    for parser, bans in ((ban, True), (allow, False)):
        add = parser.add_argument
        add("peers", nargs="*", type=takes.peer_id, metavar="PEER", help="peer ids, as `gwtf id` prints them")
        whom = "multiaddrs, comma lists or @file (env GWTF_INITIAL_PEERS)"
        add("--initial_peers", nargs="*", default=[], metavar="MADDR", help=whom)
        add("--run_id", type=takes.run_id, help="the run")
        add("--run_owner", type=takes.peer_id, metavar="PEER_ID", help="believe this owner's run record only")
        add_token_flag(add)
        identity = "the owner's or an admin's identity file (default ~/.gwtf/identity.key)"
        add("--identity_path", type=takes.file, metavar="FILE", help=identity)
        add("--json", action="store_true", help="one JSON object on stdout")
        parser.set_defaults(run=run_order, bans=bans)


def _add_list(actions: Any) -> None:
    parser = actions.add_parser("list", help="list the runs that an initial peer knows")
    whom = "multiaddrs, comma lists or @file (env GWTF_INITIAL_PEERS)"
    parser.add_argument("--initial_peers", nargs="*", default=[], metavar="MADDR", help=whom)
    parser.add_argument("--json", action="store_true", help="one JSON object per run on stdout")
    parser.set_defaults(run=list_runs)


def list_runs(args: argparse.Namespace) -> int:
    """Exit code 0, also when there is no run. Raises InputError."""
    peers = initial_peers_of(args)
    logging.basicConfig(level="ERROR", stream=sys.stderr)
    import uvloop

    from gwtf_p2p.live.libp2p.daemon import DaemonFailed, NetworkUnreachable
    from gwtf_p2p.monitor.observer import list_runs as runs_there

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(runs_there(peers))
    except (NetworkUnreachable, DaemonFailed) as error:
        print(f"gwtf runs: {error}", file=sys.stderr)
        return int(error.exit_code)
    for notice in found:
        print(to_json(asdict(notice)) if args.json else _line(notice), flush=True)
    if not found and not args.json:
        print("no run is there", file=sys.stderr)
    return 0


def _line(notice: RunNotice) -> str:
    end = f"{counted(notice.total_iterations, 'iteration')}" if notice.total_iterations else "no end"
    admission = "" if notice.admission == "open" else f", {notice.admission}"
    return f"{notice.run_id}  {notice.model}, {counted(notice.stages, 'stage')}, {end}{admission}"


def run_order(args: argparse.Namespace) -> int:
    """Exit code 5 when this identity has no say in the run. Raises InputError."""
    if not args.run_id:
        raise InputError("--run_id", "", "expected the id of the run")
    if bool(args.peers) == args.lists:
        raise InputError("PEER", "", "expected the peer ids to ban, or --list" if args.bans else "expected peer ids")
    peers = initial_peers_of(args)
    identity = None if args.lists else _identity(args)
    logging.basicConfig(level="ERROR", stream=sys.stderr)
    import uvloop

    from gwtf_p2p.live.libp2p.light_import import without_torch

    without_torch()
    from gwtf_p2p.live.discovery.run_trust import RunConflict
    from gwtf_p2p.live.libp2p.daemon import DaemonFailed, NetworkUnreachable

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            entry = runner.run(_order(args, peers, identity))
    except (NetworkUnreachable, DaemonFailed, RunConflict, OtherWireVersion, NoSay) as error:
        print(f"gwtf {'ban' if args.bans else 'allow'}: {error}", file=sys.stderr)
        return int(error.exit_code)
    if args.json:
        print(to_json({"run_id": args.run_id, "owner": entry.terms.owner, "banned": dict(entry.banned)}))
        return 0
    for peer in args.peers:
        print(f"{peer}: {entry.refusal(peer) or 'may take part'}")
    if args.lists:
        print("\n".join(f"{peer}: {why}" for peer, why in entry.banned.items()) or "nobody is banned")
    return 0


class NoSay(Exception):
    """This identity has no say in the run, or nobody kept what it said. Exit code 5."""

    exit_code = 5


def _identity(args: argparse.Namespace) -> Identity:
    from gwtf_p2p.live.libp2p.identity import default_identity_path, load_identity

    return load_identity(args.identity_path or default_identity_path(os.environ))


async def _order(args: argparse.Namespace, initial_peers: tuple[InitialPeer, ...], identity: Identity | None) -> Entry:
    """Who may take part, as it is from now on. Raises what `run_order` catches, and InputError for a run that is not there."""
    from gwtf_p2p.live.discovery.order_book import OrderBook, give
    from gwtf_p2p.live.discovery.run_trust import Trusted
    from gwtf_p2p.monitor.observer import find_run, observing_dht
    from gwtf_p2p.protocol.trust.entry import Entry
    from gwtf_p2p.protocol.wire.signed import MOST_ORDERED, terms_of

    run_id = RunId(args.run_id)
    async with observing_dht(initial_peers, run_id, args.token or "") as (_, dht):
        run = await find_run(dht, run_id, Trusted(args.run_owner))
        terms = terms_of(run)
        there = await dht.read_orders(terms)
        if identity is None:
            return Entry(terms).after(signed.order for signed in there)
        book = OrderBook(identity, terms)
        book.hear(there)
        me = identity.peer_id
        if me not in terms.issuers:
            raise NoSay(f"run {run_id}: only {', '.join(terms.issuers)} may say who takes part, not {me}")
        if why := book.entry.refusal(me):
            raise NoSay(f"run {run_id}: {me} is {why}")
        given = (book.entry.banning if args.bans else book.entry.allowing)(me, _distinct(args.peers), int(time.time()))
        if max(len(given.banned), len(given.allowed)) > MOST_ORDERED:
            raise InputError("PEER", "", f"expected at most {MOST_ORDERED} that one issuer bans, and as many that it allows")
        order = give(identity, given)
        if not await dht.publish_order(order, KEPT_S):
            raise NoSay(f"run {run_id}: no peer keeps the order; try again")
        book.hear([order])
        return book.entry


def _distinct(peers: list[PeerId]) -> list[PeerId]:
    return list(dict.fromkeys(peers))
