"""What relay peers and data peers have in common: the one entry point, transfers, liveness, timers, the stage group.

`handle(event, now) -> effects`, no I/O, no clock, no tensors. The two kinds of peer differ in what a microbatch goes through
(`relay_peer`, `data_peer`); how it is handed on, handed back and averaged is the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.aggregation import Correction, Member
from gwtf_p2p.protocol.context import Context
from gwtf_p2p.protocol.handback import Handbacks
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.messages import (
    Backward,
    Check,
    Close,
    Commit,
    Complete,
    ControlMessage,
    Forward,
    Lost,
    Superseded,
    TensorMessage,
)
from gwtf_p2p.protocol.microbatch import Held, Phase
from gwtf_p2p.protocol.records import PeerState
from gwtf_p2p.protocol.repair import PUSH_PRIOR_S, Handoffs

COMPUTING = frozenset({Phase.FORWARD, Phase.BACKWARD, Phase.EMBED, Phase.LOSS, Phase.FINISH})


class PeerMachine(ABC):
    """Base of `RelayPeer` and `DataPeer`; `upper_stage` is the stage whose input gradients this peer hands back."""

    def __init__(self, context: Context, upper_stage: Stage) -> None:
        self.ctx = context
        self.member = Member(context)
        self.handoffs = Handoffs(context)
        self.handbacks = Handbacks(context, upper_stage)
        self.state = PeerState.JOINING
        self.running: tuple[ev.Work, MicrobatchId] | None = None
        self.computed_s = 0.0
        self.useful_s = 0.0
        self._corrections: list[Correction] = []

    @property
    def published_state(self) -> PeerState:
        """What the record says: a peer whose weights are old does not serve."""
        return PeerState.SYNCING if self.member.out_of_step else self.state

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """The one entry point. Raises LocalProtocolError on an illegal transition, which is our bug."""
        ctx = self.ctx
        ctx.now, ctx.out = now, []
        match event:
            case ev.Offered(sender, Forward() as forward):
                ctx.emit(self._verdict_forward(sender, forward))
            case ev.Offered(sender, Backward() as backward):
                ctx.emit(self._verdict_backward(sender, backward))
            case ev.Delivered():
                self._delivered(event.message)
            case ev.DeliveryBroken():
                self._delivery_broken(event)
            case ev.PushAnswered() | ev.PushDelivered() | ev.PushFailed():
                self._push_event(event)
            case ev.Received():
                self._received(event.sender, event.message)
            case ev.Computed():
                self._work_done(event)
            case ev.ViewChanged():
                ctx.view = event.view
                ctx.liveness.observe_view(event.view)
                ctx.router.observe_view(event.view, now)
                self._routes_may_be_open()
            case ev.Stepped():
                self._stepped(event.iteration)
            case ev.Started():
                self.member.version = event.weights_version
                self.state = PeerState.ONLINE
                ctx.emit(ev.Publish())
                self._started()
            case ev.AverageDone():
                self.member.average_done(event)
            case ev.AverageFailed():
                self.member.average_failed(event)
            case _:
                self._liveness_event(event)
        self._compute_next()
        return ctx.out

    # ---- what the two kinds of peer do in their own way

    @abstractmethod
    def _started(self) -> None: ...

    @abstractmethod
    def _verdict_forward(self, sender: PeerId, message: Forward) -> ev.Answer: ...

    @abstractmethod
    def _verdict_backward(self, sender: PeerId, message: Backward) -> ev.Answer: ...

    @abstractmethod
    def _delivered(self, message: TensorMessage) -> None: ...

    @abstractmethod
    def _delivery_broken(self, event: ev.DeliveryBroken) -> None: ...

    @abstractmethod
    def _received_own(self, sender: PeerId, message: ControlMessage) -> None: ...

    @abstractmethod
    def _computed(self, held: Held, event: ev.Computed) -> None: ...

    @abstractmethod
    def _next_work(self) -> tuple[ev.Work, Held] | None: ...

    @abstractmethod
    def _peer_lost(self, peer: PeerId, reason: str) -> None: ...

    @abstractmethod
    def _timer(self, what: str) -> None: ...

    @abstractmethod
    def _stepped(self, iteration: int) -> None: ...

    @abstractmethod
    def _routes_may_be_open(self) -> None: ...

    # ---- transfers and messages

    def _push_event(self, event: ev.PushAnswered | ev.PushDelivered | ev.PushFailed) -> None:
        for held in self.ctx.in_order():
            if event.token not in (held.push_token, held.return_token):
                continue
            side: Handoffs | Handbacks = self.handoffs if event.token == held.push_token else self.handbacks
            match event:
                case ev.PushAnswered():
                    side.answered(held, event)
                case ev.PushDelivered():
                    side.delivered(held, event)
                case ev.PushFailed():
                    side.failed(held, event.token, event.reason)
            return

    def _received(self, sender: PeerId, message: ControlMessage) -> None:
        ctx = self.ctx
        match message:
            case Complete():
                held = ctx.held.get(message.microbatch)
                if held is not None:
                    self.handoffs.complete(held, sender, message)
            case Superseded(microbatch):
                self._superseded(microbatch)
            case Check(microbatches):
                mine = {m for m in microbatches if m in ctx.held and ctx.held[m].predecessor == sender}
                ctx.emit(ev.AnswerCheck(tuple(m for m in microbatches if m not in mine)))
            case Close():
                self._close(sender, message)
            case Commit():
                self.member.commit(message)
            case Lost(peer, reason):
                self._told_lost(sender, peer, reason)
            case _:
                self._received_own(sender, message)

    def _close(self, sender: PeerId, message: Close) -> None:
        correcting = self.running is not None and self.running[0] in (ev.Work.UNCOUNT, ev.Work.RECOUNT)
        corrections = self.member.close(sender, message, self.running if correcting else None)
        if self.member.closing is message:
            self._corrections = corrections

    def _told_lost(self, sender: PeerId, peer: PeerId, reason: str) -> None:
        """A data peer's word counts (it leads, and it has asked); a relay's word makes a data peer ask."""
        ctx = self.ctx
        if peer == ctx.me or peer in ctx.liveness.lost:
            return
        if ctx.view is not None and sender in ctx.view.data_peers:
            ctx.liveness.declare_lost(peer, ctx.out)
            self._on_lost(peer, reason)
        else:
            ctx.suspect(peer, f"{sender} says lost: {reason}")

    def _superseded(self, microbatch: MicrobatchId) -> None:
        """Somebody took this peer's place; what is counted stays counted until the iteration closes."""
        held = self.ctx.held.get(microbatch)
        if held is None or held.phase is Phase.DONE or microbatch.data_peer == self.ctx.me:
            return
        if held.phase in COMPUTING:
            held.unwanted = True
        else:
            self.ctx.discard(held)

    # ---- computing

    def _compute_next(self) -> None:
        if self.running is not None:
            return
        if self._corrections:
            self._start(*self._corrections.pop(0))
            return
        work = self._next_work()
        if work is not None:
            self._start(work[0], work[1].id)

    def _start(self, work: ev.Work, microbatch: MicrobatchId) -> None:
        self.running = (work, microbatch)
        self.ctx.emit(ev.Compute(work, microbatch))

    def _work_done(self, event: ev.Computed) -> None:
        ctx = self.ctx
        self.running = None
        self.computed_s += event.seconds
        ctx.timings.observe((event.work.value,), event.seconds)
        if event.work in (ev.Work.UNCOUNT, ev.Work.RECOUNT):
            self.member.corrected(event.work, event.microbatch)
            return
        held = ctx.held.get(event.microbatch)
        if held is None:
            ctx.emit(ev.Discard(event.microbatch))
            return
        held.computed_s += event.seconds
        if held.unwanted and event.work is ev.Work.FORWARD:
            ctx.discard(held)
            return
        self._computed(held, event)

    # ---- liveness and time

    def _liveness_event(self, event: ev.Event) -> None:
        ctx = self.ctx
        match event:
            case ev.TimerFired(name) if ctx.timer_fired(name):
                self._timer_fired(name)
            case ev.WatchBroken(peer, reason):
                ctx.liveness.watch_broke(peer)
                ctx.suspect(peer, f"connection broke: {reason}")
            case ev.SendFailed(to, message, reason) if not isinstance(message, Superseded):
                ctx.suspect(to, f"message failed: {reason}")
            case ev.CheckAnswered():
                ctx.liveness.answered(event)
                self.handoffs.peer_answered(event.peer, frozenset(event.unknown))
                self._routes_may_be_open()
            case ev.CheckFailed():
                why = ctx.liveness.failed(event, ctx.now, ctx.out)
                if why:
                    for data_peer in sorted({m.data_peer for m in ctx.held} - {ctx.me, event.peer}):
                        ctx.emit(ev.Send(data_peer, Lost(event.peer, why)))
                    self._on_lost(event.peer, why)
            case _:
                pass

    def _on_lost(self, peer: PeerId, reason: str) -> None:
        self.ctx.report("peer_lost", peer=peer, reason=reason)
        self._peer_lost(peer, reason)
        self.handbacks.peer_lost(peer)
        self.handoffs.peer_lost(peer, reason)

    def _timer_fired(self, name: ev.TimerName) -> None:
        ctx = self.ctx
        held = next((h for m, h in ctx.held.items() if str(m) == name[1]), None)
        if held is None:
            self._timer(name[0])
        elif name[0] == "route":
            self.handoffs.retry(held)
        elif name[0] == "return":
            self.handbacks.timer(held)
        elif held.successor is not None:
            ctx.suspect(held.successor, f"{name[0]} is late")
            ctx.start_timer(name[0], held.id, ctx.timings.deadline_s((name[0],), PUSH_PRIOR_S))

    def _forget_iteration(self, iteration: int) -> float:
        """Free everything of a committed iteration; returns the compute seconds that entered the commit."""
        ctx, closing = self.ctx, self.member.closing
        credited = {m for s in closing.shares if s.member == ctx.me for m in s.microbatches} if closing else set()
        useful = sum(held.computed_s for m, held in ctx.held.items() if m in credited)
        self.useful_s += useful
        mine, total = self.member.stepped(iteration)
        for held in ctx.in_order():
            if held.id.iteration <= iteration:
                ctx.router.observe_end(held.id, ctx.now)
                ctx.discard(held)
        ctx.report("stepped", iteration=iteration, microbatches=mine, of=total, useful_s=useful, computed_s=self.computed_s)
        return useful
