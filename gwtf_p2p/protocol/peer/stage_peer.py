"""The state machine of a stage peer, which holds one stage.

What arrives is answered at once with a verdict (`stage_arrivals`, `room`); what is accepted is computed (backward first, since
a finished backward frees a slot), handed on (`send_activation`), handed back (`return_gradient`) and counted, and the iteration
is closed with its stage group (`commit`).
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held, Phase
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.membership.rebalancing import LOOK_S, Mover
from gwtf_p2p.protocol.membership.swarm_rebalancing import Move
from gwtf_p2p.protocol.peer.base import PeerMachine
from gwtf_p2p.protocol.peer.room import Room
from gwtf_p2p.protocol.peer.stage_arrivals import StageArrivals
from gwtf_p2p.protocol.view.plans import IterationPlan
from gwtf_p2p.protocol.wire.messages import (
    ControlMessage,
)
from gwtf_p2p.protocol.wire.records import PeerState


@dataclass(frozen=True, slots=True)
class StagePeerConfig:
    """`capacity` is the most microbatches held at once; 0 means no limit. `moves`: it may change its stage (`rebalancing`).

    With `queues` it refuses nothing (SWARM, and `gwtf`'s plans of iterations): inputs wait in a queue, and the capacity, which
    is memory for activations, limits how many are between the start of their forward and the end of their backward. If it also
    `recomputes`, nothing waits for that memory: a forward keeps its activations while there is room, and what was not kept is
    computed again, from the input, before its backward. At no time are more than `capacity` kept, the one that is being
    computed again included: where there is no room for it, the one that came last gives way. `fits`: the stages that it has
    memory for; empty for all.
    """

    capacity: int
    queues: bool = False
    recomputes: bool = False
    moves: bool = False
    fits: tuple[Stage, ...] = ()


class StagePeer(PeerMachine):
    """One stage peer."""

    def __init__(self, context: Context, config: StagePeerConfig) -> None:
        super().__init__(context, context.stage)
        self.capacity, self.queues, self.recomputes = config.capacity, config.queues, config.recomputes
        self.room = Room(context, self.participant, config.capacity, config.queues)
        self.arrivals = arrivals = StageArrivals(self.membership, self.transfers, self.room)
        self.gate.on_unheard = arrivals.unheard
        self.mover = Mover(context.me) if config.moves else None
        self.moves_to = config.fits if config.moves else (context.stage,)
        self._looks = self._hurries = False

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
        if self.room.has_refused and membership.serves and not self.room.why_full():
            self.room.tell_refused()

    def _look(self) -> None:
        """Is it this peer's turn to move? To a stage without anybody at once, since nothing here can be finished before."""
        self._looks = False
        view = self.ctx.view
        if self.mover is None or view is None or not self.membership.serves:
            return
        seen = view.without((self.ctx.liveness.lost | view.said_lost) - {self.ctx.me})
        move = self.mover.look(seen, self.ctx.now)
        if isinstance(move, Move) and self._others_serve():
            self.membership.move(move.to_stage, move.reason)
            self._hurries = not seen.peers_of_stage(move.to_stage)

    def _others_serve(self) -> bool:
        """And have the whole state of this stage."""
        view, ctx = self.ctx.view, self.ctx
        peers = view.peers_of_stage(ctx.stage) if view is not None else ()
        records = view.records if view is not None else {}
        return any(p != ctx.me and not ctx.liveness.is_lost(p) and not records[p].lacks_moments for p in peers)

    def _nothing_left(self) -> bool:
        return self._hurries or super()._nothing_left()

    def _received_own(self, sender: PeerId, message: ControlMessage) -> None:
        self.ctx.report("unexpected_message", sender=sender, kind=type(message).__name__)

    # ---- computing

    def next_work(self) -> tuple[ev.Work, Held] | None:
        """Backward before forward, older before newer; a forward waits for the weights of its iteration."""
        ctx, participant = self.ctx, self.participant
        version, share = participant.version, participant.share
        if participant.out_of_step:
            return None
        held = ctx.holdings.first_queued(Phase.QUEUED_BACKWARD, version if share.gradient_is_fixed else -1)
        if held is not None and ctx.life.is_open(held.id.iteration, version):
            if not held.keeps and self.room.keeps_most:
                self.room.give_way()
            ctx.move(held, Phase.BACKWARD)
            return ev.Work.BACKWARD, held
        is_full = self.room.keeps_most
        if self.queues and is_full and not self.recomputes:
            return None
        held = ctx.holdings.first_queued(Phase.QUEUED_FORWARD, version if share.stepping else -1)
        if held is not None and ctx.life.is_open(held.id.iteration, version):
            held.keep_if(not (self.recomputes and is_full))
            ctx.move(held, Phase.FORWARD)
            return ev.Work.FORWARD, held
        return None

    def computed(self, held: Held, event: ev.Computed) -> None:
        ctx = self.ctx
        if event.work is ev.Work.FORWARD:
            held.forwarded(ctx.now)
            ctx.move(held, Phase.FORWARDED)
            self.send_activation.begin(held)
        else:
            self.participant.share.count(held.id, self.participant.version)
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
        """One that leaves stays for the iteration that is being closed; what it has computed ahead is done by others again."""
        if self.membership.state is PeerState.DRAINING and self.ctx.life.ahead:
            self._drop_everything()
            self.participant.share.forget()

    def _drain(self) -> None:
        pass

    def _planned(self, plan: IterationPlan | None) -> None:
        """Only data peers plan."""
