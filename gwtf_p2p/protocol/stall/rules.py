"""Why does training stand still? One sentence for people, from what a peer or an observer can see; none while it goes on.

The rules, the first that fits is told: the run is complete; it is paused, as gradients were not finite; it has not begun, and
who is missing; a stage is being rebuilt, or its weights are lost; one has nobody, and since when; the iteration takes far
longer than usual, and what it waits for. Peers and monitors make a `Situation` each in their own way, and say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import DATA_STAGE

STALL_FACTOR = 5.0
"""An iteration that takes so many times as long as usual is told as a stall, but not before `STALL_LEAST_S`."""

STALL_LEAST_S = 30.0


SKIPPED = "skipped_steps"
"""Where a peer puts how many steps in a row were skipped, in its record's `progress`."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is seen of a run. `version`: committed iterations, the last of them `waited_s` ago; one usually takes `pace_s` (0:
    unknown). `online`: peers by stage that microbatches can be sent to, all stages named; `empty_s`: since when a stage has
    nobody, as far as that was seen. `missing`: (stage, version) of weights that nobody who is there has, which are rebuilt in
    `rebuilt_in_s`, if at all; `rebuilding`: stages whose weights are being rebuilt. `doing`: what the iteration at hand waits
    for, '' where that is not seen. `skipped` steps in a row had gradients that are not finite, the last at the peers
    `not_finite`; the run pauses after `most_skipped` (0: never).
    """

    stages: int
    total_iterations: int
    data_peers: int
    peers_per_stage: int
    version: int
    waited_s: float
    pace_s: float
    online: Mapping[int, int]
    empty_s: Mapping[int, float] = field(default_factory=dict)
    missing: tuple[int, int] | None = None
    rebuilt_in_s: float | None = None
    rebuilding: tuple[int, ...] = ()
    doing: str = ""
    skipped: int = 0
    most_skipped: int = 0
    not_finite: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stall:
    """`code` names the rule, for alerts and tests; `text` is for people. `alerts`: training has begun: somebody must act."""

    code: str
    text: str
    alerts: bool


def stall_of(seen: Situation) -> Stall | None:
    """Why no iteration is committed; None while all goes on, and when all iterations are done."""
    if 0 < seen.total_iterations <= seen.version:
        return None
    if 0 < seen.most_skipped <= seen.skipped:
        at = f" (at {', '.join(peer[-6:] for peer in seen.not_finite[:3])})" if seen.not_finite else ""
        text = (
            f"Training is paused: the last {were_skipped(seen.skipped)}, because gradients were not finite{at}. "
            "Start the data peers again to go on; if it stays so, begin with another learning_rate."
        )
        return Stall("paused", text, True)
    empty = [k for k in range(seen.stages + 1) if not seen.online.get(k, 0)]
    if not seen.version:
        return _not_begun(seen)
    if any(k in empty for k in seen.rebuilding):
        return Stall("rebuilding", f"Training waits: {rebuilt_stages(seen.rebuilding, seen.version)}.", True)
    if seen.missing is not None:
        return _missing(seen, *seen.missing)
    if empty:
        names = " and ".join(_named(k) for k in empty)
        since = [seen.empty_s[k] for k in empty if k in seen.empty_s]
        for_s = f" for {duration(min(since))}" if since else ""
        return Stall("empty_stage", f"Training waits: no peer is online in {names}{for_s}.", True)
    if seen.waited_s > max(STALL_LEAST_S, STALL_FACTOR * seen.pace_s):
        usual = f"; one usually takes {duration(seen.pace_s)}" if seen.pace_s else ""
        doing = f" Iteration {seen.version} {seen.doing}." if seen.doing else ""
        rounded_s = 10.0 * (seen.waited_s // 10)
        return Stall("stalled", f"No iteration has been committed for {duration(rounded_s)}{usual}.{doing}", True)
    return None


def _not_begun(seen: Situation) -> Stall | None:
    """Before the first commit: who has to come; None while the first iteration is under way and takes no longer than it may."""
    lacking = [k for k in range(1, seen.stages + 1) if seen.online.get(k, 0) < seen.peers_per_stage]
    complete = seen.online.get(DATA_STAGE, 0) >= seen.data_peers and not lacking
    if complete and seen.waited_s <= STALL_LEAST_S:
        return None
    each = counted(seen.peers_per_stage, "peer")
    stages = "the stage" if seen.stages == 1 else f"each of {seen.stages} stages"
    wants = f"{counted(seen.data_peers, 'data peer')} and {each} in {stages}"
    fewest = min(seen.online.get(k, 0) for k in range(1, seen.stages + 1))
    there = f"{counted(seen.online.get(DATA_STAGE, 0), 'data peer')}, fewest peers in a stage: {fewest}"
    in_stages = f" (stage {', '.join(map(str, lacking))})" if lacking else ""
    doing = f" Iteration 0 {seen.doing}." if complete and seen.doing else ""
    text = f"No iteration is committed yet. It takes {wants}; online: {there}{in_stages}.{doing}"
    return Stall("not_begun", text, False)


def _missing(seen: Situation, stage: int, version: int) -> Stall:
    text = f"Training waits: nobody who is there has the weights of {_named(stage)} after {counted(version, 'iteration')}."
    if seen.rebuilt_in_s is not None:
        text += (
            f" They are rebuilt from the neighbouring stages' in {seen.rebuilt_in_s:.0f} s, unless somebody comes with them."
        )
    return Stall("weights_missing", text, True)


def rebuilt_stages(stages: Sequence[int], version: int) -> str:
    """What is told of stages that begin anew, while they do and from then on."""
    names = " and ".join(map(str, stages))
    what = "is rebuilt from its neighbours'" if len(stages) == 1 else "are rebuilt from their neighbours'"
    after = f"weights after {counted(version, 'iteration')}"
    return f"stage {names} {what} {after}, as nobody has its own; part of what it had learnt is lost"


def _named(stage: int) -> str:
    return "the data stage" if stage == DATA_STAGE else f"stage {stage}"


def were_skipped(count: int) -> str:
    """What became of the last so many steps."""
    return "step was skipped" if count == 1 else f"{counted(count, 'step')} were skipped"


def counted(count: int, what: str) -> str:
    """So many of them, as people say it: 1 peer, 2 peers, 0 microbatches."""
    many = f"{what}es" if what.endswith("ch") else f"{what}s"
    return f"{count} {what if count == 1 else many}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 3.2 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for big, small, large_name, small_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big} {large_name}" + (f" {rest} {small_name}" if rest else "")
    raise AssertionError("a minute or more has one of these units")
