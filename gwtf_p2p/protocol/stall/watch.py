"""What one peer sees of a stall: its view without those that it has lost, and what its own state machine waits for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.stall.rules import Situation, Stall, counted, duration, stall_of

PACE_ITERATIONS = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run needs to begin."""

    data_peers: int
    peers_per_stage: int


@dataclass(frozen=True, slots=True)
class News:
    """To be told: a stall, that it has become another, or with `stall` None that training goes on after `lasted_s`. `alert`: it
    has lasted so long that somebody is to be called."""

    stall: Stall | None
    lasted_s: float
    alert: bool = False


class StallWatch:
    """Of one peer. `look` is called every few seconds."""

    def __init__(self, wanted: Wanted, alert_after_s: float) -> None:
        self._wanted, self._alert_after_s = wanted, alert_after_s
        self._version, self._since = -1, 0.0
        self._took: deque[float] = deque(maxlen=PACE_ITERATIONS)
        self._empty_since: dict[int, float] = {}
        self._stall: Stall | None = None
        self._began = 0.0
        self._alerted = False

    @property
    def text(self) -> str:
        """Why training stood still at the last look; '' when it did not."""
        return self._stall.text if self._stall is not None else ""

    def look(self, machine: StagePeer | DataPeer, now: float) -> News | None:
        """None when there is nothing new to tell. A stall is told once by its kind, and once more when it becomes an alert."""
        stall = stall_of(self.situation(machine, now))
        former = self._stall
        self._stall = stall
        if stall is None:
            if former is None:
                return None
            self._alerted = False
            return News(None, now - self._began)
        if former is None:
            self._began = now
        lasted_s = now - self._began
        if stall.alerts and not self._alerted and lasted_s >= self._alert_after_s:
            self._alerted = True
            return News(stall, lasted_s, alert=True)
        return News(stall, lasted_s) if former is None or former.code != stall.code else None

    def situation(self, machine: StagePeer | DataPeer, now: float) -> Situation:
        """What this peer sees now."""
        ctx, version = machine.ctx, machine.participant.version
        if version != self._version:
            if self._version >= 0 and version == self._version + 1:
                self._took.append(now - self._since)
            self._version, self._since = version, now
        view = ctx.view
        online = {
            k: sum(1 for p in (view.peers_of_stage(Stage(k)) if view else ()) if not ctx.liveness.is_lost(p))
            for k in range(ctx.stages + 1)
        }
        self._empty_since = {k: self._empty_since.get(k, now) for k, count in online.items() if not count}
        missing, rebuilt_in_s = _missing(machine)
        rebuild = machine.membership.wanted.rebuild
        return Situation(
            stages=ctx.stages,
            total_iterations=version if machine.participant.progress.is_over(version) else ctx.life.total_iterations,
            data_peers=self._wanted.data_peers,
            peers_per_stage=self._wanted.peers_per_stage,
            version=version,
            waited_s=now - self._since,
            pace_s=median(self._took) if self._took else 0.0,
            online=online,
            empty_s={k: now - since for k, since in self._empty_since.items()},
            missing=missing,
            rebuilt_in_s=rebuilt_in_s,
            rebuilding=tuple(rebuild.stages) if rebuild is not None else (),
            doing=waits_for(machine),
            skipped=machine.participant.progress.skipped,
            most_skipped=ctx.life.max_skipped_steps,
            not_finite=machine.participant.progress.skipped_for,
        )


def _missing(machine: StagePeer | DataPeer) -> tuple[tuple[int, int] | None, float | None]:
    """Weights that nobody has, and in how many seconds they are rebuilt, as far as this peer knows."""
    if isinstance(machine, DataPeer):
        rebuilding = machine.coordinator.admission.rebuilding
        if rebuilding.lacking is not None and not rebuilding.under_way:
            version, stages = rebuilding.lacking
            return (int(stages[0]), version), rebuilding.in_s
    if machine.participant.out_of_step and machine.membership.wanted.said_missing >= 0:
        return (int(machine.ctx.stage), machine.membership.wanted.said_missing), None
    return None, None


def waits_for(machine: StagePeer | DataPeer) -> str:
    """What the iteration at hand waits for, as far as this peer knows; '' when it knows nothing."""
    participant = machine.participant
    if isinstance(machine, DataPeer):
        gaps, attempt = machine.finishing.ledger.gaps(), machine.coordinator.under_way.attempt
        if gaps:
            return f"waits for the redo of {counted(len({gap.index for gap in gaps}), 'microbatch')}"
        if attempt is not None:
            late = [peer[-6:] for peer in attempt.waiting_for()]
            done = len(attempt.participants) - len(late)
            names = f", without {', '.join(late[:3])} as yet" if late else ""
            return f"is averaged by {done} of {counted(len(attempt.participants), 'peer')}{names}"
        if machine.coordinator.inquiry is not None:
            asked = machine.coordinator.inquiry.waiting_for()
            return f"waits until {counted(len(asked), 'peer')} have said where they stand"
        if machine.injecting.pending and machine.injecting.iteration == participant.version:
            return f"has no route for {counted(len(machine.injecting.pending), 'microbatch')}"
        under_way = machine.ctx.holdings.under_way(participant.version)
        if under_way:
            return f"waits for {under_way} of {counted(machine.config.microbatches, 'microbatch')} to come back"
    if participant.share.averaging and participant.preparing is not None:
        others = len(participant.preparing.participants) - 1
        return f"is averaged with {counted(others, 'other peer')} of this stage" if others else "is averaged by this peer alone"
    if participant.out_of_step:
        return "waits for this peer's weights"
    if machine.ctx.occupancy:
        return f"has {counted(machine.ctx.occupancy, 'microbatch')} at this peer"
    return ""


def told(news: News) -> str:
    """What a peer says of it."""
    if news.stall is None:
        return f"Training goes on after {duration(news.lasted_s)}."
    return news.stall.text
