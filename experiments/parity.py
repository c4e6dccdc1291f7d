"""Parity: the loss curve of a distributed run equals that of one process, at equal seed, data and batch.

    python -m experiments.parity --steps 20            # runs `gwtf demo --json`, then the control, and compares

The demo's losses are means over each iteration's microbatches; so are the control's. Prints both curves and the largest
absolute difference; exit code 1 when it is not under the bound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch

from experiments.support.control import control_losses
from gwtf_p2p.cli.main import build_parser
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.cli.verbs.demo import plain_run

BOUND = 1e-4


def main() -> int:
    """Runs both and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bound", type=float, default=BOUND)
    args, demo_flags = parser.parse_known_args()
    flags = ["demo", "--steps", str(args.steps), "--json", *demo_flags]
    finished = subprocess.run([sys.executable, "-m", "gwtf_p2p", *flags], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(finished.stdout)
    run = run_from_plain(plain_run(build_parser("demo").parse_args(flags)), "parity")
    torch.set_num_threads(1)
    control = control_losses(run, args.steps, run.data_peers)
    differences = [abs(a - b) for a, b in zip(result["losses"], control, strict=True)]
    for step, (ours, alone, difference) in enumerate(zip(result["losses"], control, differences, strict=True), start=1):
        print(f"step {step:3d}  swarm {ours:.6f}  one process {alone:.6f}  difference {difference:.1e}")
    print(f"largest difference {max(differences):.2e} in {args.steps} steps, bound {args.bound:.0e}; {result['microbatches']}")
    return 0 if max(differences) < args.bound else 1


if __name__ == "__main__":
    raise SystemExit(main())
