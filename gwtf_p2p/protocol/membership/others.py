"""The others, as a peer sees them that comes, stays or leaves: who may know more than it, how far they are, and telling them.

Nobody is believed on a record's word alone: who seems to be further is told where this peer stands, and answers if it knows
better. Whoever may have dealt with a peer hears when it leaves.
"""

from __future__ import annotations

from bisect import bisect

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.participant import Participant, leader_known_to
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.wire.messages import Admit, Inquire, Standing

IN_LINE = 3
"""Data peers to whom a peer introduces itself: who leads, and who would next. Others ask all before they lead (`inquiring`)."""

DOUBT_S = 1.0
"""Doubts are said aloud at most so often."""


class Others:
    """The others of one peer. It keeps where data peers have said that they stand."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self._introduced = False
        self._standings: dict[PeerId, Standing] = {}
        self._turn = 0

    def data_peers(self) -> list[PeerId]:
        """Other data peers that may know more. One that is still joining may: it is back with later weights."""
        ctx = self.ctx
        known = set(self.participant.data_peers or ()) | set(ctx.view.data_peers if ctx.view else ())
        mine = (ctx.epoch, self.participant.weights)
        for epoch, version, peer in ctx.view.positions_of_data_peers if ctx.view else ():
            if (epoch, version) > mine:
                known.add(peer)
        return sorted(p for p in known if p != ctx.me and not ctx.liveness.is_lost(p))

    def furthest(self) -> tuple[int, int]:
        """The latest position (epoch, iteration) that another peer's record shows."""
        view, ctx = self.ctx.view, self.ctx
        for epoch, version, peer in view.furthest if view is not None else ():
            if peer != ctx.me and not ctx.liveness.is_lost(peer):
                return epoch, version
        return 0, 0

    def may_admit(self, sender: PeerId, message: Admit) -> bool:
        """An iteration that this peer has not seen comes with the proof that it was got to; or others' records show it, where
        the coordinator has seen no commit since it started, or has one whose certificate too few have signed of those that are
        here now: who was away then, and has gone on from that commit since, cannot have. That the swarm goes back (an epoch)
        is not proven."""
        certifier, records = self.participant.certifier, self.ctx.view.records if self.ctx.view is not None else {}
        mine = (self.ctx.epoch, max(self.participant.weights, self.participant.version))
        if not certifier.is_on or message.position <= mine or message.epoch > self.ctx.epoch:
            return True
        proof = message.certificate
        if proof is not None and (proof.position != message.position or not certifier.shows(proof)):
            return False
        if proof is not None and certifier.lacks(proof) is None:
            return True
        return any(peer != sender and record.weights_version >= message.iteration for peer, record in records.items())

    def note(self, sender: PeerId, standing: Standing) -> None:
        """A data peer has said where it stands."""
        self._standings[sender] = standing

    def all_idle(self) -> dict[PeerId, Standing] | None:
        """Where the other data peers stand, if all have said that they take no part; None if one does, or has not said."""
        others = {peer: self._standings.get(peer) for peer in self.data_peers()}
        known = {peer: s for peer, s in others.items() if s is not None and not s.active}
        return known if len(known) == len(others) else None

    # ---- telling them

    def doubt(self) -> None:
        """Somebody seems to be further: say where this peer stands, and who knows better will answer."""
        if not self.ctx.is_armed(ev.Timer.DOUBT, "") and not self.participant.share.stepping:
            self.ctx.start_timer(ev.Timer.DOUBT, "", DOUBT_S)
            self.say()

    def say(self) -> None:
        """Where this peer stands, to all data peers."""
        for peer in self.data_peers():
            self.ctx.emit(Send(peer, self.participant.standing()))

    def say_it_takes_long(self) -> None:
        """Where this peer stands, when an average takes longer than it should: to who has asked for it and to who leads, who
        know whether it is still wanted, and to another data peer each time, should neither of them know that it leads. A whole
        swarm averages at once, and its first averages take longer than anybody has measured."""
        preparing, known = self.participant.preparing, self.data_peers()
        asked_by = preparing.coordinator if preparing is not None else None
        told = [peer for peer in known if peer in (asked_by, leader_known_to(self.participant) or known[0])]
        others = [peer for peer in known if peer not in told]
        if others:
            told.append(others[(bisect(others, self.ctx.me) + self._turn) % len(others)])
            self._turn += 1
        for peer in told:
            self.ctx.emit(Send(peer, self.participant.standing()))

    def ask_who_leads(self) -> None:
        """A data peer may find that none of the others takes part either."""
        if self.ctx.stage == DATA_STAGE:
            for peer in self.data_peers():
                self.ctx.emit(Send(peer, Inquire(self.participant.version)))

    def introduce(self) -> None:
        """Once: a coordinator knows whom it has heard of."""
        known = self.data_peers() if not self._introduced else []
        if known:
            self._introduced = True
            began = [peer for peer in known if peer in (self.participant.data_peers or ())]
            for peer in (began or known)[:IN_LINE]:
                self.ctx.emit(Send(peer, self.participant.standing()))

    def say_goodbye(self) -> None:
        """To all who may have dealt with this peer: the neighbouring stages, its own, and the data peers."""
        ctx = self.ctx
        near = {DATA_STAGE, ctx.stage - 1, ctx.stage, ctx.stage + 1} | ({ctx.stages} if ctx.stage == DATA_STAGE else set())
        records = ctx.view.records if ctx.view is not None else {}
        others = {peer for peer, record in records.items() if record.stage in near} | set(self.data_peers())
        for peer in sorted(others - {ctx.me} - ctx.liveness.lost):
            ctx.emit(Send(peer, self.participant.standing()))
