"""`gwtf pause`: peers of this machine finish and hand over what they hold, and wait. The same as the signal SIGUSR1."""

from __future__ import annotations

import argparse
import signal
from typing import Any

from gwtf_p2p.cli.local.signalling import add_flags, tell


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser(
        "pause", help="peers of this machine finish and hand over what they hold, and wait", description=__doc__
    )
    add_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 1 where no peer runs."""
    return tell(args, signal.SIGUSR1)
