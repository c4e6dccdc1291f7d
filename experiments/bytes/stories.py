"""Whatever format tensors travel in: are the weights after a crash those of the same run undisturbed? One JSON line a row.

    python -m experiments.bytes.stories                          all rows
    python -m experiments.bytes.stories --rows int8 averages_int8 --moments backward_received averaging

Each row is a small `gwtf demo` of real peers (two microbatches an iteration, two peers in each of two stages) undisturbed, and
again with a stage peer of stage 1 killed at each moment. `difference` is the largest one of any weight of any stage.

Formats of boundary tensors promise equal weights (1e-4): a tensor that is sent or computed again has the same bytes. Formats
of averages that round (`averages_*`) promise that all members of a stage step by equal bits, which each commit checks, and no
more than that: what is rounded is each peer's share, and after a crash other peers have other shares. There `again` is how far
two undisturbed runs are apart, as it changes from run to run who computes what; a row holds where the loss does
(`LOSS_TOLERANCE`). Exit code 1 if a row does not hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.support.live_swarm import TOLERANCE
from gwtf_p2p.live.emulation.faults import MOMENTS

STEPS, STAGES, AT = 5, 2, 2
"""The demo writes its first checkpoint after so many steps; the crash is in iteration `AT`."""

DEMO = (
    *("--steps", str(STEPS), "--stages", str(STAGES), "--peers_per_stage", "2", "--data_peers", "1", "--json"),
    *("--microbatches", "2", "--microbatch_size", "1", "--sequence_length", "32", "--capacity", "2"),
)
LIMIT_S = 900.0
LOSS_TOLERANCE = 0.02
ROUNDED_AVERAGES = "averages_"

ROWS: dict[str, tuple[str, ...]] = {
    "float32": (),
    **{name: ("--wire", name) for name in ("bfloat16", "float16", "fp8", "int8", "int4")},
    "subspace": ("--subspace", "8"),
    "subspace_int8": ("--subspace", "8", "--wire", "int8"),
    "thin_int8": ("--thin_data_peers", "--wire", "int8"),
    "averages_float16": ("--wire_averages", "float16"),
    "averages_int8": ("--wire_averages", "int8"),
    "averages_powersgd": ("--wire_averages", "powersgd", "--wire_rank", "8"),
}


class RunFailed(Exception):
    """A demo did not end well."""


def demo(folder: Path, *flags: str) -> dict[str, Any]:
    """The summary of one run, whose checkpoints lie in `folder`. Raises RunFailed."""
    command = [sys.executable, "-m", "gwtf_p2p", "demo", *DEMO, *flags, "--checkpoint_dir", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if ended.returncode:
        raise RunFailed(ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else f"exit code {ended.returncode}")
    summary: dict[str, Any] = json.loads(ended.stdout)
    if summary["microbatches"]["lost"] or summary["microbatches"]["double_counted"] or summary["steps"] != STEPS:
        raise RunFailed(f"the ledger does not add up: {summary['microbatches']}, {summary['steps']} steps")
    return summary


def difference(ours: Path, theirs: Path) -> float:
    """The largest one of any weight of any stage."""
    from safetensors.torch import load_file

    largest = 0.0
    for stage in range(STAGES + 1):
        file = Path(f"stage_{stage:05d}", f"step_{STEPS:08d}", "model.safetensors")
        if not (theirs / file).exists():  # a thin data peer has nothing
            continue
        mine, other = load_file(ours / file), load_file(theirs / file)
        if mine.keys() != other.keys():
            raise RunFailed(f"stage {stage} has other weights")
        largest = max([largest, *(float((mine[name] - other[name]).abs().max()) for name in mine)])
    return largest


def told(name: str, moments: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """A line for each moment. Raises RunFailed."""
    flags, rounds = ROWS[name], name.startswith(ROUNDED_AVERAGES)
    undisturbed = demo(folder / "undisturbed", *flags)
    row: dict[str, Any] = {"row": name, "flags": " ".join(flags), "bytes": undisturbed["bytes"]}
    if rounds:
        demo(folder / "again", *flags)
        row["again"] = difference(folder / "again", folder / "undisturbed")
    lines = []
    for moment in moments:
        script = f"kill peer stage=1 index=any at={moment} iter={AT}"
        killed = demo(folder / moment, *flags, "--churn", script)
        off = difference(folder / moment, folder / "undisturbed")
        loss_off = abs(killed["last_loss"] - undisturbed["last_loss"])
        holds = loss_off <= LOSS_TOLERANCE if rounds else off <= TOLERANCE
        lines.append({
            **row, "moment": moment, "recoveries": killed["recoveries"], "difference": off, "loss_difference": loss_off,
            "promises": "equal bits of a stage's members" if rounds else "weights of the undisturbed run",
            "holds": holds and undisturbed["last_loss"] < undisturbed["first_loss"],
        })  # fmt: skip
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", choices=sorted(ROWS), metavar="NAME", help="only these")
    parser.add_argument("--moments", nargs="*", choices=MOMENTS, default=["backward_received"], metavar="MOMENT")
    args = parser.parse_args(arguments)
    failed = False
    with tempfile.TemporaryDirectory(prefix="gwtf-codecs-") as folder:
        for name in args.rows or ROWS:
            try:
                lines = told(name, args.moments, Path(folder, name))
            except (RunFailed, subprocess.TimeoutExpired) as error:
                lines = [{"row": name, "holds": False, "failure": str(error)}]
            for line in lines:
                print(json.dumps(line), flush=True)
                failed |= not line["holds"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
