"""Stories of crashes and comings with real peers, each with its outcome asserted: `python -m experiments.live_stories`.

    python -m experiments.live_stories                     all of them, with a table at the end
    python -m experiments.live_stories --story NAME ...    only these
    python -m experiments.live_stories --list

Where the table says "weights equal", the final weights of all stages are those of the same run undisturbed, within 1e-4 (fp32;
the largest difference stands beside it), and equal to the bit among the peers of a stage. Exit code 1 if a story fails.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.support.live_swarm import MODELS, SmallRun, StoryFailed, Swarm, check, check_equal_weights
from gwtf_p2p.cli.shared.local_run import BOOTSTRAP, RunFailed
from gwtf_p2p.live.emulation.faults import MOMENTS, REPLACING, Fault
from gwtf_p2p.protocol.core.lifecycle import done_bytes

SMALL = SmallRun()
LONGER = replace(SMALL, steps=30)
AT = 2
"""The iteration (from 0) in which faults happen."""


@dataclass
class Comparison:
    """The undisturbed runs that stories are compared with, each done once, in `folder`."""

    folder: Path
    _undisturbed: dict[SmallRun, Swarm] = field(default_factory=dict)

    def undisturbed(self, small: SmallRun) -> Swarm:
        if small not in self._undisturbed:
            folder = self.folder / f"undisturbed{len(self._undisturbed)}"
            shutil.rmtree(folder, ignore_errors=True)
            with Swarm(small, folder) as swarm:
                swarm.to_the_end()
            self._undisturbed[small] = swarm
        return self._undisturbed[small]

    def equal_weights(self, swarm: Swarm) -> str:
        small = replace(swarm.small, peers_per_stage=2, capacity=SMALL.capacity)  # who computes makes no difference
        other = self.undisturbed(small)
        difference = check_equal_weights(swarm.folder / "checkpoints", other.folder / "checkpoints", small.stages, small.steps)
        return f"weights equal ({difference:.1g})"


Story = Callable[[Comparison, Path], str]
"""Told in a folder of its own; returns what to put in the table. Raises StoryFailed or RunFailed."""


def one_stage_peer(action: str, moment: str) -> Story:
    """Whichever stage peer of stage 1 gets to the moment first is killed or frozen there."""

    def tell(comparison: Comparison, folder: Path) -> str:
        fault = (Fault(action, moment, AT, folder / "token"),)
        with Swarm(SMALL, folder, {"stage1.0": fault, "stage1.1": fault}) as swarm:
            swarm.to_the_end()
        check(len(swarm.said("fault")) == 1, "one stage peer broke down")
        return f"{comparison.equal_weights(swarm)}; {swarm.delay}"

    return tell


def backward_of(model: str) -> Story:
    """A stage peer of another kind of model is killed in its backward."""

    def tell(comparison: Comparison, folder: Path) -> str:
        fault = (Fault("kill", "backward_received", AT, folder / "token"),)
        with Swarm(replace(SMALL, model=model), folder, {"stage1.0": fault, "stage1.1": fault}) as swarm:
            swarm.to_the_end()
        check(len(swarm.said("fault")) == 1, "one stage peer broke down")
        return f"{model}: {comparison.equal_weights(swarm)}; {swarm.delay}"

    return tell


def a_data_peer_is_killed(comparison: Comparison, folder: Path) -> str:
    """The other one goes on alone; when it is back, its shard is taken up again."""
    small = replace(SMALL, data_peers=2, steps=0)
    with Swarm(small, folder, {"data1": (Fault("kill", "forward_received", AT),)}) as swarm:
        swarm.wait_for("fault", "data1")
        alone_s = swarm.until("the other data peer commits alone", lambda: swarm.state.withdrawn > 0)
        swarm.run.start_again("data1")
        back_s = swarm.until("its shard is taken up again", lambda: swarm.run.lines["data1"].microbatches > 0)
        swarm.adds_up()
    return f"first step alone after {alone_s:.1f} s, {swarm.state.withdrawn} withdrawn, back {back_s:.1f} s after its start"


def the_coordinator_is_killed(comparison: Comparison, folder: Path) -> str:
    """Of two data peers the one that leads: the other takes over."""
    small = replace(SMALL, data_peers=2, steps=0)
    with Swarm(small, folder) as swarm:
        swarm.until_step(3)
        coordinator = min((peer, name) for peer, name in swarm.state.names.items() if name.startswith("data"))[1]
        swarm.run.kill(coordinator)
        reached = swarm.state.iterations
        seconds = swarm.until("the other one leads on", lambda: swarm.state.iterations >= reached + 3)
        swarm.adds_up()
    return f"{coordinator} killed, three more steps in {seconds:.1f} s"


def the_bootstrap_peer_is_killed(comparison: Comparison, folder: Path) -> str:
    """The training goes on, and a newcomer joins by the address of another peer."""
    with Swarm(replace(SMALL, steps=0, capacity=1), folder) as swarm:
        swarm.until_step(2)
        swarm.run.kill(BOOTSTRAP)
        newcomer = swarm.run.add_stage_peer(1)
        joined = swarm.wait_for("joined", newcomer)
        swarm.wait_for("first_microbatch", newcomer)
        reached = swarm.state.iterations
        swarm.until_step(reached + 2)
        swarm.adds_up()
    return f"newcomer ONLINE after {joined['seconds']:.1f} s"


def a_newcomer_joins(comparison: Comparison, folder: Path) -> str:
    """Into a running training: it downloads the state, serves, and does its first microbatch."""
    small = replace(SMALL, steps=0, capacity=1)
    with Swarm(small, folder) as swarm:
        swarm.until_step(2)
        newcomer = swarm.run.add_stage_peer(1)
        joined = swarm.wait_for("joined", newcomer)
        first = swarm.wait_for("first_microbatch", newcomer)
    return f"ONLINE after {joined['seconds']:.1f} s ({joined['steps']}), first microbatch after {first['seconds']:.1f} s"


def a_donor_is_killed(comparison: Comparison, folder: Path) -> str:
    """In the middle of a newcomer's download: the other donor gives the rest."""
    with Swarm(replace(SMALL, steps=0), folder, options={"upload_bytes_per_s": 1e6}) as swarm:
        swarm.until_step(2)
        newcomer = swarm.run.add_stage_peer(1)
        swarm.wait_for("catching_up", newcomer)
        swarm.until("a donor is in the middle of it", lambda: any(r["chunks"] > 1 for r in swarm.said("download", newcomer)))
        check(not swarm.said("joined", newcomer), "the download is under way")
        swarm.run.kill("stage1.0")
        joined = swarm.wait_for("joined", newcomer)
    return f"ONLINE after {joined['seconds']:.1f} s ({joined['steps']})"


def it_dies_again_before_its_moments_are_there(comparison: Comparison, folder: Path) -> str:
    """A killed peer comes back over slow lines, serves with its weights, and is killed while the rest is still coming."""
    small = replace(SMALL, microbatches=16, checkpoint_every=SMALL.steps)  # no copies take the lines
    with Swarm(small, folder, options={"upload_bytes_per_s": 1e6}) as swarm:
        swarm.until_step(2)
        swarm.run.kill("stage1.1")
        shutil.rmtree(swarm.folder / "checkpoints" / "stage1.1", ignore_errors=True)
        swarm.until("its death is known", lambda: bool(swarm.said("peer_lost")))
        seen = len(swarm.heard)
        swarm.run.start_again("stage1.1")

        def since(report: str) -> bool:
            return any(name == "stage1.1" and r["name"] == report for name, r in swarm.heard[seen:])

        served_s = swarm.until("it serves", lambda: since("serves_before_moments"))
        check(not since("caught_up"), "its moments are still coming")
        swarm.run.kill("stage1.1")
        swarm.run.start_again("stage1.1")
        swarm.to_the_end()
    return f"{comparison.equal_weights(swarm)}; served {served_s:.1f} s after its start"


def two_at_once(comparison: Comparison, folder: Path) -> str:
    """One stage peer of each stage in the same iteration."""
    faults = {
        f"stage{stage}.{number}": (Fault("kill", moment, AT, folder / f"token{stage}"),)
        for stage, moment in ((1, "backward_received"), (2, "forward_sent"))
        for number in range(2)
    }
    with Swarm(SMALL, folder, faults) as swarm:
        swarm.to_the_end()
    check(len(swarm.said("fault")) == 2, "two stage peers were killed")
    return f"{comparison.equal_weights(swarm)}; {swarm.delay}"


def the_replacement_is_killed_too(comparison: Comparison, folder: Path) -> str:
    """A stage peer, and then the one that has taken over its microbatch: the third one does it."""
    replacing = (Fault("kill", REPLACING, AT, folder / "token"),)
    faults = {"stage1.0": (Fault("kill", "forward_received", AT),), "stage1.1": replacing, "stage1.2": replacing}
    # So many microbatches that each stage peer of the stage has to take some.
    with Swarm(replace(SMALL, peers_per_stage=3, microbatches=6, capacity=2), folder, faults) as swarm:
        swarm.to_the_end()
    check(len(swarm.said("fault")) == 2, "the stage peer and its replacement were killed")
    return f"{comparison.equal_weights(swarm)}; {swarm.delay}"


def a_stage_dies_and_comes_back(comparison: Comparison, folder: Path) -> str:
    """All peers of stage 1 are killed: the training pauses, says so, and goes on when one of them is back."""
    with Swarm(LONGER, folder) as swarm:
        paused_s = _kill_stage(swarm)
        swarm.run.start_again("stage1.1")
        resumed_s = swarm.until("stage 1 has a peer again", lambda: not swarm.state.pause)
        swarm.to_the_end()
    return f"{comparison.equal_weights(swarm)}; said so after {paused_s:.1f} s, resumed {resumed_s:.1f} s after its start"


def a_stage_dies_with_its_disks(comparison: Comparison, folder: Path) -> str:
    """As before, but the machines are gone: a newcomer takes the stage, with the copy that a neighbour keeps."""
    with Swarm(LONGER, folder) as swarm:
        swarm.until("a copy of stage 1 is kept elsewhere", lambda: _copies(swarm, 1) > 0)
        _kill_stage(swarm)
        for number in range(2):
            shutil.rmtree(swarm.folder / "checkpoints" / f"stage1.{number}")
        newcomer = swarm.run.add_stage_peer(1)
        joined = swarm.wait_for("joined", newcomer)
        swarm.to_the_end()
    back = swarm.said("going_back")
    check(bool(back), "the swarm went back to what it still has")
    return f"{comparison.equal_weights(swarm)}; back to {back[-1]['version']}, newcomer after {joined['seconds']:.1f} s"


def a_stage_peer_moves(comparison: Comparison, folder: Path) -> str:
    """All peers of stage 2 are gone for good: one of stage 1 goes there, with the copy of its checkpoint that is kept."""
    with Swarm(LONGER, folder, options={"moves": True}) as swarm:
        swarm.until("a copy of stage 2 is kept elsewhere", lambda: _copies(swarm, 2) > 0)
        before = len(swarm.said("online"))
        for number in range(2):
            swarm.run.kill(f"stage2.{number}")
        moving = swarm.wait_for("moving")
        moved_s = swarm.until("stage 2 has a peer", lambda: any(r["stage"] == 2 for r in swarm.said("online")[before:]))
        swarm.to_the_end()
    return f"{comparison.equal_weights(swarm)}; serves in stage {moving['to_stage']} {moved_s:.1f} s after its decision"


def everything_is_killed(comparison: Comparison, folder: Path) -> str:
    """And starts again: it resumes at the last common iteration, with equal losses."""
    return _cold_restart(comparison, folder, lost_stage=None)


def everything_is_killed_and_a_stage_loses_its_disks(comparison: Comparison, folder: Path) -> str:
    """As before, with stage 2 on new machines: its state comes from the copies that others have."""
    return _cold_restart(comparison, folder, lost_stage=2)


def memory_is_short(comparison: Comparison, folder: Path) -> str:
    """What is kept for recovery is more than the limit: it goes to the disk, and is there when a stage peer is killed."""
    one = SMALL.microbatch_size * SMALL.sequence_length * 128 * 4
    small = replace(SMALL, microbatches=12, capacity=2)
    fault = (Fault("kill", "averaging", AT, folder / "token"),)
    options = {"max_kept_bytes": 12 * one, "spill": True}
    with Swarm(small, folder, {"stage1.0": fault, "stage1.1": fault}, options) as swarm:
        swarm.to_the_end()
    most = swarm.state.recovery.most_kept_bytes
    check(most < 24 * one, f"memory stayed near the limit of {12 * one} bytes: {most}")
    check(swarm.state.recovery.most_spilled_bytes > 0, "something was spilled")
    return f"{comparison.equal_weights(swarm)}; at most {most // one} tensors in memory, limit 12"


def memory_is_full(comparison: Comparison, folder: Path) -> str:
    """Without a disk to go to, a stage peer takes no more than it may keep. One of three is killed; two have just room
    enough."""
    small = replace(SMALL, peers_per_stage=3, microbatches=6, capacity=8, steps=8)
    one = small.microbatch_size * small.sequence_length * 128 * 4
    limit = 3 * done_bytes(one, one)
    fault = (Fault("kill", "averaging", AT, folder / "token"),)
    options = {"max_kept_bytes": limit, "event_logs": True}
    with Swarm(small, folder, {f"stage1.{i}": fault for i in range(3)}, options) as swarm:
        swarm.to_the_end()
    logs = [log.read_text() for log in folder.glob("*.events.jsonl")]
    kept = [int(number) for log in logs for number in re.findall(r'"BUSY", "detail": "memory: (\d+) kept', log)]
    check(set(kept) == {3}, f"stage peers were BUSY with three microbatches, for want of memory: {kept}")
    return f"{comparison.equal_weights(swarm)}; {len(kept)} offers refused for want of memory"


def _kill_stage(swarm: Swarm) -> float:
    """Seconds until somebody said that stage 1 is empty."""
    swarm.until_step(3)
    for number in range(2):
        swarm.run.kill(f"stage1.{number}")
    paused_s = swarm.until("the training pauses and says so", lambda: "stage 1" in swarm.state.pause)
    return paused_s


def _copies(swarm: Swarm, stage: int) -> int:
    """Peers of other stages that have a checkpoint of this one."""
    found = (swarm.folder / "checkpoints").glob(f"*/stage_{stage:05d}/step_*/manifest.json")
    return len({path.parts[-4] for path in found if not path.parts[-4].startswith(f"stage{stage}.")})


def _cold_restart(comparison: Comparison, folder: Path, lost_stage: int | None) -> str:
    small = LONGER
    with Swarm(small, folder) as swarm:
        swarm.until_step(5)
        if lost_stage is not None:
            swarm.until("its checkpoint is copied", lambda: _copies(swarm, lost_stage) > 0)
        swarm.run.kill_all()
    reached = swarm.state.iterations
    if lost_stage is not None:
        for number in range(small.peers_per_stage):
            shutil.rmtree(folder / "checkpoints" / f"stage{lost_stage}.{number}")
    with Swarm(small, folder) as again:
        again.to_the_end()
    resumed_at = min(again.state.ended_at)
    check(0 < resumed_at <= reached, f"it resumed from a checkpoint: at {resumed_at}, having reached {reached}")
    other = comparison.undisturbed(small)
    off = max(abs(again.state.loss(i) - other.state.loss(i)) for i in again.state.ended_at)
    check(off < 1e-4, f"losses are equal: they differ by {off:.2g}")
    return f"{comparison.equal_weights(again)}; reached {reached}, resumed at {resumed_at}, losses within {off:.1g}"


STORIES: dict[str, Story] = {
    **{f"{action}_{moment}": one_stage_peer(action, moment) for action in ("kill", "freeze") for moment in MOMENTS},
    **{f"backward_of_{model.replace(' ', '_')}": backward_of(model) for model in MODELS if model != SMALL.model},
    **{
        story.__name__: story
        for story in (
            two_at_once,
            the_replacement_is_killed_too,
            a_data_peer_is_killed,
            the_coordinator_is_killed,
            the_bootstrap_peer_is_killed,
            a_newcomer_joins,
            a_donor_is_killed,
            it_dies_again_before_its_moments_are_there,
            a_stage_dies_and_comes_back,
            a_stage_dies_with_its_disks,
            a_stage_peer_moves,
            everything_is_killed,
            everything_is_killed_and_a_stage_loses_its_disks,
            memory_is_short,
            memory_is_full,
        )
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--story", nargs="*", choices=sorted(STORIES), metavar="NAME", help="only these")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and checkpoints there")
    args = parser.parse_args()
    if args.list:
        print("\n".join(STORIES))
        return 0
    folder = args.keep or Path(tempfile.mkdtemp(prefix="gwtf-stories-"))
    comparison, table, failed = Comparison(folder), [], 0
    for name in args.story or STORIES:
        began = time.monotonic()
        shutil.rmtree(folder / name, ignore_errors=True)  # of an earlier time
        try:
            outcome = STORIES[name](comparison, folder / name)
            told = "holds"
        except (StoryFailed, RunFailed) as error:
            outcome, told = str(error), "FAILS"
            failed += 1
        table.append(f"{name:50} {told}  {time.monotonic() - began:5.0f} s  {outcome}")
        print(table[-1], flush=True)
    print(f"\n{len(table) - failed} of {len(table)} stories hold")
    if not args.keep:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
