"""The door of a peer: what comes from others is let in to its handler, or refused, and counted against its sender."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.bars import UNTIL_ALLOWED_S
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.trust.acquaintance import Acquaintances
from gwtf_p2p.protocol.trust.authorisation import Authorisation, Refusal
from gwtf_p2p.protocol.trust.entry import Entry
from gwtf_p2p.protocol.trust.message_quotas import MessageQuotas
from gwtf_p2p.protocol.trust.probation import Probation
from gwtf_p2p.protocol.trust.refusals import Refusals
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.messages import Check, Message, TensorMessage, Verdict
from gwtf_p2p.protocol.wire.signed import Order

BARRED = Refusal("barred", breach=False, is_final=True)


class Gate:
    """Of one peer. `on_barred` hears of a peer that is not listened to any more; `led` are the participants of the attempt that
    this peer leads; `on_unheard` hears of a tensor that is offered by one that is not listened to."""

    def __init__(self, context: Context, known: Acquaintances, on_barred: Callable[[PeerId, str], None]) -> None:
        self.ctx, self.known, self.on_barred = context, known, on_barred
        self.authorisation = Authorisation(context, known)
        self.quotas, self.refusals = MessageQuotas(), Refusals()
        self.led: Callable[[], Mapping[PeerId, Stage]] = dict
        self.on_unheard: Callable[[PeerId, TensorMessage], None] = lambda sender, message: None
        self.entry, self.probation = Entry(), Probation(context)
        self.view: NetworkView | None = None

    def know(self, known: Acquaintances) -> None:
        """Who is known as what is asked there from now on."""
        self.known, self.authorisation = known, Authorisation(self.ctx, known)

    def heard(self, event: ev.Event) -> ev.Event | None:
        """The event as it is to be handled; None when it is not."""
        match event:
            case ev.Offered(sender, message):
                refusal = self._refusal(sender, message)
                if refusal is not None:
                    verdict = Verdict.REFUSED if refusal.breach or refusal.is_final else Verdict.BUSY
                    self.ctx.emit(ef.Answer(verdict, refusal.reason))
                    if refusal.is_final:
                        self.on_unheard(sender, message)
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
            case ev.CheckAnswered(peer) if not self.admits(peer):
                self.probation.failed(peer)
                return ev.CheckFailed(peer, "it is barred", silent=False)
            case ev.CheckAnswered(peer):
                self.probation.answered(peer)
            case ev.CheckFailed(peer):
                self.probation.failed(peer)
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
        """A forward for nothing but its result, which no microbatch of the iteration stands for, is computed for data peers,
        and for whoever has a record that says that it asks for nothing else."""
        view = self.ctx.view
        is_client = view is not None and peer in view.clients
        return (is_client or self.known.holds(peer, {DATA_STAGE})) and self.admits(peer)

    def admits(self, peer: PeerId) -> bool:
        """It may take part in the run, and is not barred."""
        return not self.entry.refusal(peer) and not self.ctx.bars.is_barred(peer, self.ctx.now)

    def knows(self, peer: PeerId) -> bool:
        """It holds a stage, or its record says that it asks for forwards: it may take more of this peer than a stranger."""
        view = self.ctx.view
        return self.known.is_known(peer) or (view is not None and peer in view.clients)

    def looked(self, event: ev.ViewChanged | ev.Ordered) -> NetworkView | None:
        """There are other records, or others may take part: what of the records counts now; None when nothing has changed."""
        if isinstance(event, ev.ViewChanged):
            return self._saw(event.view)
        return self._saw(self.view) if self._ordered(event.orders) and self.view is not None else None

    def news(self) -> NetworkView | None:
        """What of the records counts now, if somebody has shown since that it is there; else None."""
        return self.probation.news()

    def _saw(self, view: NetworkView) -> NetworkView | None:
        """There are new records: those of peers that may take part. Who was barred as a stranger may have been somebody."""
        ctx, self.view = self.ctx, view
        seen = self.entry.visible(view)
        self.known.saw(seen)
        for peer in ctx.bars.strangers(ctx.now):
            if peer in seen.records and ctx.bars.pardon(peer, ctx.now):
                ctx.emit(ef.Bar(peer, 0.0))
        return self.probation.saw(seen)

    def _ordered(self, orders: Iterable[Order]) -> bool:
        """The owner or an admin says who may take part; whether that is news. Who may no more loses its connections, and what
        it holds is done by others."""
        ctx, former = self.ctx, self.entry
        self.entry = former.after(orders)
        if self.entry is former:
            return False
        for peer in sorted((former.spoken_of | self.entry.spoken_of) - {ctx.me}):
            before, why = former.refusal(peer), self.entry.refusal(peer)
            if why and not before:
                ctx.report("peer_banned", peer=peer, reason=why)
                record = self.view.records.get(peer) if self.view is not None else None
                if record is not None:
                    self.known.shut_out[peer] = record.stage
                ctx.emit(ef.Bar(peer, UNTIL_ALLOWED_S))
                if self.known.is_known(peer):
                    self.on_barred(peer, why)
            elif before and not why:
                ctx.report("peer_allowed", peer=peer)
                self.known.shut_out.pop(peer, None)
                if not ctx.bars.is_convicted(peer):
                    ctx.emit(ef.Bar(peer, 0.0))
        return True

    def _refusal(self, sender: PeerId, message: Message) -> Refusal | None:
        ctx = self.ctx
        if ctx.bars.is_barred(sender, ctx.now):
            return BARRED
        if sender != ctx.me and (why := self.entry.refusal(sender)):
            return Refusal(why, breach=False, is_final=True)
        if self.probation.heard(sender) and not isinstance(message, Check):  # greetings come from all, and ask for nothing
            ctx.view = self.probation.shown_now or ctx.view  # its record says what it may send; the rest hears of it after this
        refusal = self._excess(sender, message) or self.authorisation.refusal(sender, message, self.led)
        if refusal is None or not refusal.stranger:
            ctx.liveness.heard_from(sender, ctx.now, ctx.out)
        if refusal is not None:
            self._tell(sender, message, refusal)
            if refusal.breach:
                self._strike(sender, refusal.reason, refusal.stranger)
        return refusal

    def _excess(self, sender: PeerId, message: Message) -> Refusal | None:
        """A message that is one too many of its sender's."""
        ctx = self.ctx
        if sender == ctx.me:
            return None
        is_member = self.known.is_known(sender) or self.probation.is_proven(sender)
        over = self.quotas.excess(sender, message, self.known.participant.position, ctx.now, is_member=is_member)
        return Refusal(over.reason, over.breach, stranger=not is_member) if over is not None else None

    def _tell(self, sender: PeerId, message: Message, refusal: Refusal) -> None:
        """Not of every single one: a flood is told once a minute, with its number and the newest reason, whatever reasons its
        sender gives rise to (`refusals`)."""
        kind, ctx = type(message).__name__, self.ctx
        count = self.refusals.note(("strangers" if refusal.stranger else sender, kind), kind, ctx.now)
        if count:
            fields = {"sender": sender, "kind": kind, "reason": refusal.reason, "breach": refusal.breach, "count": count}
            ctx.report("message_refused", **fields)

    def _strike(self, sender: PeerId, reason: str, stranger: bool) -> None:
        ctx = self.ctx
        seconds = ctx.bars.strike(sender, ctx.now, stranger) if sender != ctx.me else None
        if seconds is not None:
            ctx.report("peer_barred", peer=sender, seconds=seconds, reason=reason)
            ctx.emit(ef.Bar(sender, seconds))
            if self.known.is_known(sender):
                self.on_barred(sender, f"barred for {seconds:.0f} s: {reason}")
