"""Memory of a stage peer: bytes for each parameter, steady and at most, beside what `gwtf run check` says.

    python -m experiments.bench.memory --steps 4 --hidden 320,768,1408

A live swarm with one stage of two peers (so that they average), one data peer, checkpoints after every step, and a newcomer
that is given the state by the others. A peer's resident memory less that of the same swarm with a model of almost nothing
(steady less steady, highest less highest) is its state's; divided by the stage's parameters it is the figure. Steady: the
median between steps; at most: the highest that the kernel has seen (VmHWM). What is predicted is that of `gwtf run check`, with
the process as it is measured here: peers of one machine are forked from one parent, by itself a peer's process takes what
`PROCESS_BYTES` says.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.protocol.view.memory_plan import PROCESS_BYTES
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.model.memory import stage_memory
from gwtf_p2p.training.model.split import PartSpec, parameter_shapes

POLL_S = 0.05
DEADLINE_S = 900.0


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes of one stage peer."""

    steady: float
    most: float


def record_of(hidden: int, steps: int, kind: str = "adamw") -> RunRecord:
    """Short windows: what a microbatch keeps is small beside the state."""
    model: dict[str, Any] = {
        "model_type": "llama", "vocab_size": 257, "hidden_size": hidden, "intermediate_size": 3 * hidden,
        "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": None,
        "eos_token_id": 256,
    }  # fmt: skip
    plain = {
        "run_id": "memory", "seed": 0, "model": model, "stages": 1, "peers_per_stage": 2, "sequence_length": 16,
        "microbatch_size": 1, "microbatches_per_data_peer": 4, "total_iterations": steps, "checkpoint_every": 1,
        "keep_checkpoints": 1, "optimizer": {"kind": kind, "gradient_clip": 1e-3},
    }  # fmt: skip
    return run_from_plain(plain, "memory")


def measured(run: RunRecord, folder: Path) -> Resident:
    """Of the first stage peer. Raises RunFailed, TimeoutError."""
    local = LocalRun(LocalRunConfig(1, 2, checkpoint_dir=folder / "checkpoints", own_folders=True), run, folder)
    seen: list[float] = []
    end, newcomer = time.monotonic() + DEADLINE_S, False
    try:
        local.begin()
        while not local.finished(run.total_iterations):
            for name, report in local.poll(POLL_S):
                if name == "stage1.0" and report["name"] == "figures" and local.state.iterations:
                    seen.append(float(report["resident_bytes"]))
            if local.state.iterations >= 2 and not newcomer:
                newcomer = True
                local.add_stage_peer(1)
            if time.monotonic() > end:
                raise TimeoutError(f"{local.state.iterations} steps in {DEADLINE_S:.0f} s")
        status = Path(f"/proc/{local.swarm.peers['stage1.0'].pid}/status").read_text()
    finally:
        local.stop()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return Resident(statistics.median(seen), 1024.0 * int(found[1]))


def compared(run: RunRecord, process: Resident, found: Resident) -> dict[str, float]:
    """The figures of one model."""
    plan = stage_memory(run, 1)
    parameters = sum(math.prod(shape) for shape in parameter_shapes(PartSpec.of(run, 1)).values())
    predicted = process.most + plan.needed(run.microbatches_per_data_peer) - PROCESS_BYTES
    return {
        "parameters": parameters,
        "steady_bytes_per_parameter": (found.steady - process.steady) / parameters,
        "most_bytes_per_parameter": (found.most - process.most) / parameters,
        "state_bytes_per_parameter": plan.state / parameters,
        "process_bytes": process.steady,
        "process_most_bytes": process.most,
        "most_bytes": found.most,
        "predicted_bytes": predicted,
        "predicted_over_most": predicted / found.most,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--hidden", default="768", help="widths of the models; 768: 31 million parameters")
    parser.add_argument("--optimizer", default="adamw", help="the kind of the run's optimizer")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    process: Resident | None = None
    for hidden in (16, *(int(width) for width in args.hidden.split(","))):
        run = record_of(hidden, args.steps, args.optimizer)
        with tempfile.TemporaryDirectory(prefix="gwtf-memory-") as folder:
            found = measured(run, Path(folder))
        if process is None:
            process = found
            continue
        told = compared(run, process, found)
        print(
            json.dumps(told) if args.json else "\n".join(f"{name:30} {value:,.2f}" for name, value in told.items()), flush=True
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
