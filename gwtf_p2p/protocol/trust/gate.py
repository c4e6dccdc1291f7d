"""The door of a peer: what comes from others is let in to its handler, or refused, and counted against its sender."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.trust.acquaintance import Acquaintances
from gwtf_p2p.protocol.trust.authorisation import Authorisation, Refusal
from gwtf_p2p.protocol.wire.messages import Check, Message, Verdict

BARRED = Refusal("barred", breach=False)


class Gate:
    """Of one peer. `on_barred` hears of a peer that is not listened to any more; `led` are the participants of the attempt that
    this peer leads."""

    def __init__(self, context: Context, known: Acquaintances, on_barred: Callable[[PeerId, str], None]) -> None:
        self.ctx, self.known, self.on_barred = context, known, on_barred
        self.authorisation = Authorisation(context, known)
        self.led: Callable[[], Mapping[PeerId, Stage]] = dict

    def know(self, known: Acquaintances) -> None:
        """Who is known as what is asked there from now on."""
        self.known, self.authorisation = known, Authorisation(self.ctx, known)

    def heard(self, event: ev.Event) -> ev.Event | None:
        """The event as it is to be handled; None when it is not."""
        match event:
            case ev.Offered(sender, message):
                refusal = self._refusal(sender, message)
                if refusal is not None:
                    verdict = Verdict.REFUSED if refusal.breach or refusal is BARRED else Verdict.BUSY
                    self.ctx.emit(ef.Answer(verdict, refusal.reason))
                    return None
            case ev.Received(sender, message):
                if self._refusal(sender, message) is not None:
                    if isinstance(message, Check):
                        self.ctx.emit(ef.AnswerCheck(message.microbatches))
                    return None
            case ev.Misbehaved(sender, reason):
                self.ctx.report("message_failed", sender=sender, reason=reason)
                self._strike(sender, reason, stranger=False)
                return None
            case ev.CheckAnswered(peer) if self.ctx.bars.is_barred(peer, self.ctx.now):
                return ev.CheckFailed(peer, "it is barred", silent=False)
            case _:
                pass
        return event

    def sender_of(self, event: ev.Event) -> PeerId | None:
        """Whose message or answer an event is; None for what comes from this peer itself: its timers, effects and device."""
        match event:
            case (
                ev.Offered(sender=peer) | ev.Delivered(sender=peer) | ev.DeliveryBroken(sender=peer) | ev.Received(sender=peer)
            ):
                pass
            case ev.CheckAnswered(peer=peer) | ev.CheckFailed(peer=peer) | ev.WatchBroken(peer=peer) | ev.SendFailed(to=peer):
                pass
            case ev.PushAnswered(token=token) | ev.PushDelivered(token=token) | ev.PushFailed(token=token):
                microbatch, back = self.ctx.pushes.get(token, (None, False))
                held = self.ctx.held.get(microbatch) if microbatch is not None else None
                if held is None:
                    return None
                found = held.predecessor if back else held.successor
                return found if found != self.ctx.me else None
            case _:
                return None
        return peer if peer != self.ctx.me else None

    def may_ask_forward_only(self, peer: PeerId) -> bool:
        """A forward for nothing but its result, which no microbatch of the iteration stands for, is computed for data peers."""
        return self.known.holds(peer, {DATA_STAGE}) and not self.ctx.bars.is_barred(peer, self.ctx.now)

    def view_changed(self) -> None:
        """There are new records: who was barred because nobody knew it may have been somebody."""
        ctx = self.ctx
        for peer in ctx.bars.strangers(ctx.now):
            if self.known.has_record(peer) and ctx.bars.pardon(peer, ctx.now):
                ctx.emit(ef.Bar(peer, 0.0))

    def _refusal(self, sender: PeerId, message: Message) -> Refusal | None:
        ctx = self.ctx
        if ctx.bars.is_barred(sender, ctx.now):
            return BARRED
        refusal = self.authorisation.refusal(sender, message, self.led)
        if refusal is None or not refusal.stranger:
            ctx.liveness.heard_from(sender, ctx.now, ctx.out)
        if refusal is not None:
            kind = type(message).__name__
            ctx.report("message_refused", sender=sender, kind=kind, reason=refusal.reason, breach=refusal.breach)
            if refusal.breach:
                self._strike(sender, refusal.reason, refusal.stranger)
        return refusal

    def _strike(self, sender: PeerId, reason: str, stranger: bool) -> None:
        ctx = self.ctx
        seconds = ctx.bars.strike(sender, ctx.now, stranger) if sender != ctx.me else None
        if seconds is not None:
            ctx.report("peer_barred", peer=sender, seconds=seconds, reason=reason)
            ctx.emit(ef.Bar(sender, seconds))
            if self.known.is_known(sender):
                self.on_barred(sender, f"barred for {seconds:.0f} s: {reason}")
