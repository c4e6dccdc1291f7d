"""The state machine of a data peer: source and sink of its flows, holder of stage 0, and sometimes coordinator.

It injects the microbatches of an iteration as its router finds routes, computes their loss when they come back, sends the
gradient the same way back, and keeps the ledger of who did which stage. When all are back it reports `Finished`.
Tokens and labels never leave it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.coordinator import Coordinator
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held, Phase
from gwtf_p2p.protocol.core.router import NoRoute, PlanningRouter, RouteRequest
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.peer.base import PeerMachine
from gwtf_p2p.protocol.peer.finish_iteration import Finishing
from gwtf_p2p.protocol.transfer.send_activation import RETRY_S
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import IterationPlan
from gwtf_p2p.protocol.wire.messages import (
    SUPERSEDED,
    Backward,
    ControlMessage,
    Done,
    Finished,
    Forward,
    Missing,
    NotPrepared,
    Prepared,
    Standing,
    Superseded,
    TensorMessage,
    Verdict,
)

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
    """`data_peers`, and `peers_per_stage` in each stage: how many must be online before iteration 0 begins.

    `total_iterations` 0 means no end.
    """

    microbatches: int
    data_peers: int = 1
    total_iterations: int = 0
    peers_per_stage: int = 1


class DataPeer(PeerMachine):
    """One data peer. `begun`: it takes part in the iteration at hand."""

    def __init__(self, context: Context, config: DataPeerConfig) -> None:
        super().__init__(context, Stage(context.stages + 1))
        self.config = config
        self.coordinator = Coordinator(context, self.participant)
        self.begun = False
        self.complete = False
        self.finishing = Finishing(self.membership, self.coordinator, self.repairs, lambda: self.all_injected)
        self._pending: list[int] = []
        self._empty: set[Stage] = set()
        self._said: tuple[int, tuple[str, ...]] = (-1, ())

    @property
    def all_injected(self) -> bool:
        """Every microbatch of this iteration is on its way, or back."""
        return self.begun and not self._pending

    @property
    def in_flight(self) -> int:
        """Own microbatches that are on their way."""
        return self.ctx.occupancy

    # ---- injecting

    def _settle(self) -> None:
        participant, membership = self.participant, self.membership
        participant.set_active(membership.admitted and not participant.out_of_step and not membership.drained)
        if not self.begun:
            self._begin_when_ready()
        super()._settle()
        self._plan()

    def _plan(self) -> None:
        """Have the router's plan made, if it wants one."""
        router = self.ctx.router
        if not isinstance(router, PlanningRouter):
            return
        liveness = self.ctx.liveness
        request = router.planning(liveness.lost | liveness.back, self.ctx.now)
        if request is not None:
            self.ctx.emit(ef.Plan(request))
        if router.flows != self._said:
            self._said = router.flows
            self.ctx.emit(ef.Publish())

    def _planned(self, plan: IterationPlan | None) -> None:
        router = self.ctx.router
        if isinstance(router, PlanningRouter):
            router.planned(plan)
            if self._pending:
                self._inject()

    def _begin_when_ready(self) -> None:
        """Begin to take part: everybody who should be here is, and every stage has a peer."""
        view = self.ctx.view
        if self.complete or view is None or not self.participant.role.active or not self.membership.serves:
            return
        if (self.participant.version > 0 or self._quorum(view)) and not self._empty:
            self.begun = True
            self._begin_iteration()

    def _quorum(self, view: NetworkView) -> bool:
        """Are as many online as the run wants for its beginning?"""
        least = self.config.peers_per_stage
        stages = all(len(view.peers_of_stage(Stage(k))) >= least for k in range(1, self.ctx.stages + 1))
        # This peer too: routers give no flows to a data peer whose record does not say ONLINE yet.
        return stages and self.ctx.me in view.data_peers and len(view.data_peers) >= self.config.data_peers

    def _begin_iteration(self) -> None:
        version = self.participant.version
        if self.config.total_iterations and version >= self.config.total_iterations:
            self.complete, self.begun = True, False
            self.participant.role.take_part(False)
            self.ctx.report("run_complete", iterations=version)
            return
        self.participant.role.take_part(True)
        self.ctx.report("iteration_begins", iteration=version)
        self._pending = list(range(self.config.microbatches))
        self.finishing.clear()
        for peer in self.coordinator.roster.data_peers():
            self.ctx.liveness.watch(peer, self.ctx.out)
        self.coordinator.inquiring.begin()
        self._inject()

    def _inject(self) -> None:
        ctx = self.ctx
        ctx.cancel_timer(ev.Timer.INJECT, "")
        waits_s: list[float] = []
        for index in list(self._pending):
            microbatch = MicrobatchId(ctx.me, self.participant.version, index)
            request = RouteRequest(microbatch, ctx.me, Stage(1), Stage(ctx.stages), ctx.liveness.excluded)
            answer = ctx.router.route(request, ctx.now)
            if isinstance(answer, NoRoute):
                waits_s.append(RETRY_S if answer.retry_s is None else answer.retry_s)
                if answer.retry_s is None:
                    break  # nor is there one for the others
                continue
            held = Held(microbatch, (ctx.incarnation,), Phase.PENDING, ctx.me, ahead=answer.peers)
            self._pending.remove(index)
            held.note(f"route {' '.join(answer.peers)}: {answer.reason}", ctx.now)
            ctx.holdings.add(held)
            ctx.move(held, Phase.QUEUED_EMBED)
            ctx.report("injected", microbatch=held.name, route=list(answer.peers), reason=answer.reason)
        if waits_s:
            ctx.start_timer(ev.Timer.INJECT, "", min(waits_s))

    # ---- transfers towards this peer

    def _verdict_forward(self, sender: PeerId, message: Forward) -> ef.Answer:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or message.stage != self.return_gradient.stage:
            return ef.Answer(Verdict.REFUSED, "not a microbatch of this data peer and iteration")
        if message.attempt < held.result_attempt:
            ctx.emit(ef.Send(sender, Superseded(held.id, held.result_attempt)))
            return ef.Answer(Verdict.REFUSED, SUPERSEDED)
        if held.phase is Phase.RECEIVING_RESULT:
            ctx.move(held, Phase.TRAVELLING)  # the newest offer counts: the transfer before it may have gone astray
        if held.phase is Phase.TRAVELLING:
            held.handed_by(sender)
            held.result_offered(message.attempt)
            ctx.move(held, Phase.RECEIVING_RESULT)
            ctx.liveness.watch(sender, ctx.out)
            return ef.Answer(Verdict.ACCEPTED)
        if held.phase in HAS_RESULT:
            held.result_offered(message.attempt)
            self.return_gradient.new_predecessor(held, sender, message.attempt)
            return ef.Answer(Verdict.DUPLICATE)
        return ef.Answer(Verdict.BUSY, f"not travelling: {held.phase.name}")

    def _verdict_backward(self, sender: PeerId, message: Backward) -> ef.Answer:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or message.stage != DATA_STAGE:
            return ef.Answer(Verdict.REFUSED, "not a microbatch of this data peer and iteration")
        if len(message.done_by) != ctx.stages or message.done_by[0] != sender:
            return ef.Answer(Verdict.REFUSED, f"done_by: expected {ctx.stages} peers, the sender first")
        if held.phase is Phase.RECEIVING_GRADIENT:
            ctx.move(held, Phase.RETURNING)
        if held.phase is Phase.RETURNING:
            held.gradient_offered(sender)
            ctx.move(held, Phase.RECEIVING_GRADIENT)
            return ef.Answer(Verdict.ACCEPTED)
        if held.phase in (Phase.QUEUED_FINISH, Phase.FINISH, Phase.DONE):
            self.send_activation.returned(held, sender)
            return ef.Answer(Verdict.DUPLICATE)
        if held.phase is Phase.TRAVELLING:
            self.repairs.insist(held)
        return ef.Answer(Verdict.BUSY, f"loss is not done: {held.phase.name}")

    def _delivered(self, sender: PeerId, message: TensorMessage) -> None:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None:
            ctx.emit(ef.Discard(message.microbatch))
        elif isinstance(message, Forward) and held.phase is Phase.RECEIVING_RESULT:
            ctx.move(held, Phase.QUEUED_LOSS)
        elif isinstance(message, Backward) and held.phase is Phase.RECEIVING_GRADIENT:
            held.gradient_is_here(message.done_by)
            self.send_activation.returned(held, sender)
            ctx.move(held, Phase.QUEUED_FINISH)
            ctx.router.observe_end(held.id, ctx.now)
            self.finishing.back(held)
            self._inject()

    def _delivery_broken(self, event: ev.DeliveryBroken) -> None:
        ctx, message = self.ctx, event.message
        held = ctx.held.get(message.microbatch)
        if held is None:
            return
        if isinstance(message, Forward):
            if held.phase is Phase.RECEIVING_RESULT and message.attempt == held.result_attempt:
                ctx.move(held, Phase.TRAVELLING)
        elif held.phase is Phase.RECEIVING_GRADIENT and event.sender == held.gradient_from:
            ctx.move(held, Phase.RETURNING)
            ctx.suspect(event.sender, f"gradient broke off: {event.reason}")

    def _received_own(self, sender: PeerId, message: ControlMessage) -> None:
        match message:
            case Finished():
                self.coordinator.data_peer_finished(sender, message)
            case Prepared():
                self.coordinator.prepared(sender, message)
            case NotPrepared():
                self.coordinator.not_prepared(sender, message)
            case Done():
                self.finishing.stands_in(sender, message)
            case Missing():
                self.finishing.missing(sender, message)
            case _:
                self.ctx.report("unexpected_message", sender=sender, kind=type(message).__name__)

    def _standing(self, sender: PeerId, standing: Standing) -> None:
        if self.coordinator.inquiry is None or sender not in self.coordinator.inquiry.asked:
            super()._standing(sender, standing)
        self.membership.heard(sender, standing)
        if standing.joining:
            self.finishing.gone(sender)
        self.coordinator.stands(sender, standing)
        if self.finishing.reported_to not in (None, self.coordinator.roster.coordinator()):
            self.finishing.report()

    # ---- computing

    def _next_work(self) -> tuple[ev.Work, Held] | None:
        ctx, participant = self.ctx, self.participant
        for queued, computing, work in NEXT_WORK:
            if work is not ev.Work.EMBED and participant.share.gradient_is_fixed:
                continue
            held = ctx.holdings.first_queued(queued)
            if held is not None and not participant.share.stepping:
                ctx.move(held, computing)
                return work, held
        return None

    def _computed(self, held: Held, event: ev.Computed) -> None:
        ctx = self.ctx
        if event.work is ev.Work.EMBED:
            ctx.move(held, Phase.TRAVELLING)
            self.send_activation.begin(held)
        elif event.work is ev.Work.LOSS:
            ctx.move(held, Phase.RETURNING)
            self.return_gradient.begin(held)
        else:
            self.participant.share.count(held.id)
            ctx.move(held, Phase.DONE)
            ctx.report("microbatch_done", microbatch=held.name, loss=held.loss, route=list(held.done_by))
            self.finishing.report()

    # ---- time, other peers, iterations

    def _timer(self, what: ev.OwnTimer) -> None:
        match what:
            case ev.Timer.INJECT:
                self._inject()
            case ev.Timer.REDO:
                self.finishing.late_redo()
            case ev.Timer.FINISH:
                self.finishing.late()
            case ev.Timer.PLACEMENT:
                pass  # data peers stay where they are
            case _:
                self.coordinator.timer(what)

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        for held in self.ctx.in_order():
            if held.predecessor == peer and held.phase is Phase.RECEIVING_RESULT:
                self.ctx.move(held, Phase.TRAVELLING)
        self._watch_stages()
        self.coordinator.peer_lost(peer, reason)
        self.finishing.gone(peer)
        if self.finishing.reported_to == peer:
            self.finishing.report()

    def peer_cleared(self, peer: PeerId, returned: bool) -> None:
        if returned:
            self._watch_stages()
            self.coordinator.inquiring.peer_returned(peer)
            if self.coordinator.roster.coordinator() not in (self.finishing.reported_to, self.ctx.me):
                self.finishing.report()
        self.coordinator.try_to_prepare()

    def routes_may_be_open(self) -> None:
        self._watch_stages()
        self.send_activation.retry_all()
        if self.begun and self._pending:
            self._inject()

    def _watch_stages(self) -> None:
        """Say so when a stage has nobody left, and when somebody has come."""
        ctx, view = self.ctx, self.ctx.view
        if view is None:
            return
        for k in range(1, ctx.stages + 1):
            stage = Stage(k)
            empty = all(ctx.liveness.is_lost(peer) for peer in view.peers_of_stage(stage))
            if empty != (stage in self._empty):
                (self._empty.add if empty else self._empty.discard)(stage)
                if not self.begun:
                    continue
                ctx.report("stage_empty" if empty else "stage_staffed", stage=k, iteration=self.participant.version)

    def others_waited_for(self) -> list[PeerId]:
        return self.coordinator.waits_for()

    def _iteration_changed(self) -> None:
        self._pending.clear()
        self.finishing.clear()
        self.coordinator.new_iteration()
        serves = self.membership.admitted and self.membership.serves
        if self.begun and serves:
            self._begin_iteration()
        else:
            self.begun = False
            self.participant.role.take_part(False)

    def _drop_everything(self) -> None:
        """The microbatches of this data peer are withdrawn: the others close without it."""
        if self.ctx.held:
            self.ctx.report("withdrawn", iteration=self.participant.version, microbatches=len(self.ctx.held))
        super()._drop_everything()
        self.begun = False
        self.participant.role.take_part(False)
        self._pending.clear()
        self.finishing.clear()
        self.ctx.cancel_timer(ev.Timer.INJECT, "")
        self.coordinator.reset()

    def _drain(self) -> None:
        """Finish what is under way, and the iteration with it."""
        self._pending.clear()
        self.finishing.report()

    def _nothing_left(self) -> bool:
        return super()._nothing_left() and not self.ctx.held
