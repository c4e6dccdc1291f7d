"""The state machine of a data peer: source and sink of its flows, holder of stage 0, and sometimes leader.

It injects the microbatches of an iteration as its router finds routes, computes their loss when they come back, sends the
gradient the same way back, and keeps the ledger of who did which stage. When all are back it reports `Finished`.
Tokens and labels never leave it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.aggregation import Leader
from gwtf_p2p.protocol.context import Context
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.messages import (
    Averaged,
    Backward,
    ControlMessage,
    Credit,
    Done,
    Finished,
    Forward,
    NotAveraged,
    TensorMessage,
    Verdict,
)
from gwtf_p2p.protocol.microbatch import DATA_PHASES, Held, Phase
from gwtf_p2p.protocol.peer_machine import PeerMachine
from gwtf_p2p.protocol.repair import RETRY_S
from gwtf_p2p.protocol.routers.base import NoRoute, RouteRequest

CLOSE_PRIOR_S = 10.0
HAS_RESULT = frozenset(
    {Phase.QUEUED_LOSS, Phase.LOSS, Phase.RETURNING, Phase.RECEIVING_GRADIENT, Phase.QUEUED_FINISH, Phase.FINISH, Phase.DONE}
)
NEXT_WORK = (
    (Phase.QUEUED_LOSS, Phase.LOSS, ev.Work.LOSS),
    (Phase.QUEUED_EMBED, Phase.EMBED, ev.Work.EMBED),
    (Phase.QUEUED_FINISH, Phase.FINISH, ev.Work.FINISH),
)
"""In this order: a loss turns a microbatch around, an embedding fills the pipeline, a finish frees nobody else."""


@dataclass(frozen=True, slots=True)
class DataPeerConfig:
    """`data_peers`: how many must be online before iteration 0 begins. `total_iterations` 0 means no end."""

    microbatches: int
    data_peers: int = 1
    total_iterations: int = 0


class DataPeer(PeerMachine):
    """One data peer."""

    def __init__(self, context: Context, config: DataPeerConfig) -> None:
        super().__init__(context, Stage(context.stages + 1))
        self.config = config
        self.leader = Leader(context, self.member)
        self.begun = False
        self.complete = False
        self._pending: list[int] = []
        self._ledger: dict[int, list[PeerId]] = {}
        self._stand_ins: dict[tuple[int, Stage], PeerId] = {}
        self._reported_to: PeerId | None = None
        self._finished_at = 0.0

    @property
    def in_flight(self) -> int:
        """Own microbatches that are on their way."""
        return sum(1 for held in self.ctx.held.values() if held.phase is not Phase.DONE)

    def _started(self) -> None:
        self._begin_when_ready()

    # ---- injecting

    def _begin_when_ready(self) -> None:
        view = self.ctx.view
        if self.begun or self.complete or view is None:
            return
        data_peers = set(view.data_peers) | {self.ctx.me}
        staffed = all(view.peers_of_stage(Stage(k)) for k in range(1, self.ctx.stages + 1))
        if staffed and len(data_peers) >= self.config.data_peers:
            self.begun = True
            self._begin_iteration()

    def _begin_iteration(self) -> None:
        if self.config.total_iterations and self.member.version >= self.config.total_iterations:
            self.complete = True
            self.ctx.report("run_complete", iterations=self.member.version)
            return
        self.ctx.report("iteration_begins", iteration=self.member.version)
        self._pending = list(range(self.config.microbatches))
        self._ledger.clear()
        self._stand_ins.clear()
        self._reported_to = None
        self._inject()

    def _inject(self) -> None:
        ctx = self.ctx
        ctx.cancel_timer("inject", self.member.version)
        barred = frozenset(ctx.liveness.lost | ctx.liveness.suspected)
        while self._pending:
            microbatch = MicrobatchId(ctx.me, self.member.version, self._pending[0])
            answer = ctx.router.route(RouteRequest(microbatch, ctx.me, Stage(1), Stage(ctx.stages), barred), ctx.now)
            if isinstance(answer, NoRoute):
                ctx.start_timer("inject", self.member.version, RETRY_S)
                return
            held = Held(microbatch, 0, Phase.PENDING, ctx.me, answer.peers, order=self._pending.pop(0))
            held.note(f"route {' '.join(answer.peers)}: {answer.reason}", ctx.now)
            held.to_phase(Phase.QUEUED_EMBED, DATA_PHASES, ctx.now)
            ctx.held[microbatch] = held
            ctx.report("injected", microbatch=str(microbatch), route=list(answer.peers), reason=answer.reason)

    # ---- transfers towards this peer

    def _verdict_forward(self, sender: PeerId, message: Forward) -> ev.Answer:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or message.stage != self.handbacks.stage:
            return ev.Answer(Verdict.REFUSED, "not a microbatch of this data peer and iteration")
        if held.phase is Phase.RECEIVING_RESULT and sender != held.predecessor:
            held.to_phase(Phase.TRAVELLING, DATA_PHASES, ctx.now)
        if held.phase is Phase.TRAVELLING:
            held.predecessor = sender
            held.to_phase(Phase.RECEIVING_RESULT, DATA_PHASES, ctx.now)
            return ev.Answer(Verdict.ACCEPTED)
        if held.phase in HAS_RESULT:
            self.handbacks.new_predecessor(held, sender, message.attempt)
            return ev.Answer(Verdict.DUPLICATE)
        return ev.Answer(Verdict.REFUSED, f"not travelling: {held.phase.name}")

    def _verdict_backward(self, sender: PeerId, message: Backward) -> ev.Answer:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or message.stage != DATA_STAGE:
            return ev.Answer(Verdict.REFUSED, "not a microbatch of this data peer and iteration")
        if len(message.done_by) != ctx.stages or message.done_by[0] != sender:
            return ev.Answer(Verdict.REFUSED, f"done_by: expected {ctx.stages} peers, the sender first")
        if held.phase is Phase.RECEIVING_GRADIENT and sender != held.successor:
            held.to_phase(Phase.RETURNING, DATA_PHASES, ctx.now)
        if held.phase is Phase.RETURNING:
            held.successor = sender
            held.to_phase(Phase.RECEIVING_GRADIENT, DATA_PHASES, ctx.now)
            return ev.Answer(Verdict.ACCEPTED)
        if held.phase in (Phase.RECEIVING_GRADIENT, Phase.QUEUED_FINISH, Phase.FINISH, Phase.DONE):
            self.handoffs.returned(held, sender)
            return ev.Answer(Verdict.DUPLICATE)
        return ev.Answer(Verdict.REFUSED, f"loss is not done: {held.phase.name}")

    def _delivered(self, message: TensorMessage) -> None:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None:
            return
        if isinstance(message, Forward) and held.phase is Phase.RECEIVING_RESULT:
            held.to_phase(Phase.QUEUED_LOSS, DATA_PHASES, ctx.now)
        elif isinstance(message, Backward) and held.phase is Phase.RECEIVING_GRADIENT and held.successor is not None:
            held.done_by = message.done_by
            self._ledger[held.id.index] = list(message.done_by)
            self.handoffs.returned(held, held.successor)
            held.to_phase(Phase.QUEUED_FINISH, DATA_PHASES, ctx.now)
            ctx.router.observe_end(held.id, ctx.now)
            self._inject()

    def _delivery_broken(self, event: ev.DeliveryBroken) -> None:
        ctx = self.ctx
        held = ctx.held.get(event.message.microbatch)
        if held is None:
            return
        if held.phase is Phase.RECEIVING_RESULT and event.sender == held.predecessor:
            held.to_phase(Phase.TRAVELLING, DATA_PHASES, ctx.now)
        elif held.phase is Phase.RECEIVING_GRADIENT and event.sender == held.successor:
            held.to_phase(Phase.RETURNING, DATA_PHASES, ctx.now)
            ctx.suspect(event.sender, f"gradient broke off: {event.reason}")

    def _received_own(self, sender: PeerId, message: ControlMessage) -> None:
        match message:
            case Finished():
                self.leader.data_peer_finished(sender, message)
            case Averaged():
                self.leader.averaged(sender, message)
            case NotAveraged():
                self.leader.not_averaged(sender, message)
            case Done(microbatch, stage) if microbatch.data_peer == self.ctx.me:
                self._stand_in(sender, microbatch, stage)
            case _:
                self.ctx.report("unexpected_message", sender=sender, kind=type(message).__name__)

    # ---- computing

    def _next_work(self) -> tuple[ev.Work, Held] | None:
        by_order = sorted(self.ctx.held.values(), key=lambda held: held.order)
        for queued, computing, work in NEXT_WORK:
            for held in by_order:
                if held.phase is queued:
                    held.to_phase(computing, DATA_PHASES, self.ctx.now)
                    return work, held
        return None

    def _computed(self, held: Held, event: ev.Computed) -> None:
        ctx = self.ctx
        if event.work is ev.Work.EMBED:
            held.to_phase(Phase.TRAVELLING, DATA_PHASES, ctx.now)
            self.handoffs.begin(held)
        elif event.work is ev.Work.LOSS:
            held.loss = event.loss
            held.to_phase(Phase.RETURNING, DATA_PHASES, ctx.now)
            self.handbacks.begin(held)
        else:
            self.member.counted.add(held.id)
            held.to_phase(Phase.DONE, DATA_PHASES, ctx.now)
            ctx.report("microbatch_done", microbatch=str(held.id), loss=held.loss, route=list(held.done_by))
            self._report_finished()

    # ---- the ledger and the end of the iteration

    def _report_finished(self) -> None:
        """Tell the leader once all microbatches are done; again when the ledger or the leader has changed."""
        ctx = self.ctx
        if len(self.member.counted) < self.config.microbatches:
            return
        ledger = tuple(Credit(index, tuple(peers)) for index, peers in sorted(self._ledger.items()))
        losses = [held.loss for held in ctx.held.values() if held.loss is not None]
        if self._reported_to is None:
            self._finished_at = ctx.now
        self._reported_to = self.leader.leading_peer()
        mean = sum(losses) / len(losses) if losses else 0.0
        ctx.emit(ev.Send(self._reported_to, Finished(self.member.version, ledger, mean)))
        ctx.start_timer("finish", self.member.version, ctx.timings.deadline_s(("finish",), CLOSE_PRIOR_S))

    def _stand_in(self, sender: PeerId, microbatch: MicrobatchId, stage: Stage) -> None:
        """A replacement did a stage; it is credited if the peer credited so far is lost, now or later."""
        if microbatch.iteration == self.member.version and 1 <= stage <= self.ctx.stages:
            self._stand_ins[microbatch.index, stage] = sender
            self._credit_stand_ins()

    def _credit_stand_ins(self) -> None:
        changed = False
        for (index, stage), peer in sorted(self._stand_ins.items()):
            peers = self._ledger.get(index)
            if peers is not None and peers[stage - 1] in self.ctx.liveness.lost and peer not in self.ctx.liveness.lost:
                peers[stage - 1] = peer
                changed = True
        if changed:
            self._report_finished()

    # ---- time, other peers, iterations

    def _timer(self, what: str) -> None:
        match what:
            case "inject":
                self._inject()
            case "finish":
                if self._reported_to is not None:
                    self.ctx.suspect(self._reported_to, "close is late")
                self._report_finished()
            case _:
                self.leader.timer(what)

    def _peer_lost(self, peer: PeerId, reason: str) -> None:
        for held in self.ctx.in_order():
            if held.predecessor == peer and held.phase is Phase.RECEIVING_RESULT:
                held.to_phase(Phase.TRAVELLING, DATA_PHASES, self.ctx.now)
        self._credit_stand_ins()
        self.leader.peer_lost(peer, reason)
        if self._reported_to == peer:
            self._report_finished()

    def _routes_may_be_open(self) -> None:
        self._begin_when_ready()
        for held in self.ctx.in_order():
            self.handoffs.retry(held)
        if self.begun and not self.complete:
            self._inject()

    def _stepped(self, iteration: int) -> None:
        self._forget_iteration(iteration)
        self.leader.stepped()
        self.ctx.cancel_timer("finish", iteration)
        self.ctx.timings.observe(("finish",), self.ctx.now - self._finished_at)
        self._begin_iteration()
