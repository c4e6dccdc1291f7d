"""The state machine of a data peer: source and sink of its flows, holder of stage 0, and sometimes coordinator.

It injects the microbatches of an iteration as its router finds routes, computes their loss when they come back, sends the
gradient the same way back, and keeps the ledger of who did which stage. When all are back it reports `Finished`.
Tokens and labels never leave it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.coordinator import Coordinator
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held, Phase
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.peer.base import PeerMachine
from gwtf_p2p.protocol.peer.data_arrivals import DataArrivals
from gwtf_p2p.protocol.peer.finish_iteration import Finishing
from gwtf_p2p.protocol.peer.injecting import Injecting
from gwtf_p2p.protocol.trust.acquaintance import Acquaintances
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import IterationPlan
from gwtf_p2p.protocol.wire.messages import (
    Complete,
    ControlMessage,
    Done,
    Finished,
    Missing,
    NotPrepared,
    Prepared,
    Standing,
)

NEXT_WORK = (
    (Phase.QUEUED_LOSS, Phase.LOSS, ev.Work.LOSS),
    (Phase.QUEUED_EMBED, Phase.EMBED, ev.Work.EMBED),
    (Phase.QUEUED_FINISH, Phase.FINISH, ev.Work.FINISH),
)
"""In this order: a loss turns a microbatch around, an embedding fills the pipeline, a finish frees nobody else."""

GREETS_FIRST_S = 10.0
"""A run begins at the latest so long after as many are there as it wants, though not all whose records have come have been
greeted (`trust/probation`). Its first plan would know only those that were greeted first, others at each data peer."""


@dataclass(frozen=True, slots=True)
class DataPeerConfig:
    """`data_peers`, and `peers_per_stage` in each stage: how many must be online before iteration 0 begins."""

    microbatches: int
    data_peers: int = 1
    peers_per_stage: int = 1


class DataPeer(PeerMachine):
    """One data peer. `begun`: it takes part in the iteration at hand. `complete_since`: as many are there as the run wants."""

    def __init__(self, context: Context, config: DataPeerConfig) -> None:
        super().__init__(context, Stage(context.stages + 1))
        self.config = config
        self.coordinator = Coordinator(context, self.participant)
        self.know(Acquaintances(context, self.participant, self.coordinator.roster))
        self.gate.led = self.coordinator.under_way.participants
        self.begun = False
        self.complete_since: float | None = None
        self._empty: set[Stage] = set()
        self.injecting = injecting = Injecting(context, self.participant)
        orders = self.audits.order(lambda stage, peer: self.finishing.receipting.audit_passed(stage, peer))
        context.holds_back = lambda: not orders.are_settled
        self.finishing = Finishing(
            self.membership,
            self.coordinator,
            self.repairs,
            orders,
            lambda: self.begun and injecting.has_all_of(self.participant.version),
        )
        self.arrivals = arrivals = DataArrivals(context, self.transfers, self.finishing, self.injecting)
        self.gate.on_unheard = arrivals.unheard

    # ---- injecting

    def _settle(self) -> None:
        participant, membership = self.participant, self.membership
        participant.role.set_active(membership.admitted and not participant.out_of_step and not membership.drained)
        if not self.begun:
            self._begin_when_ready()
        super()._settle()
        if self.begun and membership.serves and self.injecting.go_ahead(self.config.microbatches):
            self.computing.go_on()
        self.injecting.plan()

    def _planned(self, plan: IterationPlan | None) -> None:
        self.injecting.planned(plan)

    def _received(self, sender: PeerId, message: ControlMessage) -> None:
        super()._received(sender, message)
        if isinstance(message, Complete) and self.begun and self.injecting.pending:
            self.injecting.inject()  # a first stage peer has room for what waits for it

    def _begin_when_ready(self) -> None:
        """Begin to take part: everybody who should be here is and has been greeted, and every stage has a peer."""
        view = self.ctx.view
        progress, is_active = self.participant.progress, self.participant.role.active
        if progress.begins_nothing or view is None or not is_active or not self.membership.serves:
            return
        if (self.participant.version > 0 or _may_begin_the_run(self, view)) and not self._empty:
            self.begun = True
            self._begin_iteration()

    def _begin_iteration(self) -> None:
        version, progress = self.participant.version, self.participant.progress
        if progress.begins_nothing:
            if progress.is_paused:
                self.ctx.report("run_paused", iteration=version, skipped=progress.skipped, peers=list(progress.skipped_for))
            _take_no_part(self)
            return
        self.participant.role.take_part(True)
        self.ctx.report("iteration_begins", iteration=version)
        self.injecting.fill(self.config.microbatches)
        self.coordinator.reports.begin()
        self.finishing.clear()
        for peer in self.coordinator.roster.data_peers():
            self.ctx.liveness.watch(peer, self.ctx.out)
        self.coordinator.inquiring.begin()
        self.injecting.inject()
        if self.ctx.life.ahead:
            self.finishing.report()  # all of it may be done

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

    def next_work(self) -> tuple[ev.Work, Held] | None:
        ctx, share, version = self.ctx, self.participant.share, self.participant.version
        for queued, computing, work in NEXT_WORK:
            is_fixed = share.stepping or (share.gradient_is_fixed and work is not ev.Work.EMBED)
            held = ctx.holdings.first_queued(queued, version if is_fixed else -1)
            if held is not None:
                ctx.move(held, computing)
                return work, held
        return None

    def computed(self, held: Held, event: ev.Computed) -> None:
        ctx = self.ctx
        if event.work is ev.Work.EMBED:
            ctx.move(held, Phase.TRAVELLING)
            self.send_activation.begin(held)
        elif event.work is ev.Work.LOSS:
            ctx.move(held, Phase.RETURNING)
            self.return_gradient.begin(held)
        else:
            self.participant.share.count(held.id, self.participant.version)
            ctx.move(held, Phase.DONE)
            ctx.report("microbatch_done", microbatch=held.name, loss=held.loss, route=list(held.done_by))
            self.finishing.report()

    # ---- time, other peers, iterations

    def _timer(self, what: ev.OwnTimer) -> None:
        match what:
            case ev.Timer.INJECT:
                self.injecting.inject()
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
        if self.begun and self.injecting.pending:
            self.injecting.inject()

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
        self.injecting.clear()
        self.finishing.clear()
        self.coordinator.new_iteration()
        serves = self.membership.admitted and self.membership.serves
        if self.begun and serves:
            self._begin_iteration()
        else:
            _take_no_part(self)

    def _drop_everything(self) -> None:
        """The microbatches of this data peer are withdrawn: the others close without it."""
        if self.ctx.held:
            self.ctx.report("withdrawn", iteration=self.participant.version, microbatches=len(self.ctx.held))
        super()._drop_everything()
        _take_no_part(self)
        self.finishing.clear()
        self.ctx.cancel_timer(ev.Timer.INJECT, "")
        self.coordinator.reset()

    def _drain(self) -> None:
        """Finish what is under way, and the iteration with it."""
        self.injecting.stop()
        _withdraw(self, self.participant.version)
        self.finishing.report()

    def _nothing_left(self) -> bool:
        return super()._nothing_left() and not self.ctx.held


def _may_begin_the_run(machine: DataPeer, view: NetworkView) -> bool:
    """As many are here as the run wants, and everybody who may take part has been greeted."""
    now = machine.ctx.now
    if not _is_quorum(view, machine.ctx.stages, machine.ctx.me, machine.config):
        machine.complete_since = None
        return False
    if machine.complete_since is None:
        machine.complete_since = now
    return not machine.gate.probation.greets or now - machine.complete_since >= GREETS_FIRST_S


def _take_no_part(machine: DataPeer) -> None:
    """In this iteration, nor in what has been done of it ahead of its time."""
    machine.begun = False
    machine.participant.role.take_part(False)
    machine.injecting.stop()
    _withdraw(machine, -1)


def _withdraw(machine: DataPeer, after: int) -> None:
    """This data peer has no part in iterations after this one."""
    machine.injecting.withdraw(after)
    machine.finishing.withdraw(after)


def _is_quorum(view: NetworkView, stages: int, me: PeerId, config: DataPeerConfig) -> bool:
    """Are as many online as the run wants for its beginning?"""
    staffed = all(len(view.peers_of_stage(Stage(k))) >= config.peers_per_stage for k in range(1, stages + 1))
    # This peer too: routers give no flows to a data peer whose record does not say ONLINE yet.
    return staffed and me in view.data_peers and len(view.data_peers) >= config.data_peers
