"""What `gwtf pause` and `gwtf resume` have in common: whom they tell, and what they say of it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from gwtf_p2p.cli.shared.json_lines import to_json


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which peers."""
    which = "the peer with this identity file (default: all peers of this user)"
    parser.add_argument("--identity_path", type=Path, metavar="FILE", help=which)
    parser.add_argument("--json", action="store_true", help="one JSON object per peer on stdout")


def tell(args: argparse.Namespace, what: signal.Signals) -> int:
    """Sends the signal to every peer that is meant, and prints a line for each. Returns 1 where there is none, or one that
    this user may not tell."""
    from gwtf_p2p.live.libp2p.identity import state_dir
    from gwtf_p2p.live.libp2p.running_peers import running_peers

    folder = state_dir(os.environ)
    told, refused = 0, 0
    for identity, pid in running_peers(args.identity_path, folder).items():
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            continue
        except PermissionError:
            print(f"gwtf {args.verb}: the peer {identity} (process {pid}) is another user's", file=sys.stderr)
            refused += 1
        else:
            told += 1
            done = {"verb": args.verb, "identity": str(identity), "pid": pid}
            print(to_json(done) if args.json else f"{args.verb}: told the peer {identity} (process {pid})")
    if not told and not refused:
        where = f"with {args.identity_path}" if args.identity_path else f"that {folder} tells of"
        print(f"gwtf {args.verb}: no peer runs {where}", file=sys.stderr)
    return 1 if refused or not told else 0
