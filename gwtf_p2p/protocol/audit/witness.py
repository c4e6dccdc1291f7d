"""What a peer says and gives when work that passed through it is done again: as the worker, or as one of its neighbours.

Only what is drawn is asked for: without the data peer's signature over the microbatch nobody gets anything. A neighbour answers
for what it has sent to this very worker and got from it; after a repair it may hold what another peer had.
"""

from __future__ import annotations

from enum import Enum

from gwtf_p2p.protocol.audit.draw import is_drawn
from gwtf_p2p.protocol.audit.texts import draw_text, testimony_text
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Phase
from gwtf_p2p.protocol.effects import Digest, Send, Sign
from gwtf_p2p.protocol.events import Digested, Slot
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.audit_messages import Hop, Testify, Testimony
from gwtf_p2p.protocol.wire.messages import Missing


class Side(Enum):
    """Which neighbour of the worker."""

    BEFORE = "before"
    AFTER = "after"


KEPT = {Side.BEFORE: (Slot.OUTPUT, Slot.OUTPUT_GRADIENT), Side.AFTER: (Slot.INPUT, Slot.INPUT_GRADIENT)}
"""Where each neighbour has its two of the four tensors: (the worker's input, its input gradient), (its output, the gradient
of that)."""


def draws(ctx: Context, hop: Hop, proof: str) -> bool:
    """The data peer has signed the microbatch's name, and that draws this hop."""
    owner = hop.microbatch.data_peer
    drawn = is_drawn(proof, hop.stage, ctx.audit.share)
    return drawn and ctx.signed_by(owner, draw_text(hop.epoch, hop.microbatch), proof)


class Witness:
    """Of one peer. `_asked` are the hops whose worker it was, by microbatch, until they are answered for."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self._asked: dict[MicrobatchId, tuple[PeerId, Hop]] = {}
        self._said: dict[str, tuple[PeerId, Testimony]] = {}

    def forget(self) -> None:
        """The tensors of an iteration are gone."""
        self._asked.clear()
        self._said.clear()

    # ---- as the worker

    def asked(self, sender: PeerId, message: Testify) -> None:
        """Say what there was, if this peer has done it."""
        ctx, hop = self.ctx, message.hop
        held = ctx.held.get(hop.microbatch)
        is_meant = (hop.worker, hop.stage, hop.epoch) == (ctx.me, ctx.stage, ctx.epoch)
        if not is_meant or held is None or held.phase is not Phase.DONE:
            ctx.emit(Send(sender, Missing(ctx.me, ctx.stage, (hop.microbatch,))))
            return
        self._asked[hop.microbatch] = (sender, hop)
        self.ctx.emit(Digest(hop.microbatch))

    def digested(self, event: Digested) -> None:
        """What it had and made; it is signed before it is said."""
        asked = self._asked.pop(event.microbatch, None)
        if asked is None or event.digests is None:
            return
        to, hop = asked
        name = f"testimony {hop.microbatch}"
        testimony = Testimony(hop, event.digests, "")
        self._said[name] = (to, testimony)
        self.ctx.emit(Sign(name, testimony_text(testimony)))

    def signed(self, name: str, signature: str) -> None:
        """Say it."""
        said = self._said.pop(name, None)
        if said is not None:
            to, testimony = said
            self.ctx.emit(Send(to, Testimony(testimony.hop, testimony.digests, signature)))

    # ---- as a neighbour of the worker

    def why_not(self, side: Side, hop: Hop, proof: str) -> str:
        """Why this peer gives nothing of a hop; empty if it does."""
        ctx, held = self.ctx, self.ctx.held.get(hop.microbatch)
        last = 0 if hop.stage == ctx.stages else hop.stage + 1
        stage, me = (hop.stage - 1, hop.before) if side is Side.BEFORE else (last, hop.after)
        if stage != ctx.stage or me != ctx.me or hop.epoch != ctx.epoch:
            return "not this peer's to answer"
        if held is None:
            return "not held here"
        sent, got = held.delivered_to, held.gradient_from
        if side is Side.AFTER:
            sent, got = held.returned_to, held.got_from
        if sent != hop.worker or got != hop.worker:
            return "not between this peer and the worker alone"
        return "" if draws(ctx, hop, proof) else "it is not drawn"
