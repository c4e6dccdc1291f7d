"""The official SWARM (yandex-research/swarm) beside ours, the same model and microbatches:

    git clone https://github.com/yandex-research/swarm /tmp/official
    python -m experiments.bench.official_swarm --official /tmp/official --rounds 3 --json

In turn, `--rounds` times: their servers, Runtime, task pools, balancer and gRPC, three stages of two peers with two trainers of
four microbatches in flight, whose peers step by themselves after as many samples as a step of ours has for each; and our live
swarm, three stages of two peers that hold four microbatches with two data peers of 16 a step, which average in each step.
Theirs do not average: their CollaborativeOptimizer expects streams that hivemind 1.1.12 does not give, and skips every round.

Both: `gwtf demo`'s model from the same weights, microbatches of 4 x 128 tokens, float32 everywhere, one torch thread in each
process, embedding in the first stage, head and loss in the last one. A trainer's first forward has to give the loss that the
model gives by itself. Theirs compute forwards again before each backward, and all tensors pass the trainer; ours keep
activations and go from peer to peer. What is counted is CPU, user and system, of all processes, p2pds and bootstrap nodes too,
over `--timed` microbatches after `--warm_up`; and without what each spends when it has nothing to do, which goes by the clock
and not by microbatches: on a machine busy with something else a microbatch takes long.

The last line is `{"theirs": [...], "ours": [...], "ratio": R, "beside_idle": R, "ratios": [...]}`: ours over theirs, of the
medians, and of each round. Nothing of their code is here; without a clone it exits with 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.bench.official_swarm.loading import NotThere, compile_messages, source_of
from experiments.bench.official_swarm.processes import SideFailed
from experiments.bench.official_swarm.shape import Shape
from experiments.bench.official_swarm.sides import Cost, ours, theirs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, metavar="PATH", help="a clone of yandex-research/swarm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm_up", type=int, default=Shape.warm_up)
    parser.add_argument("--timed", type=int, default=Shape.timed)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    shape = Shape(warm_up=chosen.warm_up, timed=chosen.timed)
    found: dict[str, list[Cost]] = {"theirs": [], "ours": []}
    try:
        source = source_of(chosen.official)
        with tempfile.TemporaryDirectory(prefix="gwtf-official-") as name:
            folder = Path(name)
            compile_messages(source, folder / "messages")
            for number in range(chosen.rounds):
                for side in found:
                    logs = folder / f"{side}{number}"
                    logs.mkdir()
                    if side == "ours":
                        cost = ours(shape, logs)
                    else:
                        cost = theirs(shape, logs, source, folder / "messages")
                    found[side].append(cost)
                    print(side, cost, file=sys.stderr, flush=True)
    except NotThere as error:
        print(error, file=sys.stderr)
        return 2
    except SideFailed as error:
        print(f"it did not get to its end: {error}", file=sys.stderr)
        return 1
    ratios = [round(mine.cpu_ms / other.cpu_ms, 3) for mine, other in zip(found["ours"], found["theirs"], strict=True)]
    told = {
        **{side: [asdict(cost) for cost in costs] for side, costs in found.items()},
        "ratio": _ratio(found, lambda cost: cost.cpu_ms),
        "beside_idle": _ratio(found, lambda cost: cost.beside_idle_ms),
        "ratios": ratios,
    }
    print(json.dumps(told) if chosen.json else told, flush=True)
    return 0


def _ratio(found: Mapping[str, Sequence[Cost]], figure: Callable[[Cost], float]) -> float:
    """Ours over theirs, of the medians."""
    ours_ms, theirs_ms = (statistics.median(figure(cost) for cost in found[side]) for side in ("ours", "theirs"))
    return round(ours_ms / theirs_ms, 3)


if __name__ == "__main__":
    sys.exit(main())
