"""A stage peer that computes wrongly, in a run of real peers: is it found, how soon, is anybody else, and what does it cost?

`python -m experiments.audits.integrity --seeds 0-4 --json` trains a small model with three peers in its first stage, one of
which cheats (each of `emulation/cheats`), with a share of all hops done again (`--audit`, 0.2 unless told), and the same
run without a cheat. A line is `{"cheat", "seed", "caught", "caught_after", "honest_barred", "audits_passed",
"audits_differed", "loss", "clean_loss", "unaudited_loss"}`: was it convicted, after how many iterations; how many others
were convicted or left out; the mean loss of the last iterations, that of the run without a cheat, and (with `--control`)
that of a run with the cheat and without audits. Exit code 1 if a cheat was not caught or an honest peer was barred.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from experiments.support.live_swarm import SmallRun, StoryFailed, Swarm
from gwtf_p2p.cli.shared.local_run import RunFailed
from gwtf_p2p.live.emulation.cheats import CHEATS

CHEAT = "stage1.1"
"""The peer that cheats."""

LAST = 5
"""Iterations at the end whose loss is compared."""


@dataclass(frozen=True, slots=True)
class Line:
    """One run."""

    cheat: str
    seed: int
    caught: bool
    caught_after: int | None
    honest_barred: int
    audits_passed: int
    audits_differed: int
    loss: float | None
    clean_loss: float | None
    unaudited_loss: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has said."""

    loss: float | None
    caught_after: int | None
    barred: frozenset[str]
    passed: int
    differed: int
    reason: str = ""


def small(seed: int, steps: int, audit: float) -> SmallRun:
    return SmallRun(stages=2, peers_per_stage=3, steps=steps, microbatches=6, seed=seed, audit=audit)


def outcome(run: SmallRun, folder: Path, cheat: str = "") -> Outcome:
    """Train to the end, or until the run fails."""
    reason, began = "", -1
    with Swarm(run, folder, options={"cheats": {CHEAT: cheat} if cheat else {}}) as swarm:
        try:
            swarm.until("all steps are committed", lambda: swarm.state.iterations >= run.steps, deadline_s=600.0)
        except (RunFailed, StoryFailed) as error:
            reason = str(error).splitlines()[0]
        convicted = swarm.said("peer_convicted")
        if convicted:
            began = int(convicted[0]["iteration"])
        barred = {str(report["peer"]) for report in (*convicted, *swarm.said("peer_left_out"))}
        losses = [float(r["loss"]) for r in swarm.said("stepped", "data0") if r.get("loss") is not None][-LAST:]
        me = {str(report["peer"]) for report in swarm.said("started", CHEAT)}
        passed, differed = len(swarm.said("audit_passed")), len(swarm.said("audit_differs"))
    mean = sum(losses) / len(losses) if losses else None
    return Outcome(mean, began if began >= 0 and me & barred else None, frozenset(barred - me), passed, differed, reason)


def integrity(cheats: Sequence[str], seeds: Sequence[int], run: SmallRun, control: bool, as_json: bool) -> int:
    """All cheats for every seed, one run after the other."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="gwtf-integrity-") as name:
        for seed in seeds:
            seeded = replace(run, seed=seed)
            clean = outcome(seeded, Path(name) / f"clean{seed}")
            for cheat in ("honest", *cheats):
                folder = Path(name) / f"{cheat}{seed}"
                found = clean if cheat == "honest" else outcome(seeded, folder, cheat)
                unaudited = None
                if control and cheat != "honest":
                    unaudited = outcome(replace(seeded, audit=0.0), folder / "unaudited", cheat).loss
                caught = found.caught_after is not None
                failed += bool(found.barred) or bool(found.reason) or caught == (cheat == "honest")
                line = Line(
                    cheat,
                    seed,
                    caught,
                    found.caught_after,
                    len(found.barred),
                    found.passed,
                    found.differed,
                    found.loss,
                    clean.loss,
                    unaudited,
                    found.reason,
                )
                print(json.dumps(asdict(line)) if as_json else line, flush=True)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cheats", default=",".join(CHEATS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--audit", type=float, default=0.2)
    parser.add_argument("--control", action="store_true", help="also with the cheat and without audits")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    first, _, last = str(chosen.seeds).partition("-")
    unknown = set(chosen.cheats.split(",")) - set(CHEATS)
    if unknown:
        parser.error(f"--cheats: expected some of {', '.join(CHEATS)}, got {', '.join(sorted(unknown))}")
    seeds = range(int(first), int(last or first) + 1)
    return integrity(chosen.cheats.split(","), seeds, small(0, chosen.steps, chosen.audit), chosen.control, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
