"""The flags by which a volunteer says how much of a machine a peer may use, and what they mean to the parts of a peer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.membership.permission import Wishes

if TYPE_CHECKING:
    from gwtf_p2p.live.compute.tensor_store import MemoryLimit
    from gwtf_p2p.live.state.options import CheckpointOptions

BYTES_PER_S_OF_A_MBPS = 125_000


def add_limit_flags(add: Callable[..., Any]) -> None:
    """How much of the machine and its line may be used."""
    add(
        "--disk_gb",
        type=takes.gigabytes,
        default=0.0,
        metavar="GB",
        help="most disk space for checkpoints and copies together (default 0: no limit)",
    )
    add_memory_flag(add)
    add_time_flags(add)
    add(
        "--copy_mbps",
        type=takes.number(0, takes.MOST_MBPS, above=True),
        default=64.0,
        help="most megabits/s for fetching these copies (default 64)",
    )
    for way, to in (("upload", "to"), ("download", "from")):
        most = f"most megabits/s {to} other peers, of everything (default 0: no limit)"
        add(f"--{way}_mbps", type=takes.megabits, default=0.0, metavar="MBPS", help=most)
    add(
        "--max_kept_gb",
        type=takes.gigabytes,
        default=0.0,
        metavar="GB",
        help="most memory for what is kept of microbatches (default 0: no limit)",
    )
    add(
        "--spill_dir",
        type=takes.folder,
        metavar="DIR",
        help="what is above --max_kept_gb goes there, instead of being refused",
    )


def add_time_flags(add: Callable[..., Any]) -> None:
    """When the peer may work."""
    hours = "no work in these hours of the local day, as 22:00-07:00; several with commas"
    add("--quiet_hours", type=takes.quiet_hours, default=(), metavar="HOURS", help=hours)
    for period in ("day", "month"):
        quota = f"most gigabytes a {period} to and from other peers; then the peer leaves, and comes back in the next "
        quota += "(default 0: no limit)"
        add(f"--quota_gb_{period}", type=takes.gigabytes, default=0.0, metavar="GB", help=quota)
    idle = "work only when nobody uses this machine (Linux: terminals, the desktop's seat, other programs' load)"
    add("--only_when_idle", action="store_true", help=idle)
    add("--nice", type=takes.whole(0, 19), default=0, metavar="N", help="give way to other programs: 0 (default) to 19")


def wishes(args: argparse.Namespace) -> Wishes:
    """What the flags say of when to work."""
    day, month = int(args.quota_gb_day * 1e9), int(args.quota_gb_month * 1e9)
    return Wishes(args.quiet_hours, day, month, args.only_when_idle)


def add_memory_flag(add: Callable[..., Any]) -> None:
    """The same for a peer and for the doctor."""
    memory = "most memory for all that the peer holds; a stage that takes more is not taken (default 0: no limit)"
    add("--memory_gb", type=takes.gigabytes, default=0.0, metavar="GB", help=memory)


def check_compute_flags(args: argparse.Namespace) -> None:
    """Raises InputError for flags that do not go together."""
    if args.only_when_idle and not sys.platform.startswith("linux"):
        raise InputError("--only_when_idle", "", f"expected Linux, which tells whether it is used; this is {sys.platform}")
    if args.disk_gb and not args.checkpoint_dir:
        raise InputError("--disk_gb", f"{args.disk_gb:g}", "expected --checkpoint_dir with it: nothing is kept without")
    for flag in ("checkpoint_every", "keep_checkpoints"):
        if getattr(args, flag) and not args.checkpoint_dir:
            raise InputError(
                f"--{flag}", str(getattr(args, flag)), "expected --checkpoint_dir with it: nothing is kept without"
            )
    if args.spill_dir and not args.max_kept_gb:
        raise InputError("--spill_dir", str(args.spill_dir), "expected --max_kept_gb with it, more than 0")


def checkpoint_options(args: argparse.Namespace) -> CheckpointOptions:
    """What the flags say of this peer's state."""
    from gwtf_p2p.live.state.options import CheckpointOptions

    speed = args.copy_mbps * BYTES_PER_S_OF_A_MBPS
    return CheckpointOptions(
        folder=args.checkpoint_dir,
        every=args.checkpoint_every,
        keep=args.keep_checkpoints,
        copies=args.copies,
        copy_bytes_per_s=speed,
        disk_bytes=int(args.disk_gb * 1e9),
    )


def memory_limit(args: argparse.Namespace) -> MemoryLimit:
    """What the flags say."""
    from gwtf_p2p.live.compute.tensor_store import MemoryLimit

    return MemoryLimit(int(args.max_kept_gb * 1e9), args.spill_dir)
