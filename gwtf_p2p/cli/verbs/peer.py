"""`gwtf peer`: a stage peer. `gwtf peer --initial_peers MADDR --run_id R` is enough."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.process.outcome import outcome
from gwtf_p2p.cli.process.supervisor import supervised
from gwtf_p2p.cli.shared.limit_flags import check_compute_flags
from gwtf_p2p.cli.shared.peer_flags import (
    PEER_PORT,
    add_compute_flags,
    add_network_flags,
    add_owner_flag,
    check_initial_peers,
    config_of_flags,
    p2p_options,
    serve,
)
from gwtf_p2p.cli.shared.peer_reports import telling
from gwtf_p2p.live.compute.process_memory import bound_arenas
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import RunId

if TYPE_CHECKING:
    from gwtf_p2p.live.lives.handover import Handover
    from gwtf_p2p.live.peer.config import OnReport, PeerConfig


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("peer", help="stage peer: holds one stage of the model", description=__doc__)
    groups = add_network_flags(parser, PEER_PORT)
    add = groups["training"].add_argument
    add("--run_id", type=takes.run_id, help="the run to take part in")
    add("--stage", type=takes.stage, help="hold this stage, and stay there, instead of the one that needs a peer most")
    groups["limits"].add_argument(
        "--capacity", type=takes.capacity, default=4, help="most microbatches held at once (default 4)"
    )
    add_owner_flag(add)
    add_compute_flags(groups)
    again = "start it again when it has crashed, in a second or two: torch stays loaded (Linux)"
    groups["diagnostics"].add_argument("--supervise", action="store_true", help=again)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl+C."""
    if not args.supervise:
        return _serve(args)
    _check(args)
    bound_arenas()
    return supervised(lambda handover: outcome("peer", lambda: _serve(args, handover)), said_by="gwtf peer")


def _serve(args: argparse.Namespace, handover: Handover | None = None) -> int:
    bound_arenas()
    with telling(args) as tell:
        config = config_of(args, tell)
        if handover is not None:
            config = replace(config, handover=handover, options=replace(config.options, outlives=True))
        return serve(config, args, tell)


def _check(args: argparse.Namespace) -> None:
    """What can be judged at once. Raises InputError."""
    if not args.run_id:
        raise InputError("--run_id", "", "expected the id of the run to take part in")
    check_compute_flags(args)
    check_initial_peers(args)


def config_of(args: argparse.Namespace, tell: OnReport = lambda report: None) -> PeerConfig:
    """What the flags say. `tell` hears when they are known to be right and torch is about to be loaded. Raises InputError."""
    _check(args)
    options = p2p_options(args, needs_peers=True)
    tell({"name": "step", "done": "flags"})
    from gwtf_p2p.training.compute.device import resolve_device

    resolve_device(args.device)
    tell({"name": "step", "done": "loaded"})
    return replace(
        config_of_flags(args, options, "peer"),
        run_id=RunId(args.run_id),
        stage=args.stage,
        moves=args.stage is None,
        capacity=args.capacity,
    )
