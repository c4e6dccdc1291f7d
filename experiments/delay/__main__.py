"""What delayed optimizer steps cost in loss at equal tokens: one process, the same batches, with and without the delay.

    python -m experiments.delay --seeds 0-2 --steps 500

Each run is the demo's model on the demo's text (or what demo flags say), in one process, whose losses a swarm's equal within
1e-4 (`experiments.parity`, which takes `--delay_optimizer_step` too). Of each seed it prints both mean losses over every
`--window` steps, and at the end by how much the delayed runs' last one is higher.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import torch

from experiments.support.control import control_losses
from gwtf_p2p.cli.main import build_parser
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.cli.verbs.demo import plain_run
from gwtf_p2p.cli.verbs.sim import parse_seeds


def windows(losses: Sequence[float], size: int) -> list[float]:
    """Means of so many steps each."""
    return [mean(losses[i : i + size]) for i in range(0, len(losses) - size + 1, size)]


def main() -> int:
    """One JSON line for each seed, then one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--window", type=int, default=50)
    args, demo_flags = parser.parse_known_args()
    torch.set_num_threads(1)
    differences = []
    for seed in parse_seeds(args.seeds):
        flags = ["demo", "--steps", str(args.steps), "--seed", str(seed), *demo_flags]
        run = run_from_plain(plain_run(build_parser("demo").parse_args(flags)), "delay")
        found = {
            delayed: windows(
                control_losses(replace(run, delay_optimizer_step=delayed), args.steps, run.data_peers), args.window
            )
            for delayed in (False, True)
        }
        differences.append(found[True][-1] - found[False][-1])
        line = {"seed": seed, "tokens": args.steps * run.tokens_per_iteration, "at_once": found[False], "delayed": found[True]}
        print(json.dumps({key: _rounded(value) for key, value in line.items()}), flush=True)
    print(json.dumps({"higher_by": _rounded(differences), "mean": round(mean(differences), 4)}))
    return 0


def _rounded(value: object) -> object:
    return [round(each, 4) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    raise SystemExit(main())
