"""How a run is, in words that a volunteer understands: what stops it, what may stop it soon, or that it goes on.

Pure: a state and a clock in, findings out, the worst first. Each says what is seen and the numbers that it is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gwtf_p2p.monitor.ledger import called
from gwtf_p2p.monitor.swarm_state import SHOWN, SwarmState
from gwtf_p2p.protocol.ids import DATA_STAGE
from gwtf_p2p.protocol.replica_sync import what_holds
from gwtf_p2p.protocol.stall.rules import Situation, counted, stall_of
from gwtf_p2p.protocol.view.evaluations import so_far

RISE_FACTOR = 1.5
"""The loss is told to rise when it is so many times its lowest; it wanders by a few per cent from batch to batch."""

MOST_REBUILT_SHOWN = 3


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
        return [Finding(Level.OK, "done", f"All {total} iterations are done."), *_evaluations(state)]
    if state.ends_early:
        text = f"The run has ended after {state.version} iterations: {state.ends_early}."
        return [Finding(Level.OK, "ended_early", text)]
    found = [*_waits(state, now), *_rebuilt(state), *_silent(state), *_thin(state), *_loss(state), *_evaluations(state)]
    found += _copies(state)
    if not any(finding.level is Level.ALERT for finding in found):
        found.append(Finding(Level.OK, "going", "Training goes on."))
    order = list(Level)
    return sorted(found, key=lambda finding: order.index(finding.level))


def _waits(state: SwarmState, now: float) -> list[Finding]:
    """Why no iteration is committed, by the rules that every peer goes by too (`protocol/stall/rules`)."""
    run = state.run
    seen = Situation(
        stages=run.stages,
        total_iterations=run.total_iterations,
        data_peers=run.data_peers,
        peers_per_stage=run.peers_per_stage,
        version=state.version,
        waited_s=now - state.advanced_at,
        pace_s=state.pace_s,
        online=state.online(),
        skipped=state.skipped_steps,
        most_skipped=run.max_skipped_steps,
    )
    stall = stall_of(seen)
    if stall is None:
        return []
    return [Finding(Level.ALERT if stall.alerts else Level.NOTICE, stall.code, stall.text)]


def _rebuilt(state: SwarmState) -> list[Finding]:
    """For good: the weights of such a stage are not what was trained."""
    newest = state.told.contributions.rebuilt[-MOST_REBUILT_SHOWN:]
    texts = (f"Stage {stage} was rebuilt from its neighbours' weights after {version} iterations." for stage, version in newest)
    text = " ".join(texts)
    return [Finding(Level.NOTICE, "rebuilt_stage", f"{text} Nobody had its own any more.")] if text else []


def _evaluations(state: SwarmState) -> list[Finding]:
    """Which weights were the best, and how long the run waits for better ones."""
    known = state.evaluations
    if known is None:
        return []
    text = so_far(known, state.run.evaluation.patience)
    return [Finding(Level.OK, "evaluations", f"{text[0].upper()}{text[1:]}.")]


def _silent(state: SwarmState) -> list[Finding]:
    if not state.silent:
        return []
    names = ", ".join(sorted(called(peer, state.records.get(peer)) for peer in state.silent)[:SHOWN])
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


def _copies(state: SwarmState) -> list[Finding]:
    """In a run whose copies of a stage differ: what holds then, and where the run is between two averages."""
    sync = state.run.sync
    if not sync.is_on:
        return []
    since = sync.since_whole(state.version)
    now = f"{counted(since, 'iteration')} since the last average" if since else "equal now"
    return [Finding(Level.OK, "copies_differ", f"C{what_holds(sync.every)[1:]} ({now}).")]


def _loss(state: SwarmState) -> list[Finding]:
    if len(state.losses) < 2:
        return []
    newest, lowest = state.losses[max(state.losses)], min(state.losses.values())
    if lowest <= 0 or newest < RISE_FACTOR * lowest:
        return []
    return [Finding(Level.NOTICE, "loss_rises", f"The loss has risen to {newest:.3f}; it was {lowest:.3f} at its lowest.")]
