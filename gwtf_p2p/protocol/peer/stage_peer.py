"""The state machine of a stage peer, which holds one stage.

What arrives is answered at once with a verdict; what is accepted is computed (backward first, since a finished backward
frees a slot), handed on (`repair.SendActivation`), handed back (`returning.ReturnGradient`) and counted, and the iteration is
closed with its stage group (`aggregation.Participant`).
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import HAS_GRADIENT, Held, Phase
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.membership.rebalancing import LOOK_S, Mover
from gwtf_p2p.protocol.membership.swarm_rebalancing import Move
from gwtf_p2p.protocol.peer.base import PeerMachine
from gwtf_p2p.protocol.view.plans import IterationPlan
from gwtf_p2p.protocol.wire.messages import (
    SUPERSEDED,
    Backward,
    CapacityAvailable,
    ControlMessage,
    Forward,
    Superseded,
    TensorMessage,
    Verdict,
)
from gwtf_p2p.protocol.wire.records import PeerState

MOST_REFUSED = 64
"""Peers that are told when there is room again. Others ask again in their own time."""


@dataclass(frozen=True, slots=True)
class StagePeerConfig:
    """`capacity` is the most microbatches held at once; 0 means no limit. `moves`: it may change its stage (`rebalancing`).

    With `queues` it refuses nothing (SWARM, and `gwtf`'s plans of iterations): inputs wait in a queue, and the capacity, which
    is memory for activations, limits how many are between the start of their forward and the end of their backward. If it also
    `recomputes`, nothing waits for that memory: a forward keeps its activations while there is room, and what was not kept is
    computed again, from the input, before its backward. At no time are more than `capacity` kept, the one that is being
    computed again included: where there is no room for it, the one that came last gives way.
    """

    capacity: int
    queues: bool = False
    recomputes: bool = False
    moves: bool = False


class StagePeer(PeerMachine):
    """One stage peer."""

    def __init__(self, context: Context, config: StagePeerConfig) -> None:
        super().__init__(context, context.stage)
        self.capacity, self.queues, self.recomputes = config.capacity, config.queues, config.recomputes
        self.mover = Mover(context.me) if config.moves else None
        self._looks = self._hurries = False
        self._said_full = -1
        self._refused: dict[PeerId, None] = {}

    @property
    def occupancy(self) -> int:
        """Microbatches that count against the capacity."""
        return self.ctx.occupancy

    # ---- changing the stage

    def _settle(self) -> None:
        membership = self.membership
        if self.mover is not None and not self._looks and membership.serves:
            self._looks = True
            self.ctx.start_timer(ev.Timer.PLACEMENT, "", LOOK_S)
        if membership.moving_to is not None and not membership.drained and not self._others_serve():
            membership.stay("nobody else is left in it")
        super()._settle()
        if self._refused and membership.serves and not self._why_full():
            self._tell_refused()

    def _look(self) -> None:
        """Is it this peer's turn to move? To a stage without anybody at once, since nothing here can be finished before."""
        self._looks = False
        view = self.ctx.view
        if self.mover is None or view is None or not self.membership.serves:
            return
        seen = view.without(self.ctx.liveness.lost)
        move = self.mover.look(seen, self.ctx.now)
        if isinstance(move, Move) and self._others_serve():
            self.membership.move(move.to_stage, move.reason)
            self._hurries = not seen.peers_of_stage(move.to_stage)

    def _others_serve(self) -> bool:
        view, ctx = self.ctx.view, self.ctx
        peers = view.peers_of_stage(ctx.stage) if view is not None else ()
        return any(peer != ctx.me and not ctx.liveness.is_lost(peer) for peer in peers)

    def _nothing_left(self) -> bool:
        return self._hurries or super()._nothing_left()

    # ---- transfers towards this peer

    def _verdict_forward(self, sender: PeerId, message: Forward) -> ef.Answer:
        ctx, participant = self.ctx, self.participant
        if message.stage != ctx.stage:
            return ef.Answer(Verdict.REFUSED, f"this peer holds stage {ctx.stage}")
        held = ctx.held.get(message.microbatch)
        if held is not None:
            return self._verdict_again(held, sender, message)
        iteration = message.microbatch.iteration
        newest = participant.version + (1 if participant.preparing is not None else 0)
        if participant.out_of_step or message.epoch != ctx.epoch or not participant.version <= iteration <= newest:
            if (message.epoch, iteration) > participant.position:
                self.membership.others.doubt()
            return ef.Answer(Verdict.STALE, f"weights version is {participant.weights}")
        full = self.state.value if self.state is not PeerState.ONLINE else self._why_full()
        if full:
            if len(self._refused) < MOST_REFUSED:
                self._refused[sender] = None
            return ef.Answer(Verdict.BUSY, full)
        new = Held(message.microbatch, message.attempt, Phase.RECEIVING, sender, ahead=message.ahead)
        new.note(f"accepted from {sender}, attempt {message.attempt}", ctx.now)
        ctx.holdings.add(new)
        ctx.liveness.watch(new.id.data_peer, ctx.out)
        ctx.liveness.watch(sender, ctx.out)
        return ef.Answer(Verdict.ACCEPTED)

    def _why_full(self) -> str:
        ctx = self.ctx
        if self.capacity and not self.queues and ctx.occupancy >= self.capacity:
            return f"{ctx.occupancy} of {self.capacity} held"
        if not ctx.memory_is_full:
            return ""
        if not ctx.occupancy and self._said_full != self.participant.version:
            # Nothing that is under way will free memory before the iteration closes.
            self._said_full = self.participant.version
            ctx.report("memory_full", iteration=self.participant.version, kept=len(ctx.held), limit=ctx.memory_limit_bytes)
        return f"memory: {len(ctx.held)} kept until the iteration closes"

    def _tell_refused(self) -> None:
        """There is room: all who were refused hear of it, the first one first. Who comes too late is refused and told again."""
        ctx = self.ctx
        limited = self.capacity and not self.queues
        slots = self.capacity - ctx.occupancy if limited else len(self._refused)
        for peer in self._refused:
            if not ctx.liveness.is_lost(peer):
                ctx.emit(ef.Send(peer, CapacityAvailable(slots)))
        self._refused.clear()

    def _verdict_again(self, held: Held, sender: PeerId, message: Forward) -> ef.Answer:
        """Offered what is held already: a repair further up, or a repeated transfer."""
        if message.attempt < held.attempt:
            self.ctx.emit(ef.Send(sender, Superseded(held.id, held.attempt)))
            return ef.Answer(Verdict.REFUSED, SUPERSEDED)
        restarted = held.offered_again(message.attempt)
        self.ctx.liveness.watch(sender, self.ctx.out)
        if held.phase is Phase.RECEIVING:
            held.handed_by(sender)
            held.go_by(message.ahead)
            self.ctx.cancel_timer(ev.Timer.ORPHAN, held.name)
            return ef.Answer(Verdict.ACCEPTED)
        self.return_gradient.new_predecessor(held, sender, message.attempt)
        if restarted:
            self.repairs.walk_again(held)
        return ef.Answer(Verdict.DUPLICATE)

    def _verdict_backward(self, sender: PeerId, message: Backward) -> ef.Answer:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or message.stage != ctx.stage:
            return ef.Answer(Verdict.REFUSED, "not held here")
        if held.phase is Phase.RECEIVING_GRADIENT:
            ctx.move(held, Phase.FORWARDED)  # the newest offer counts: the transfer before it may have gone astray
        if held.phase is Phase.FORWARDED:
            held.gradient_offered(sender)
            ctx.move(held, Phase.RECEIVING_GRADIENT)
            return ef.Answer(Verdict.ACCEPTED)
        if held.phase in HAS_GRADIENT:
            self.send_activation.returned(held, sender)
            return ef.Answer(Verdict.DUPLICATE)
        return ef.Answer(Verdict.BUSY, f"forward is not done: {held.phase.name}")

    def _delivered(self, sender: PeerId, message: TensorMessage) -> None:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None:
            ctx.emit(ef.Discard(message.microbatch))
        elif isinstance(message, Forward) and held.phase is Phase.RECEIVING:
            held.delivered(ctx.now)
            ctx.move(held, Phase.QUEUED_FORWARD)
        elif isinstance(message, Backward) and held.phase is Phase.RECEIVING_GRADIENT:
            held.gradient_is_here(message.done_by)
            self.send_activation.returned(held, sender)
            ctx.move(held, Phase.QUEUED_BACKWARD)

    def _delivery_broken(self, event: ev.DeliveryBroken) -> None:
        ctx, message = self.ctx, event.message
        held = ctx.held.get(message.microbatch)
        if held is None:
            return
        if isinstance(message, Forward):
            if held.phase is Phase.RECEIVING and message.attempt == held.attempt:
                ctx.discard(held)
        elif held.phase is Phase.RECEIVING_GRADIENT and event.sender == held.gradient_from:
            ctx.move(held, Phase.FORWARDED)
            ctx.suspect(event.sender, f"gradient broke off: {event.reason}")

    def _received_own(self, sender: PeerId, message: ControlMessage) -> None:
        self.ctx.report("unexpected_message", sender=sender, kind=type(message).__name__)

    # ---- computing

    def _next_work(self) -> tuple[ev.Work, Held] | None:
        """Backward before forward, older before newer; a forward waits for the weights of its iteration."""
        ctx, participant = self.ctx, self.participant
        if participant.out_of_step:
            return None
        if not participant.share.gradient_is_fixed:
            held = ctx.holdings.first_queued(Phase.QUEUED_BACKWARD)
            if held is not None and held.id.iteration == participant.version:
                if not held.keeps and self.capacity and ctx.holdings.activations >= self.capacity:
                    self._make_room()
                ctx.move(held, Phase.BACKWARD)
                return ev.Work.BACKWARD, held
        is_full = bool(self.capacity) and ctx.holdings.activations >= self.capacity
        if self.queues and is_full and not self.recomputes:
            return None
        held = ctx.holdings.first_queued(Phase.QUEUED_FORWARD)
        if held is not None and held.id.iteration == participant.version and not participant.share.stepping:
            held.keep_if(not (self.recomputes and is_full))
            ctx.move(held, Phase.FORWARD)
            return ev.Work.FORWARD, held
        return None

    def _make_room(self) -> None:
        """For one forward that is to be computed again."""
        last = self.ctx.holdings.last_kept()
        if last is not None:
            self.ctx.drop_activations(last)

    def _computed(self, held: Held, event: ev.Computed) -> None:
        ctx = self.ctx
        if event.work is ev.Work.FORWARD:
            held.forwarded(ctx.now)
            ctx.move(held, Phase.FORWARDED)
            self.send_activation.begin(held)
        else:
            self.participant.share.count(held.id)
            ctx.move(held, Phase.DONE)
            self.negotiating.passed(held.id)
            self.return_gradient.begin(held)
            self.routes_may_be_open()

    # ---- time, other peers, iterations

    def _timer(self, what: ev.OwnTimer) -> None:
        if what is ev.Timer.PLACEMENT:
            self._look()

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """Drop what can never be finished: unfinished work of a lost data peer, and half-received tensors."""
        for held in self.ctx.in_order():
            orphaned = held.id.data_peer == peer and held.phase is not Phase.DONE
            if orphaned or (held.predecessor == peer and held.phase is Phase.RECEIVING):
                held.note(f"dropped: {peer} is lost", self.ctx.now)
                self.transfers.drop(held)

    def peer_cleared(self, peer: PeerId, returned: bool) -> None:
        pass

    def routes_may_be_open(self) -> None:
        self.send_activation.retry_all()

    def _iteration_changed(self) -> None:
        pass

    def _drain(self) -> None:
        pass

    def _planned(self, plan: IterationPlan | None) -> None:
        """Only data peers plan."""
