"""The lowest version of all that setup.cfg allows, as constraints for pip: `python experiments/floors.py [--but NAME ...]`.

`pip install -c` with these shows whether the ranges of setup.cfg can be met at all. This needs nothing but Python itself.
`--but`: leave these out, for instance torch, whose builds are chosen by machine.
"""

from __future__ import annotations

import argparse
import configparser
import re
import sys
from pathlib import Path

SETUP = Path(__file__).parents[2] / "setup.cfg"
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)>=([0-9][0-9.]*)")


def floors(setup: Path, extras: tuple[str, ...] = ("monitor", "adapters", "draw", "dev")) -> dict[str, str]:
    """The lowest version by name, of what a peer needs and of these extras."""
    config = configparser.ConfigParser()
    config.read(setup)
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    found = (_REQUIREMENT.match(line.strip()) for text in texts for line in text.splitlines())
    return {match[1]: match[2] for match in found if match}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--but", nargs="*", default=[], metavar="NAME")
    args = parser.parse_args()
    for name, lowest in sorted(floors(SETUP).items()):
        if name not in args.but:
            print(f"{name}=={lowest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
