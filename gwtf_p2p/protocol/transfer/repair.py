"""When the next peer is lost, forgets, or is superseded: somebody else continues, and nothing is computed twice without need.

One rule covers every crash of a stage peer: *whoever handed a microbatch to a lost peer hands it to another
one*, in a higher attempt, and says which peer comes after it. In steps, when Y of stage k is lost:

1. X of stage k-1 holds its own output. It asks its router for another peer of stage k and pushes the output to Y'.
2. Y' computes the forward of stage k only, and hands its output on to Z, the peer that followed Y (Y told X when it handed
   on; otherwise the planned one).
3. Z already holds the microbatch: it answers DUPLICATE, keeps nothing new, and takes Y' as its predecessor.
4. If Z has computed its backward already, it pushes its stored input gradient to Y'. If not, it will when it has.
5. Y' computes the backward of stage k and pushes to X, which goes on, or, when X has had its gradient before, answers
   DUPLICATE; then Y' tells the data peer whom to credit.

So a forward crash, a backward crash and (with exact recovery) a crash between backward and average are the same repair,
and exactly one stage is computed again.
"""

from __future__ import annotations

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held, Phase, Sending
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.transfer.send_activation import RETRY_S, WAITING, SendActivation
from gwtf_p2p.protocol.transfer.waits import WAIT_PRIOR_S
from gwtf_p2p.protocol.wire.messages import Done, Missing, Redo, Superseded

MOST_INSIST_DOUBLINGS = 4


class Repairs:
    """Of the downstream side of every microbatch that a peer holds."""

    def __init__(self, context: Context, send_activation: SendActivation) -> None:
        self.ctx, self.send_activation = context, send_activation

    def failed(self, held: Held, token: int, reason: str) -> None:
        """The transport could not push: suspect the peer and go another way at once."""
        ctx, next_peer = self.ctx, held.successor
        if next_peer is None or token != held.push_token or held.sending is not Sending.PUSHING:
            return
        ctx.end_push(token)
        ctx.suspect(next_peer, f"push failed: {reason}", broken=True)
        if not self.send_activation.is_last:
            self._repair(held, next_peer, reason)
            return
        ctx.cancel_timer(Timer.PUSH, held.name)
        self.send_activation.unrouted.look(held)
        ctx.start_timer(Timer.ROUTE, held.name, RETRY_S)

    # ---- lost peers, and peers that forgot

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """Hand everything that the lost peer had of mine to other peers."""
        if self.send_activation.is_last:
            return
        for held in self.ctx.in_order():
            wanted = held.sending in WAITING or (held.sending is Sending.RETURNED and self.ctx.exact)
            if held.successor == peer and wanted:
                self._repair(held, peer, reason)

    def peer_left(self, peer: PeerId) -> None:
        """It has nothing: what is on its way there, in ignorance, goes elsewhere, as after a refusal."""
        for held in self.ctx.in_order():
            if held.successor == peer and held.sending is Sending.PUSHING and not self.send_activation.is_last:
                held.tried_in_vain(peer)
                self.send_activation.again(held, None)
        self.peer_lost(peer, "it has left")

    def peer_answered(self, peer: PeerId, unknown: frozenset[MicrobatchId], seconds: float) -> None:
        """A suspected peer lives: wait on, except for what it does not hold."""
        ctx = self.ctx
        forgotten: dict[PeerId, list[MicrobatchId]] = {}
        for held in ctx.in_order() if unknown else ():
            if held.successor != peer or held.id not in unknown:
                continue
            if held.sending in WAITING and _is_forgotten(held, ctx.now - seconds):
                held.note(f"{peer} does not hold it", ctx.now)
                held.missed(ctx.now)
                self.send_activation.again(held, peer)
            elif held.sending is Sending.RETURNED and ctx.exact and not self.send_activation.is_last:
                forgotten.setdefault(held.id.data_peer, []).append(held.id)
        for data_peer, microbatches in sorted(forgotten.items()):
            ctx.emit(Send(data_peer, Missing(peer, self.send_activation.target, tuple(microbatches))))

    def refuse(self, held: Held, peer: PeerId, reason: str) -> None:
        """What this peer sends of it is not taken: another one does it, if this one has it from here. It is not lost."""
        if held.successor == peer and held.sending in WAITING and not self.send_activation.is_last:
            self._repair(held, peer, reason)

    # ---- what the data peer asks for

    def asked_to_redo(self, message: Redo) -> None:
        """A data peer misses a stage of its microbatch: this peer's, or the next one, to which it handed it."""
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        owner = message.microbatch.data_peer
        if held is None:
            if ctx.stage > 0:
                ctx.emit(Send(owner, Missing(ctx.me, ctx.stage, (message.microbatch,))))
        elif message.stage == ctx.stage:
            if held.phase is Phase.DONE:
                ctx.emit(Send(owner, Done(held.id, ctx.stage)))
        elif message.stage == ctx.stage + 1:
            raised = message.generation > held.attempt[0]
            held.reach(message.generation)
            who = self.redo(held, message)
            if who is not None:
                ctx.emit(Send(who, message))
            elif raised and held.sending in WAITING:
                self.walk_again(held)
            elif message.refused and held.phase is not Phase.DONE:
                self.refuse(held, message.lost, "what it hands on is not taken")

    def redo(self, held: Held, message: Redo) -> PeerId | None:
        """Hand it to another peer, unless that is under way. Returns who has done it, if somebody else than the lost one."""
        has_it = held.successor
        if held.sending is Sending.RETURNED:
            if has_it not in (None, message.lost) and has_it not in self.ctx.liveness.lost:
                return has_it
            self._repair(held, has_it or message.lost, "redo", message.ahead)
        return None

    def walk_again(self, held: Held) -> None:
        """The data peer has started again: show it the way to its microbatch, with what is computed already."""
        if held.sending not in (Sending.IDLE, Sending.ROUTING):
            held.walk()
            self.send_activation.again(held, held.successor)  # without one (a redo that was stopped): to anybody

    def insist(self, held: Held) -> None:
        """The way back knows this data peer's microbatch as done, the way down does not: walk it again."""
        ctx = self.ctx
        if held.sending is not Sending.AWAITING:
            return
        patience_s = ctx.timings.deadline_s(("backward",), WAIT_PRIOR_S) * 2 ** min(held.insisted, MOST_INSIST_DOUBLINGS)
        if held.refused_since is None:
            held.refused(ctx.now)
        elif ctx.now - held.refused_since > patience_s:
            held.insist(ctx.now)
            held.begin_again(held.attempt[0] + 1)
            self.walk_again(held)

    def superseded(self, sender: PeerId, message: Superseded) -> bool:
        """A higher attempt is under way; True when this peer may forget the microbatch.

        Told by the next peer, it may concern the peers before as well, down to where the attempts part. What is counted
        stays counted until the iteration closes.
        """
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or held.id.data_peer == ctx.me:
            return False
        own = len(held.attempt)
        if held.attempt == message.attempt[:own] and len(message.attempt) > own:
            held.has_handed(message.attempt[own])  # my own, of a time that I have forgotten
        if held.attempt >= message.attempt[:own]:
            return False
        held.note(f"superseded by {message.attempt}", ctx.now)
        if sender != held.predecessor and held.predecessor != held.id.data_peer:
            ctx.emit(Send(held.predecessor, message))
        if held.phase is Phase.DONE:
            self.send_activation.stop(held)
        return held.phase is not Phase.DONE

    def hand_over(self, held: Held, former: PeerId, to: PeerId) -> None:
        """To another peer than the one that has it, which lives and is told to forget it."""
        held.give_up(former, held.ahead[1:])
        held.may_try(former)
        self.ctx.emit(Send(former, Superseded(held.id, (*held.attempt, held.handed))))
        self.send_activation.again(held, to)

    def _repair(self, held: Held, peer: PeerId, reason: str, ahead: tuple[PeerId, ...] = ()) -> None:
        ctx = self.ctx
        done = held.sending is Sending.RETURNED or held.phase is Phase.DONE
        kind = "aggregation" if done else "backward" if held.beyond else "forward"
        held.missed(ctx.liveness.silent_since(peer, ctx.now))
        path = ahead or (held.done_by[1:] if done else (held.beyond, *held.ahead[2:]) if held.beyond else held.ahead[1:])
        held.give_up(peer, path)
        if peer:
            ctx.emit(Send(peer, Superseded(held.id, (*held.attempt, held.handed))))
        ctx.recoveries[kind] += 1
        ctx.report("recovery", kind=kind, microbatch=held.name, lost=peer, reason=reason)
        self.send_activation.again(held, None)


def _is_forgotten(held: Held, asked_at: float) -> bool:
    """The next peer, asked then, says that it does not hold this. Had it taken it before? An offer that it has not answered yet
    may have been overtaken by the question: only when it is late for the second time has it gone astray."""
    return held.asked > 1 if held.taken_at is None else held.taken_at <= asked_at
