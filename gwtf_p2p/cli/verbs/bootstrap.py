"""`gwtf bootstrap`: a bootstrap peer, the rendezvous of a swarm. It holds no stage; it prints the line that others paste."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.shared.free_place import settle_identity
from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.cli.shared.peer_flags import BOOTSTRAP_PORT, add_network_flags, p2p_options, serve
from gwtf_p2p.live.compute.process_memory import bound_arenas
from gwtf_p2p.live.libp2p.light_import import without_torch

if TYPE_CHECKING:
    from gwtf_p2p.live.peer.config import PeerConfig


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("bootstrap", help="bootstrap peer: rendezvous for a swarm", description=__doc__)
    add_network_flags(parser, BOOTSTRAP_PORT)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl+C."""
    bound_arenas()

    def report(fields: dict[str, Any]) -> None:
        if args.json:
            print(to_json(fields), flush=True)
        elif fields["name"] == "started":
            print(f"Bootstrap peer {fields['peer']} is up. Others join with one of:", flush=True)
            for maddr in fields["maddrs"]:
                print(f"  --initial_peers {maddr}", flush=True)
            if "lends" in fields:
                print(f"On its address {fields['lends']} (--lend_slots, --lend_gb).", flush=True)

    return serve(config_of(args), args, report)


def config_of(args: argparse.Namespace) -> PeerConfig:
    """What the flags say. Raises InputError."""
    options = p2p_options(args, needs_peers=False)
    identity = settle_identity(args.identity_path, os.environ)
    without_torch()  # what is imported from here on imports hivemind
    from gwtf_p2p.live.peer.config import PeerConfig

    return PeerConfig("bootstrap", options, identity, join_timeout_s=args.timeout)
