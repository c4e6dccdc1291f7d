"""What stage peers and data peers have in common: the one entry point, and which part hears of which event.

`handle(event, now) -> effects`, no I/O, no clock, no tensors. The two kinds of peer differ in what a microbatch goes through
(`stage_peer`, `data_peer`) and in what they take of others (`stage_arrivals`, `data_arrivals`). When something is computed
(`computing`), how it is handed on and back (`transfers`), what follows when others are lost (`neighbours`) and how it is
averaged (`commit`) is the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.audit.audits import Audits
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.membership.ending import Ending
from gwtf_p2p.protocol.membership.membership import Membership
from gwtf_p2p.protocol.membership.saving import Saving
from gwtf_p2p.protocol.peer.computing import Computing, Worker
from gwtf_p2p.protocol.peer.neighbours import Concerned, Neighbours
from gwtf_p2p.protocol.peer.router_port import Negotiating
from gwtf_p2p.protocol.peer.transfers import Transfers
from gwtf_p2p.protocol.trust.acquaintance import Acquaintances
from gwtf_p2p.protocol.trust.gate import Gate
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import IterationPlan
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.records import PeerState


class Arrivals(Protocol):
    """Transfers towards a peer of either kind: what it takes, and what that is to it once it is here."""

    def verdict_forward(self, sender: PeerId, message: msg.Forward) -> ef.Answer:
        """An activation is offered."""

    def verdict_backward(self, sender: PeerId, message: msg.Backward) -> ef.Answer:
        """A gradient is offered."""

    def delivered(self, sender: PeerId, message: msg.TensorMessage) -> None:
        """What was accepted is here."""

    def broken(self, event: ev.DeliveryBroken) -> None:
        """It will not come whole."""


class PeerMachine(Concerned, Worker, ABC):
    """Base of `StagePeer` and `DataPeer`; `upper_stage` is the stage whose input gradients this peer hands back."""

    arrivals: Arrivals

    def __init__(self, context: Context, upper_stage: Stage) -> None:
        self.ctx = context
        self.participant = Participant(context)
        self.membership = Membership(context, self.participant)
        self.saving = Saving(context, self.participant)
        self.ending = Ending(context, self.participant, self.saving)
        self.transfers = Transfers(context, upper_stage)
        self.send_activation = self.transfers.send_activation
        self.repairs = self.transfers.repairs
        self.return_gradient = self.transfers.return_gradient
        self.neighbours = Neighbours(self.membership, self.transfers, self)
        self.negotiating = Negotiating(context)
        self.audits = Audits(
            context, self.participant, lambda peer, stages: self.known.holds(peer, stages), self.neighbours.barred
        )
        self.computing = Computing(context, self.participant, self, self.audits.auditor)
        self.accounts = self.computing.accounts
        self.known = Acquaintances(context, self.participant, None)
        self.gate = Gate(context, self.known, self.neighbours.barred)
        self._position = (0, 0)
        self._is_handling = False

    def know(self, known: Acquaintances) -> None:
        """Who is known as what is asked there from now on."""
        self.known = known
        self.gate.know(known)

    @property
    def state(self) -> PeerState:
        return self.membership.state

    def measured(self, seconds: Mapping[ev.Work, float]) -> None:
        """What one microbatch takes on this device, timed before the first event, while others start as well, perhaps on the
        same machine: better than nothing, until work is timed."""
        for work, each_s in seconds.items():
            self.ctx.timings.guess(("compute", work.value), each_s)

    def handle(self, event: ev.Event, now: float) -> list[ef.Effect]:
        """The one entry point. Raises LocalProtocolError on an illegal transition, which is our bug.

        What had followed from an event that raised is not lost: it comes with the effects of the next one.
        """
        ctx = self.ctx
        ctx.now, ctx.out = now, ctx.out if self._is_handling else []
        self._is_handling = True
        heard = self.gate.heard(event)
        _see(self, self.gate.news())
        if heard is not None:
            self._hear(heard)
        self._settle()
        self._is_handling = False
        return ctx.out

    def _hear(self, event: ev.Event) -> None:
        ctx = self.ctx
        match event:
            case ev.Offered(sender, msg.Forward() as forward):
                ctx.emit(self.arrivals.verdict_forward(sender, forward))
            case ev.Offered(sender, msg.Backward() as backward):
                ctx.emit(self.arrivals.verdict_backward(sender, backward))
            case ev.Delivered():
                self.arrivals.delivered(event.sender, event.message)
            case ev.DeliveryBroken():
                self.arrivals.broken(event)
            case ev.PushAnswered() | ev.PushDelivered() | ev.PushFailed():
                self.transfers.push_event(event)
            case ev.Received():
                self._received(event.sender, event.message)
            case ev.Computed():
                self.computing.done(event)
            case ev.TimerFired(name):
                if ctx.timer_fired(name):
                    self._timer_fired(name)
            case ev.ViewChanged() | ev.Ordered():
                _see(self, self.gate.looked(event))
            case ev.CheckAnswered() | ev.CheckFailed() | ev.WatchBroken() | ev.SendFailed():
                self.neighbours.handle(event)
            case _:
                self._iteration_event(event)

    def _iteration_event(self, event: ev.Event) -> None:
        match event:
            case ev.Started():
                self.saving.started(event.weights_version)
                self.membership.started(event)
                self.ctx.emit(ef.Publish())
            case ev.AverageDone():
                here = self.participant.progress.has_state
                self.participant.share.average_done(event if here else replace(event, state=""))
            case ev.AverageFailed():
                self.participant.share.average_failed(event)
            case ev.Stepped(iteration):
                self._optimizer_stepped(iteration)
            case ev.Downloaded():
                self.saving.replaced()
                self.membership.downloaded(event)
                if self.membership.wanted.rebuild is not None and event.version == self.participant.weights:
                    self.saving.ask(event.version)  # nobody has these weights on a disk
            case ev.WeightsDownloaded():
                self.membership.weights_downloaded(event)
            case ev.DownloadFailed():
                self.membership.download_failed(event)
            case ev.Checkpointed():
                self.saving.settled(event)
            case ev.Kept(versions):
                self.participant.role.keep(versions)
            case ev.Planned(plan):
                self._planned(plan)
            case ev.Evaluated(version, loss):
                self.participant.progress.evaluating.found(msg.Evaluated(version, loss), self.participant.version)
            case ev.Signed() | ev.Digested() | ev.Gathered():
                self.audits.happened(event)
            case ev.DrainRequested():
                self.saving.leave()
                self.membership.drain()
                self._drain()
            case _:
                pass

    def _settle(self) -> None:
        """What follows from any event: drop what is of no use, go on computing, average, leave."""
        participant = self.participant
        unproven = participant.certifier.unproven
        if unproven is not None and participant.certifier.may_be_proven_now():
            participant.commit(*unproven)
        if participant.progress.has_let_go():
            self._drop_everything()
        if participant.progress.has_fallen_behind():
            self.membership.fell_behind()
        served = participant.progress.kept.take_served()
        if served is not None:
            preparing, norm = served
            self.accounts.stepped(preparing, norm < 0)
            _discard_up_to(self.ctx, preparing.iteration)
        if participant.position != self._position:
            self._position = participant.position
            self.audits.forget()
            self._iteration_changed()
        self.computing.go_on()
        if self.ctx.held:
            self.neighbours.keep_up()
        participant.share.average_when_right(self.computing.changes_gradient)
        if self.membership.state is PeerState.DRAINING:
            self.ending.leave_when(self._nothing_left(), self.membership)
        self.ending.settle(self.membership.serves)
        self.negotiating.say()

    # ---- what the two kinds of peer do in their own way

    @abstractmethod
    def _received_own(self, sender: PeerId, message: msg.ControlMessage) -> None: ...

    @abstractmethod
    def _timer(self, what: ev.OwnTimer) -> None: ...

    def others_waited_for(self) -> list[PeerId]:
        """Besides those that hold work for this peer."""
        return []

    @abstractmethod
    def _iteration_changed(self) -> None: ...

    @abstractmethod
    def _drain(self) -> None: ...

    @abstractmethod
    def _planned(self, plan: IterationPlan | None) -> None: ...

    # ---- messages

    def _received(self, sender: PeerId, message: msg.ControlMessage) -> None:
        ctx = self.ctx
        match message:
            case msg.Complete():
                self.send_activation.complete(sender, message)
            case msg.CapacityAvailable(microbatches):
                self.send_activation.room(sender, microbatches)
            case msg.Superseded():
                self.transfers.superseded(sender, message)
            case msg.Check(microbatches):
                ctx.emit(ef.AnswerCheck(tuple(m for m in microbatches if not ctx.holdings.shares(m, sender))))
            case msg.Redo():
                if ctx.life.is_open(message.microbatch.iteration, self.participant.version):
                    self.repairs.asked_to_redo(message)
                else:
                    self.membership.others.doubt()
            case msg.Prepare():
                self.participant.prepare(sender, message)
            case msg.Abort():
                self.participant.share.aborted(sender, message)
            case msg.Commit():
                self.participant.commit(sender, message)
            case msg.Inquire():
                if self.known.holds(sender, {DATA_STAGE}):
                    self.participant.promise.inquired(sender, message)
                ctx.emit(ef.Send(sender, self.participant.standing()))
            case msg.Standing():
                if message.leaving:
                    self.neighbours.says_goodbye(sender)
                self._standing(sender, message)
            case msg.Admit():
                self.membership.admit(sender, self.known.believed(message))
            case msg.Lost(peer, reason):
                self.neighbours.told_lost(sender, peer, reason)
            case _ if not (self.audits.heard(sender, message) or self.negotiating.heard(sender, message)):
                self._received_own(sender, message)

    def _standing(self, sender: PeerId, standing: msg.Standing) -> None:
        self.participant.heard(sender, standing)

    # ---- time

    def _timer_fired(self, name: ev.TimerName) -> None:
        what, of = name
        match what:
            case Timer.HEARTBEAT:
                self.neighbours.beat(self.others_waited_for())
            case Timer.SEEK:
                self.membership.still_seeks()
            case Timer.DOUBT:
                pass  # it only keeps this peer from doubting aloud too often
            case Timer.END:
                self.ending.end()
                self.membership.others.say_goodbye()
            case Timer.AUDIT:
                self.audits.late(of)
            case Timer.NEGOTIATE:
                self.negotiating.tick()
            case Timer.AVERAGING:
                if self.participant.share.averaging:
                    self.membership.others.say_it_takes_long()
                    self.participant.share.wait_for_average()
            case Timer.PUSH | Timer.ROUTE | Timer.COMPLETE | Timer.BACKWARD | Timer.RETURN | Timer.ORPHAN:
                held = self.ctx.holdings.named(of)
                if held is not None:
                    self.transfers.timer(held, what)
            case _:
                self._timer(what)

    # ---- the end of an iteration

    def _optimizer_stepped(self, iteration: int) -> None:
        preparing = self.participant.preparing
        ends = self.participant.share.stepping and preparing is not None and preparing.iteration == iteration
        if not ends:
            followed = self.participant.progress.syncing
            self.participant.stepped(iteration)
            self.saving.stepped(iteration + 1)
            if followed and not self.participant.out_of_step:
                self.membership.caught_up()
            return
        assert preparing is not None
        self.accounts.stepped(preparing, self.participant.share.applied_norm < 0)
        self.participant.stepped(iteration)
        self.saving.stepped(iteration + 1)
        _discard_up_to(self.ctx, iteration)

    def _drop_everything(self) -> None:
        """This peer is out of step: what it holds is of no use to anybody."""
        self.computing.let_go()
        self.audits.forget()
        for held in self.ctx.in_order():
            self.ctx.router.observe_end(held.id, self.ctx.now)
            self.ctx.discard(held)

    def _nothing_left(self) -> bool:
        """A draining peer may leave: its work is finished and committed, and no group waits for it."""
        share = self.participant.share
        return not (self.ctx.occupancy or share.counted or share.ahead) and share.preparing is None


def _discard_up_to(ctx: Context, iteration: int) -> None:
    """It is committed: what this peer holds of it is of no use any more."""
    for held in ctx.in_order():
        if held.id.iteration <= iteration:
            ctx.router.observe_end(held.id, ctx.now)
            ctx.discard(held)


def _see(machine: PeerMachine, view: NetworkView | None) -> None:
    """What is known of the others has changed, if it has."""
    ctx = machine.ctx
    if view is None:
        return
    ctx.view = view
    machine.audits.view_changed()
    ctx.liveness.observe_view(view, ctx.out)
    ctx.router.observe_view(view, ctx.now)
    machine.membership.view_changed()
    machine.routes_may_be_open()
    machine.transfers.rebinding.look()
