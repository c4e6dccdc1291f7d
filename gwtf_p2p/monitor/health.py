"""How a run is, in words that a volunteer understands: what stops it, what may stop it soon, or that it goes on.

Pure: a state and a clock in, findings out, the worst first. Each says what is seen and the numbers that it is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gwtf_p2p.monitor.swarm_state import SHOWN, SwarmState
from gwtf_p2p.protocol.ids import DATA_STAGE

STALL_FACTOR = 5.0
"""An iteration that takes so many times as long as usual is told as a stall, but not before `STALL_LEAST_S`."""

STALL_LEAST_S = 30.0
RISE_FACTOR = 1.5
"""The loss is told to rise when it is so many times its lowest; it wanders by a few per cent from batch to batch."""


class Level(Enum):
    """How much a finding matters: training stands still; somebody should look; all is well."""

    ALERT = "alert"
    NOTICE = "notice"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` names the rule, for alerts and tests; `text` is for people."""

    level: Level
    code: str
    text: str


def findings(state: SwarmState, now: float) -> list[Finding]:
    """All that is to be said of a run; never empty."""
    if not state.records:
        text = "No peer of this run can be seen: the run is over, or this monitor has lost the swarm."
        return [Finding(Level.ALERT, "unseen", text)]
    total = state.run.total_iterations
    if total and state.version >= total:
        return [Finding(Level.OK, "done", f"All {total} iterations are done.")]
    found = [*_waits(state, now), *_silent(state), *_thin(state), *_loss(state)]
    if not any(finding.level is Level.ALERT for finding in found):
        found.append(Finding(Level.OK, "going", "Training goes on."))
    order = list(Level)
    return sorted(found, key=lambda finding: order.index(finding.level))


def _waits(state: SwarmState, now: float) -> list[Finding]:
    """Why no iteration is committed: before the first one, a stage without a peer, or for a reason that is not seen."""
    online, run = state.online(), state.run
    empty = [k for k, count in sorted(online.items()) if not count]
    if not state.version:
        wants = f"{run.data_peers} data peer(s) and {run.peers_per_stage} peer(s) in each of {run.stages} stage(s)"
        there = (
            f"{online[DATA_STAGE]} data peer(s), fewest peers in a stage: {min(online[k] for k in range(1, run.stages + 1))}"
        )
        return [Finding(Level.NOTICE, "not_begun", f"No iteration is committed yet. It takes {wants}; online: {there}.")]
    if empty:
        names = " and ".join("the data stage" if k == DATA_STAGE else f"stage {k}" for k in empty)
        return [Finding(Level.ALERT, "empty_stage", f"Training waits: no peer is online in {names}.")]
    waited_s, pace_s = now - state.advanced_at, state.pace_s
    if waited_s > max(STALL_LEAST_S, STALL_FACTOR * pace_s):
        usual = f"; one usually takes {duration(pace_s)}" if pace_s else ""
        rounded_s = 10.0 * (waited_s // 10)
        return [Finding(Level.ALERT, "stalled", f"No iteration has been committed for {duration(rounded_s)}{usual}.")]
    return []


def _silent(state: SwarmState) -> list[Finding]:
    if not state.silent:
        return []
    names = ", ".join(sorted(peer[-SHOWN:] for peer in state.silent)[:SHOWN])
    more = f" and {len(state.silent) - SHOWN} more" if len(state.silent) > SHOWN else ""
    return [Finding(Level.NOTICE, "silent_peers", f"Not answering any more: {names}{more}.")]


def _thin(state: SwarmState) -> list[Finding]:
    """Stages that one departure would empty, and shards of the data that nobody trains on."""
    online, run = state.online(), state.run
    found = []
    if 0 < online[DATA_STAGE] < run.data_peers:
        text = f"{online[DATA_STAGE]} of {run.data_peers} parts of the data have a data peer; the others are not trained on."
        found.append(Finding(Level.NOTICE, "missing_shards", text))
    thin = [str(k) for k in range(1, run.stages + 1) if online[k] == 1]
    if thin and run.stages > 0:
        text = f"One peer alone holds stage {', '.join(thin)}: if it leaves, training waits. Join, and help there."
        found.append(Finding(Level.NOTICE, "thin_stage", text))
    return found


def _loss(state: SwarmState) -> list[Finding]:
    if len(state.losses) < 2:
        return []
    newest, lowest = state.losses[max(state.losses)], min(state.losses.values())
    if lowest <= 0 or newest < RISE_FACTOR * lowest:
        return []
    return [Finding(Level.NOTICE, "loss_rises", f"The loss has risen to {newest:.3f}; it was {lowest:.3f} at its lowest.")]


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
