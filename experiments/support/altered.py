"""`gwtf` on a machine unlike the others: `python -m experiments.support.altered [--clock FILE] [--release R] -- VERB ...`.

`--clock`: the machine's clock is ahead by as many seconds as the file says, read at every look at the clock (negative: behind).
p2pd keeps the true time; what a clock decides, the expiry of records, is decided by this process. `--release`: it has another
release of this package. Both are set before anything else is imported.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import gwtf_p2p.version


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clock", type=Path, metavar="FILE")
    parser.add_argument("--release")
    at = sys.argv.index("--")
    args = parser.parse_args(sys.argv[1:at])
    if args.clock is not None:
        set_clock(args.clock)
    if args.release:
        gwtf_p2p.version.VERSION = args.release
    from gwtf_p2p.cli.main import main as gwtf

    return gwtf(sys.argv[at + 1 :])


def set_clock(file: Path) -> None:
    """`time.time` of this process from now on."""
    true_time = time.time

    def shown() -> float:
        try:
            return true_time() + float(file.read_text() or 0)
        except (OSError, ValueError):
            return true_time()

    time.time = shown


if __name__ == "__main__":
    sys.exit(main())
