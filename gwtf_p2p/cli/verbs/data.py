"""`gwtf data`: a data peer. It starts a run (`--new_run FILE.toml`) or takes up a shard of one (`--run_id R`)."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.limit_flags import BYTES_PER_S_OF_A_MBPS, check_compute_flags
from gwtf_p2p.cli.shared.peer_flags import (
    PEER_PORT,
    add_compute_flags,
    add_network_flags,
    add_owner_flag,
    check_initial_peers,
    config_of_flags,
    p2p_options,
    serve,
    token_flag,
)
from gwtf_p2p.cli.shared.peer_reports import telling
from gwtf_p2p.cli.shared.run_file import check_hub_files, check_settings, read_toml, run_from_plain
from gwtf_p2p.live.compute.process_memory import bound_arenas
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import RunId

if TYPE_CHECKING:
    from gwtf_p2p.live.peer.config import OnReport, PeerConfig


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    summary = "data peer: holds a shard of the dataset, the embedding, the head and the loss"
    parser = subparsers.add_parser("data", help=summary, description=__doc__)
    groups = add_network_flags(parser, PEER_PORT)
    add = groups["training"].add_argument
    add("--new_run", type=Path, metavar="FILE", help="start the run that this TOML file describes")
    add("--run_id", type=takes.run_id, help="take part in this run")
    add("--shard", type=takes.whole(0), help="hold this shard instead of the lowest free one")
    add_owner_flag(add)
    add_compute_flags(groups)
    lost = "where nobody has a stage's weights any more, rebuild them from the neighbouring stages' (default: wait, and say so)"
    groups["state"].add_argument("--rebuild_lost_stage", action="store_true", help=lost)
    tell = groups["diagnostics"].add_argument
    tell("--metrics", type=takes.file, metavar="FILE", help="append the figures of every step to it, as JSON lines")
    tell("--track", default="", metavar="NAME", help="log them to tensorboard[:FOLDER], trackio or wandb, if installed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl+C."""
    bound_arenas()
    with telling(args) as tell:
        return serve(config_of(args, tell), args, tell)


def _checked(args: argparse.Namespace) -> dict[str, Any]:
    """The run file, as far as it can be judged at once: that costs nothing, and all that follows loads torch."""
    if args.run_owner:
        raise InputError("--run_owner", args.run_owner, "expected without --new_run: this peer owns what it starts")
    plain = read_toml(args.new_run)
    draft = check_settings(plain, str(args.new_run))
    if draft.admission == "secret" and not args.token:
        raise InputError("--token", str(args.new_run), "expected a token (or GWTF_TOKEN): the run's admission is secret")
    if draft.admission != "secret" and args.token:
        raise InputError(token_flag(args), str(args.new_run), "expected no token: the run's admission is not secret")
    return plain


def config_of(args: argparse.Namespace, tell: OnReport = lambda report: None) -> PeerConfig:
    """What the flags say. `tell` hears when they are known to be right and torch is about to be loaded. Raises InputError."""
    if bool(args.new_run) == bool(args.run_id):
        raise InputError("--new_run, --run_id", "", "expected one of the two")
    plain = _checked(args) if args.new_run else None
    check_compute_flags(args)
    check_initial_peers(args)
    from gwtf_p2p.live.measure.metrics import MetricsOptions

    metrics = MetricsOptions(args.metrics, args.track)
    metrics.validate()
    tell({"name": "step", "done": "flags"})
    new_run = None
    if plain is not None:
        lines = [mbps * BYTES_PER_S_OF_A_MBPS for mbps in (args.upload_mbps, args.download_mbps)]
        new_run = run_from_plain(plain, str(args.new_run), lines)
        check_hub_files(new_run, str(args.new_run))  # a run that nobody can read the data of is not published
    from gwtf_p2p.training.compute.device import resolve_device

    resolve_device(args.device)
    tell({"name": "step", "done": "loaded"})
    options = p2p_options(args, needs_peers=True)  # last: it claims a port, and says so when that is not the default one
    return replace(
        config_of_flags(args, options, "data"),
        run_id=new_run.run_id if new_run else RunId(args.run_id),
        new_run=new_run,
        shard=args.shard,
        rebuilds=args.rebuild_lost_stage,
        metrics=metrics,
    )
