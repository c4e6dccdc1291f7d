"""The state machine of a relay peer, which holds one stage.

What arrives is answered at once with a verdict; what is accepted is computed (backward first, since a finished backward
frees a slot), handed on (`repair.Handoffs`), handed back (`handback.Handbacks`) and counted, and the iteration is closed
with its stage group (`aggregation.Member`).
"""

from __future__ import annotations

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.context import Context
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.messages import Backward, ControlMessage, Forward, TensorMessage, Verdict
from gwtf_p2p.protocol.microbatch import HOLDS_CAPACITY, PHASES, Held, Phase
from gwtf_p2p.protocol.peer_machine import COMPUTING, PeerMachine
from gwtf_p2p.protocol.records import PeerState

KEEPS_ACTIVATIONS = frozenset(
    {Phase.FORWARD, Phase.FORWARDED, Phase.RECEIVING_GRADIENT, Phase.QUEUED_BACKWARD, Phase.BACKWARD}
)
HAS_GRADIENT = frozenset({Phase.RECEIVING_GRADIENT, Phase.QUEUED_BACKWARD, Phase.BACKWARD, Phase.DONE})


class RelayPeer(PeerMachine):
    """One relay peer. `capacity` is the most microbatches held at once; 0 means no limit.

    With `queues` it refuses nothing (SWARM): inputs wait in an unbounded queue, and the capacity, which is memory for
    activations, limits how many are between the start of their forward and the end of their backward.
    """

    def __init__(self, context: Context, capacity: int, *, queues: bool = False) -> None:
        super().__init__(context, context.stage)
        self.capacity, self.queues = capacity, queues
        self._arrivals = 0

    @property
    def occupancy(self) -> int:
        """Microbatches that count against the capacity."""
        return sum(1 for held in self.ctx.held.values() if held.phase in HOLDS_CAPACITY)

    def _started(self) -> None:
        pass

    # ---- transfers towards this peer

    def _verdict_forward(self, sender: PeerId, message: Forward) -> ev.Answer:
        ctx, version = self.ctx, self.member.version
        if message.stage != ctx.stage:
            return ev.Answer(Verdict.REFUSED, f"this peer holds stage {ctx.stage}")
        held = ctx.held.get(message.microbatch)
        if held is not None:
            return self._verdict_again(held, sender, message)
        iteration = message.microbatch.iteration
        newest = version + (1 if self.member.closing is not None else 0)
        if self.member.out_of_step or not version <= iteration <= newest:
            return ev.Answer(Verdict.STALE, f"weights version is {version}")
        if self.state is not PeerState.ONLINE:
            return ev.Answer(Verdict.BUSY, self.state.value)
        if self.capacity and not self.queues and self.occupancy >= self.capacity:
            return ev.Answer(Verdict.BUSY, f"{self.occupancy} of {self.capacity} held")
        self._arrivals += 1
        new = Held(message.microbatch, message.attempt, Phase.RECEIVING, sender, message.ahead, order=self._arrivals)
        new.note(f"accepted from {sender}, attempt {message.attempt}", ctx.now)
        ctx.held[new.id] = new
        ctx.liveness.watch(new.id.data_peer, ctx.out)
        return ev.Answer(Verdict.ACCEPTED)

    def _verdict_again(self, held: Held, sender: PeerId, message: Forward) -> ev.Answer:
        """Offered what is held already: a repair further up, or a repeated transfer."""
        if message.attempt < held.attempt:
            return ev.Answer(Verdict.REFUSED, "superseded")
        held.unwanted = False
        if held.phase is Phase.RECEIVING:
            held.predecessor, held.attempt, held.ahead = sender, message.attempt, message.ahead
            return ev.Answer(Verdict.ACCEPTED)
        self.handbacks.new_predecessor(held, sender, message.attempt)
        return ev.Answer(Verdict.DUPLICATE)

    def _verdict_backward(self, sender: PeerId, message: Backward) -> ev.Answer:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or message.stage != ctx.stage:
            return ev.Answer(Verdict.REFUSED, "not held here")
        if held.phase is Phase.RECEIVING_GRADIENT and sender != held.successor:
            held.to_phase(Phase.FORWARDED, PHASES, ctx.now)
        if held.phase is Phase.FORWARDED:
            held.successor = sender
            held.to_phase(Phase.RECEIVING_GRADIENT, PHASES, ctx.now)
            return ev.Answer(Verdict.ACCEPTED)
        if held.phase in HAS_GRADIENT:
            self.handoffs.returned(held, sender)
            return ev.Answer(Verdict.DUPLICATE)
        return ev.Answer(Verdict.REFUSED, f"forward is not done: {held.phase.name}")

    def _delivered(self, message: TensorMessage) -> None:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None:
            ctx.emit(ev.Discard(message.microbatch))
        elif isinstance(message, Forward) and held.phase is Phase.RECEIVING:
            held.delivered_at = ctx.now
            held.to_phase(Phase.QUEUED_FORWARD, PHASES, ctx.now)
        elif isinstance(message, Backward) and held.phase is Phase.RECEIVING_GRADIENT and held.successor is not None:
            held.done_by = message.done_by
            self.handoffs.returned(held, held.successor)
            held.to_phase(Phase.QUEUED_BACKWARD, PHASES, ctx.now)

    def _delivery_broken(self, event: ev.DeliveryBroken) -> None:
        ctx = self.ctx
        held = ctx.held.get(event.message.microbatch)
        if held is None:
            return
        if held.phase is Phase.RECEIVING and event.sender == held.predecessor:
            ctx.discard(held)
        elif held.phase is Phase.RECEIVING_GRADIENT and event.sender == held.successor:
            held.to_phase(Phase.FORWARDED, PHASES, ctx.now)
            ctx.suspect(event.sender, f"gradient broke off: {event.reason}")

    def _received_own(self, sender: PeerId, message: ControlMessage) -> None:
        self.ctx.report("unexpected_message", sender=sender, kind=type(message).__name__)

    # ---- computing

    def _next_work(self) -> tuple[ev.Work, Held] | None:
        """Backward before forward, older before newer; a forward waits for the weights of its iteration."""
        by_order = sorted(self.ctx.held.values(), key=lambda held: held.order)
        for held in by_order:
            if held.phase is Phase.QUEUED_BACKWARD:
                held.to_phase(Phase.BACKWARD, PHASES, self.ctx.now)
                return ev.Work.BACKWARD, held
        if self.queues and self.capacity and sum(held.phase in KEEPS_ACTIVATIONS for held in by_order) >= self.capacity:
            return None
        for held in by_order:
            if held.phase is Phase.QUEUED_FORWARD and held.id.iteration == self.member.version:
                held.to_phase(Phase.FORWARD, PHASES, self.ctx.now)
                return ev.Work.FORWARD, held
        return None

    def _computed(self, held: Held, event: ev.Computed) -> None:
        ctx = self.ctx
        if event.work is ev.Work.FORWARD:
            held.forward_held_s = ctx.now - held.delivered_at
            held.to_phase(Phase.FORWARDED, PHASES, ctx.now)
            self.handoffs.begin(held)
        else:
            self.member.counted.add(held.id)
            held.to_phase(Phase.DONE, PHASES, ctx.now)
            self.handbacks.begin(held)
            self._routes_may_be_open()

    # ---- time, other peers, iterations

    def _timer(self, what: str) -> None:
        pass

    def _peer_lost(self, peer: PeerId, reason: str) -> None:
        """Drop what can never be finished: unfinished work of a lost data peer, and half-received tensors."""
        ctx = self.ctx
        for held in ctx.in_order():
            orphaned = held.id.data_peer == peer and held.phase is not Phase.DONE
            if orphaned and held.phase in COMPUTING:
                held.unwanted = True
            elif orphaned or (held.predecessor == peer and held.phase is Phase.RECEIVING):
                held.note(f"dropped: {peer} is lost", ctx.now)
                ctx.discard(held)

    def _routes_may_be_open(self) -> None:
        for held in self.ctx.in_order():
            self.handoffs.retry(held)

    def _stepped(self, iteration: int) -> None:
        self._forget_iteration(iteration)
