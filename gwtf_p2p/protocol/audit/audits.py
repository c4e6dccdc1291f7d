"""All of a peer's part in audits: what it hears, what its interpreter has done for it, and when the iteration changes."""

from __future__ import annotations

from collections.abc import Callable

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.audit.auditor import Auditor
from gwtf_p2p.protocol.audit.convictions import Convictions, Holds
from gwtf_p2p.protocol.audit.orders import Orders
from gwtf_p2p.protocol.audit.witness import Side, Witness
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.audit_messages import (
    AuditOrder,
    AuditResult,
    Conviction,
    Hop,
    Testify,
    Testimony,
)
from gwtf_p2p.protocol.wire.messages import ControlMessage


class Audits:
    """Of one peer; `orders` is a data peer's. `on_barred` ends what there is with a peer; `holds` says who is known as what."""

    def __init__(
        self, context: Context, participant: Participant, holds: Holds, on_barred: Callable[[PeerId, str], None]
    ) -> None:
        self.ctx, self.holds, self.on_barred = context, holds, on_barred
        self.convictions = Convictions(context, holds, on_barred)
        self.witness = Witness(context)
        self.auditor = Auditor(context, participant)
        self.orders: Orders | None = None

    def order(self, on_passed: Callable[[Stage, PeerId], None]) -> Orders:
        """A data peer's, from now on."""
        self.orders = Orders(self.ctx, self.convictions, self._leave_out, on_passed)
        return self.orders

    def _leave_out(self, peer: PeerId, reason: str) -> None:
        """There is no proof for others: this peer alone does not deal with it."""
        ctx = self.ctx
        ctx.report("peer_left_out", peer=peer, reason=reason)
        ctx.bars.convict(peer)
        self.on_barred(peer, reason)

    # ---- what is heard

    def heard(self, sender: PeerId, message: ControlMessage) -> bool:
        """False for what is about something else; whether the sender may say so has been asked before."""
        match message:
            case Testify():
                self.witness.asked(sender, message)
            case AuditOrder():
                self.auditor.ordered(message)
            case Conviction():
                self.convictions.heard(message)
            case Testimony() if self.orders is not None:
                self.orders.testified(sender, message)
            case AuditResult() if self.orders is not None:
                self.orders.result(sender, message)
            case _:
                return False
        return True

    def happened(self, event: ev.Event) -> None:
        """What was asked of the interpreter is done."""
        match event:
            case ev.Signed(name, signature):
                self.witness.signed(name, signature)
                self.auditor.signed(name, signature)
                if self.orders is not None:
                    self.orders.signed(name, signature)
            case ev.Digested():
                self.witness.digested(event)
            case ev.Gathered():
                self.auditor.gathered(event)
            case _:
                pass

    def view_changed(self) -> None:
        """There are new records: what could not be judged may be now, and a data peer tells those that have come who has been
        convicted."""
        self.convictions.view_changed()
        if self.orders is not None:
            self.convictions.tell_newcomers()

    def late(self, name: str) -> None:
        """A timer of a case has fired."""
        if self.orders is not None:
            self.orders.late(name)

    def forget(self) -> None:
        """Another iteration, or none."""
        self.witness.forget()
        self.auditor.forget()
        if self.orders is not None:
            self.orders.forget()

    # ---- what neighbours of a worker give

    def why_not(self, asker: PeerId, side: Side, hop: Hop, proof: str) -> str:
        """Why the tensors of a hop are not given to an auditor; empty if they are."""
        if asker == hop.worker or not self.holds(asker, {hop.stage}) or self.ctx.bars.is_barred(asker, self.ctx.now):
            return "not another peer of the stage"
        return self.witness.why_not(side, hop, proof)
