"""What an outsider can do to a run: real peers on this machine, an identity of its own, one line per attack.

`python -m experiments.hostile --seeds 0-4 --json` runs every attack of `ATTACKS` (messages) and of `outsider_acts` (streams,
floods, records) for every seed: a small swarm trains, an outsider that knows the join line attacks it from step 2 on until the
run is complete, and loss and weights at the end are compared with those of the same run left in peace. A line is `{"attack",
"seed", "ended", "iterations_before", "iterations_during", "weights_as_clean", "sender_barred", ...}`: did a peer end or the run
not get to its end; how many iterations had been committed before, and were under attack; equal weights; has any peer barred the
outsider; iterations a minute from the attack on, and of the run in peace from the same step on; what was done, and both losses.
Exit code 1 if any run ended or any weight differs. `--simulated` does the messages, a flood, 1,000 ghosts and three data peers
that break the rules of their role (`support/hostile_simulated`) in the simulator.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.support.hostile_simulated import MEMBERS, flood, member_line, simulated
from experiments.support.live_swarm import SmallRun, StoryFailed, Swarm, check_equal_weights
from experiments.support.outsider import Outsider, Said, Script
from experiments.support.outsider_acts import ACTS
from gwtf_p2p.cli.shared.local_run import RunFailed
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.wire.messages import (
    Admit,
    Backward,
    Ballot,
    Commit,
    Forward,
    Inquire,
    Lost,
    Message,
    NotPrepared,
    Prepare,
    Share,
    Standing,
    to_header,
)
from gwtf_p2p.protocol.wire.records import StageRecord

ATTACK_FROM, ROUNDS, STEPS = 2, 2, 30
"""From which iteration on the outsider attacks, how often at least, and how many iterations the run has."""


def far_commit(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> list[Said]:
    """The swarm has gone on by a billion iterations."""
    return [Said(to_header(Commit(10**9, 1, me, 0.0)))]


def other_weights(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> list[Said]:
    """You have missed a commit, and the outsider has the weights; and: the swarm goes back, to them."""
    version = max(record.weights_version for record in others)
    back = Admit(version, (me,), (me,), epoch=1, epoch_starts=(0,))
    return [
        Said(to_header(Commit(version, 1, me, 0.0))),
        Said(to_header(Admit(version + 1, (me,), (me,)))),
        Said(to_header(back)),
    ]


def averages(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> list[Said]:
    """Offers for averages that are about to begin, of which the outsider is no member."""
    leader = min(record.peer for record in others if record.stage == 0)
    version = max(record.weights_version for record in others)
    groups = [f"{to.run_id}.{to.stage}.{version + ahead}.{n}.{leader}" for ahead in (0, 1, 2) for n in (1, 2)]
    return [Said({"kind": "average", "group": group, "phase": "part", "batch": 0}, bytes(64)) for group in groups]


def empty_close(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> list[Said]:
    """An average of nothing, as a message whose list is empty and as one whose shares are."""
    version = max(record.weights_version for record in others)
    plain = to_header(Prepare(version, 1, me, to.stage, (Share(to.peer, ()),), data_peers=(me,)))
    return [Said({**plain, "shares": []}), Said(plain)]


def high_number(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> list[Said]:
    """A question whose number nobody can outbid, within the range of its field and above it."""
    version = max(record.weights_version for record in others)
    plain = to_header(Inquire(version, 1))
    return [Said({**plain, "attempt": 2**64 - 1}), Said({**plain, "attempt": 2**50})]


def false_standing(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> list[Said]:
    """I take part; I am ahead; I hold a stage that there is not; and nobody could average with that one."""
    version = max(record.weights_version for record in others)
    ballot = Ballot(1, me)
    standings = [
        Standing(Stage(0), version, active=True, taking_part=True, coordinator=me),
        Standing(Stage(1), version + 1, committed=ballot),
        Standing(Stage(1), version, epoch=3),
        Standing(Stage(99), version, joining=True),
    ]
    lies: tuple[Message, ...] = (NotPrepared(version, 1, to.stage, "no", suspect=others[0].peer), Lost(others[0].peer, "gone"))
    return [Said(to_header(message)) for message in (*standings, *lies)]


def forged_work(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> list[Said]:
    """Activations that are no numbers, gradients of nobody, and credit for the outsider."""
    owner = next(record.peer for record in others if record.stage == 0)
    version = max(record.weights_version for record in others)
    nothing = np.full(32 * 128, np.nan, np.float32).tobytes()
    said = []
    for index in range(4):
        microbatch = MicrobatchId(owner, version, index)
        said += [
            Said(to_header(Forward(microbatch, (1 << 60, 0), Stage(1))), nothing),
            Said(to_header(Backward(microbatch, (1,), Stage(0), (me,))), nothing),
            Said({**to_header(Forward(microbatch, (1,), Stage(1))), "attempt": []}, nothing),
        ]
    return said


ATTACKS: Mapping[str, Script] = {
    "far_commit": far_commit,
    "other_weights": other_weights,
    "averages": averages,
    "empty_close": empty_close,
    "high_number": high_number,
    "false_standing": false_standing,
    "forged_work": forged_work,
}


@dataclass(frozen=True, slots=True)
class Peace:
    """The same run without an outsider: where its checkpoints are, iterations a minute, and its loss at the end."""

    checkpoints: Path
    per_minute: float
    loss: float


@dataclass(frozen=True, slots=True)
class Line:
    """One attack on one run."""

    attack: str
    seed: int
    ended: bool
    iterations_before: int
    iterations_during: int
    weights_as_clean: bool
    sender_barred: bool
    messages: int
    per_minute: float
    per_minute_in_peace: float
    loss: float
    loss_in_peace: float
    reason: str = ""


def small(seed: int, steps: int) -> SmallRun:
    return SmallRun(stages=1, peers_per_stage=2, steps=steps, seed=seed)


def in_peace(run: SmallRun, folder: Path) -> Peace:
    with Swarm(run, folder) as swarm:
        swarm.until_step(ATTACK_FROM)
        per_minute = to_the_end(swarm)
        return Peace(folder / "checkpoints", per_minute, swarm.state.loss(run.steps - 1))


def to_the_end(swarm: Swarm) -> float:
    """Iterations a minute from here to the last one."""
    before, began = swarm.state.iterations, time.monotonic()
    swarm.until_step(swarm.small.steps)
    per_minute = 60 * (swarm.state.iterations - before) / (time.monotonic() - began)
    swarm.to_the_end()
    return round(per_minute, 1)


def attacked(attack: str, run: SmallRun, folder: Path, peace: Peace) -> Line:
    """A run that is attacked."""
    before, during, said, per_minute, reason = 0, 0, 0, 0.0, ""
    swarm = Swarm(run, folder)
    try:
        with swarm:
            where = run.record().run_id, run.stages, swarm.run.initial_peer(), folder
            outsider = Outsider(*where, ATTACKS.get(attack), ACTS.get(attack))
            outsider.start()
            try:
                swarm.until("the outsider has joined", lambda: outsider.joined or outsider.failure is not None)
                swarm.until_step(ATTACK_FROM)
                before = swarm.state.iterations
                outsider.attack()
                per_minute = to_the_end(swarm)
                during = swarm.state.iterations - before
                swarm.until("the outsider has done it all", lambda: outsider.rounds >= ROUNDS or outsider.failure is not None)
            finally:
                outsider.stop()
                said = outsider.said
    except (RunFailed, StoryFailed) as error:
        reason = str(error).splitlines()[0]
    ended = bool(reason)
    if not ended:
        try:
            check_equal_weights(folder / "checkpoints", peace.checkpoints, run.stages, run.steps)
        except StoryFailed as error:
            reason = str(error)
    return Line(
        attack,
        run.seed,
        ended,
        before,
        during,
        not reason,
        bool(swarm.said("peer_barred")),
        said,
        per_minute,
        peace.per_minute,
        round(swarm.state.loss(run.steps - 1), 4),
        round(peace.loss, 4),
        reason,
    )


def hostile(attacks: Sequence[str], runs: Sequence[SmallRun], folder: Path, as_json: bool) -> int:
    """All of them, one after the other."""
    failed = 0
    for run in runs:
        peace = in_peace(run, folder / f"clean{run.seed}")
        for attack in attacks:
            line = attacked(attack, run, folder / f"{attack}{run.seed}", peace)
            failed += line.ended or not line.weights_as_clean
            print(json.dumps(asdict(line)) if as_json else line, flush=True)
    return 1 if failed else 0


def in_simulator(seeds: Sequence[int]) -> int:
    """Every attack that is messages or records, for every seed."""
    failed = 0
    for seed in seeds:
        for attack, script in {**ATTACKS, "flood": flood, "ghosts": None, "silent_ghosts": None}.items():
            line = simulated(attack, script, seed)
            failed += bool(line["ended"]) or line["lost"] != 0 or line["double_counted"] != 0
            print(json.dumps(line), flush=True)
        for attack in MEMBERS:
            line = member_line(attack, seed)
            failed += bool(line["ended"])
            print(json.dumps(line), flush=True)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0")
    every = [*ATTACKS, *ACTS]
    parser.add_argument("--attacks", default=",".join(every))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--simulated", action="store_true")
    chosen = parser.parse_args(arguments)
    first, _, last = str(chosen.seeds).partition("-")
    unknown = set(chosen.attacks.split(",")) - set(every)
    if unknown:
        parser.error(f"--attacks: expected some of {', '.join(every)}, got {', '.join(sorted(unknown))}")
    if chosen.simulated:
        return in_simulator(range(int(first), int(last or first) + 1))
    runs = [small(seed, chosen.steps) for seed in range(int(first), int(last or first) + 1)]
    with tempfile.TemporaryDirectory(prefix="gwtf-hostile-") as folder:
        return hostile(chosen.attacks.split(","), runs, Path(folder), chosen.json)


if __name__ == "__main__":
    sys.exit(main())
