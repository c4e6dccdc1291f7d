"""`gwtf resume`: peers of this machine that were paused go on. The same as the signal SIGUSR2."""

from __future__ import annotations

import argparse
import signal
from typing import Any

from gwtf_p2p.cli.local.signalling import add_flags, tell


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("resume", help="peers of this machine that were paused go on", description=__doc__)
    add_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 1 where no peer runs."""
    return tell(args, signal.SIGUSR2)
