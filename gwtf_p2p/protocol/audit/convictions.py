"""Who has been convicted, by whose signatures: checked by every peer itself, and told to whoever comes later.

A conviction counts when all of this holds: the data peer's signature draws the hop; the worker has signed what it had and made;
two peers that are known to hold the stage, and are among the first in the drawn order, have signed what they found about the
same bytes; and one of the three is alone. Nothing is heard from the loser in this run any more, and what it holds is done by
others, as if it had been lost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from gwtf_p2p.protocol.audit.draw import in_order
from gwtf_p2p.protocol.audit.judge import loser
from gwtf_p2p.protocol.audit.texts import finding_text, testimony_text
from gwtf_p2p.protocol.audit.witness import draws
from gwtf_p2p.protocol.core.bars import UNTIL_ALLOWED_S
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Bar, Send
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.audit_messages import Conviction, Finding, Testimony

PASSED_OVER = 2
"""How many peers before them in the drawn order two auditors may have had: they were lost, busy, or out of step."""

MOST_CONVICTIONS = 1024
MOST_UNJUDGED = 64
"""Convictions that wait until this peer has heard of their auditors; the oldest makes room."""

Holds = Callable[[PeerId, Collection[int]], bool]
"""Is this peer known to hold one of these stages?"""


def is_testified(ctx: Context, testimony: Testimony) -> bool:
    """The worker has signed it."""
    return ctx.signed_by(testimony.hop.worker, testimony_text(testimony), testimony.signature)


def is_found(ctx: Context, finding: Finding) -> bool:
    """Auditor and worker have signed it."""
    return is_testified(ctx, finding.testimony) and ctx.signed_by(finding.auditor, finding_text(finding), finding.signature)


def why_unproven(ctx: Context, conviction: Conviction) -> str:
    """What is wrong with it, whoever hears it and whenever: nobody is alone, or a signature does not fit. '' if nothing is."""
    first, second = conviction.first, conviction.second
    if loser(first, second) is None:
        return "nobody is alone"
    if not draws(ctx, first.hop, conviction.proof):
        return "the hop is not drawn"
    return "" if is_found(ctx, first) and is_found(ctx, second) else "a signature is wrong"


class Convictions:
    """Of one peer. `holds` says who is known as what; `on_convicted` ends what there is with the loser."""

    def __init__(self, context: Context, holds: Holds, on_convicted: Callable[[PeerId, str], None]) -> None:
        self.ctx, self.holds, self.on_convicted = context, holds, on_convicted
        self.known: dict[PeerId, Conviction] = {}
        self._unjudged: OrderedDict[Conviction, None] = OrderedDict()
        self._told: set[PeerId] = set()

    def heard(self, conviction: Conviction) -> None:
        """From whomever; it is proven (`why_unproven`). It waits while its auditors are not known here, or others seem to be
        nearer in the drawn order: whoever comes later hears of peers one after the other."""
        if len(self.known) >= MOST_CONVICTIONS or loser(conviction.first, conviction.second) in self.known:
            return
        wrong = self.why_not(conviction)
        if wrong:
            self._unjudged[conviction] = None
            while len(self._unjudged) > MOST_UNJUDGED:
                self._unjudged.popitem(last=False)
            return
        view = self.ctx.view
        self._told.update(view.records if view is not None else ())  # whoever has told this peer tells them as well
        self._convict(conviction)

    def view_changed(self) -> None:
        """There are new records: what could not be judged may be now."""
        waiting, self._unjudged = self._unjudged, OrderedDict()
        for conviction in waiting:
            self.heard(conviction)

    def why_not(self, conviction: Conviction) -> str:
        """Why this peer does not believe it (yet); empty if it does."""
        ctx, first, second = self.ctx, conviction.first, conviction.second
        hop = first.hop
        if not all(self.holds(finding.auditor, {hop.stage}) for finding in (first, second)):
            return "an auditor is not known to hold the stage"
        view = ctx.view
        peers = {peer for peer, r in view.records.items() if r.stage == hop.stage} if view is not None else set()
        asked = in_order(conviction.proof, Stage(hop.stage), (peers | {first.auditor, second.auditor}) - {hop.worker})
        gone = sum(ctx.liveness.is_lost(peer) for peer in asked)
        last = max(asked.index(first.auditor), asked.index(second.auditor))
        return "" if last < 2 + PASSED_OVER + gone else "others would have been asked"

    def _convict(self, conviction: Conviction) -> None:
        ctx, peer = self.ctx, loser(conviction.first, conviction.second)
        assert peer is not None, "checked before"
        self.known[peer] = conviction
        hop = conviction.first.hop
        auditors = [conviction.first.auditor, conviction.second.auditor]
        ctx.report("peer_convicted", peer=peer, stage=hop.stage, iteration=hop.microbatch.iteration, auditors=auditors)
        if peer == ctx.me:
            return
        ctx.bars.convict(peer)
        ctx.emit(Bar(peer, UNTIL_ALLOWED_S))
        self.on_convicted(peer, f"convicted of wrong work in stage {hop.stage}")

    # ---- telling others

    def spread(self, conviction: Conviction) -> None:
        """A data peer's: believe it, and tell everybody who is there."""
        self.heard(conviction)
        if loser(conviction.first, conviction.second) in self.known:
            self._told.clear()
            self.tell_newcomers()

    def forget(self, peer: PeerId) -> None:
        """Its program is gone, and what it was told with it."""
        self._told.discard(peer)

    def tell_newcomers(self) -> None:
        """Whoever is in the view and has not been told."""
        ctx, view = self.ctx, self.ctx.view
        if not self.known or view is None:
            return
        for peer in sorted({*view.records} - self._told - {*self.known} - ctx.liveness.lost - {ctx.me}):
            self._told.add(peer)
            for conviction in self.known.values():
                ctx.emit(Send(peer, conviction))
