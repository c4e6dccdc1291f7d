"""`gwtf id`: show this machine's identity (created if there is none), or back it up."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.json_lines import to_json


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("id", help="show, create or back up this machine's identity", description=__doc__)
    parser.add_argument("--identity_path", type=takes.file, metavar="FILE", help="identity file (default ~/.gwtf/identity.key)")
    parser.add_argument("--backup", type=Path, metavar="PATH", help="copy the identity there; never overwrites")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the peer id and where it lives."""
    from gwtf_p2p.live.libp2p.identity import backup_identity, default_identity_path, is_private, load_or_create_identity

    path = args.identity_path or default_identity_path(os.environ)
    is_new = not path.exists()
    identity = load_or_create_identity(path)
    backup = backup_identity(identity, args.backup) if args.backup else None
    if args.json:
        fields = {"peer": identity.peer_id, "path": str(path), "new": is_new, "backup": str(backup) if backup else None}
        print(to_json(fields))
        return 0
    print(f"{identity.peer_id}  {path}{' (new)' if is_new else ''}")
    if not is_private(path):
        print(f"others on this machine can read the identity; make it private with: chmod 600 {path}")
    if backup:
        print(f"backed up to {backup}")
    return 0
