"""`gwtf export CHECKPOINT_DIR --out DIR`: a folder that `AutoModelForCausalLM.from_pretrained` loads.

CHECKPOINT_DIR is what `--checkpoint_dir` of `peer`, `data` or `demo` wrote; it must hold every stage, gathered from the peers
if they ran on several machines. The newest iteration that all stages have is taken; with `--best` the one whose evaluation had
the lowest loss, which peers keep where the run says `evaluation = { keep_best = true }`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gwtf_p2p.cli.flags import takes


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    summary = "assemble checkpoints into a folder that transformers loads"
    parser = subparsers.add_parser("export", help=summary, description=__doc__)
    parser.add_argument("checkpoint_dir", type=Path, metavar="CHECKPOINT_DIR")
    parser.add_argument("--out", type=takes.folder, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--best", action="store_true", help="the version with the lowest evaluation loss, not the newest")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the folder and says which iteration it holds."""
    from gwtf_p2p.training.state.export import export_hf

    iteration = export_hf(args.checkpoint_dir, args.out, best=args.best)
    how = f"AutoModelForCausalLM.from_pretrained({str(args.out)!r})"
    print(f"{args.out}: the model after {iteration} iterations; load it with {how}")
    return 0
