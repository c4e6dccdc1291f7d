"""`gwtf` on a machine unlike the others: `python -m experiments.support.altered [--clock FILE ...] -- VERB ...`.

`--clock`: the machine's clock is ahead by as many seconds as the file says, read at every look at the clock (negative: behind).
p2pd keeps the true time; what a clock decides, the expiry of records, is decided by this process. `--release`: it has another
release of this package. Both are set before anything else is imported. `--broken`: while the file is there, its device computes
gradients that are not finite.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import gwtf_p2p.version

if TYPE_CHECKING:
    from torch import Tensor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clock", type=Path, metavar="FILE")
    parser.add_argument("--release")
    parser.add_argument("--broken", type=Path, metavar="FILE")
    at = sys.argv.index("--")
    args = parser.parse_args(sys.argv[1:at])
    if args.clock is not None:
        set_clock(args.clock)
    if args.release:
        gwtf_p2p.version.VERSION = args.release
    if args.broken is not None:
        break_device(args.broken)
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


def break_device(while_there: Path) -> None:
    """What this machine computes from now on, in every gradient of its part."""
    from gwtf_p2p.training.compute.gradients import GradientAccumulator

    add = GradientAccumulator.add

    def broken(self: GradientAccumulator, gradients: Mapping[str, Tensor], sign: int = 1) -> bool:
        odd = {name: gradient * float("nan") for name, gradient in gradients.items()} if while_there.exists() else gradients
        return add(self, odd, sign)

    GradientAccumulator.add = broken  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
