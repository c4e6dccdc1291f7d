"""Who is there, and what follows when somebody is not: the part of a machine that asks, hears answers, and tells.

How suspicion becomes certainty is `core/failure_detector`. Here is what it is applied to, and the heartbeat: a peer that
something is wanted from is asked after a second of silence, whatever the deadlines say. Deadlines come from measured times, and
a microbatch that is on its way through many stages may take long; before anything is measured they are guesses. A frozen peer
keeps its connections open and so betrays itself by nothing but its silence. Asking costs a small message per silent neighbour
and second, and a peer that is only slow answers at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.lifecycle import Phase
from gwtf_p2p.protocol.effects import Publish, Send
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.membership.membership import Membership
from gwtf_p2p.protocol.peer.transfers import Transfers
from gwtf_p2p.protocol.transfer.send_activation import WAITING
from gwtf_p2p.protocol.wire.messages import Lost, Superseded
from gwtf_p2p.protocol.wire.records import Completion, PeerState

LivenessEvent = ev.CheckAnswered | ev.CheckFailed | ev.WatchBroken | ev.SendFailed


class Concerned(Protocol):
    """The machine of either kind: what it does of its own when others come and go."""

    @abstractmethod
    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """It will not answer any more."""

    @abstractmethod
    def peer_cleared(self, peer: PeerId, returned: bool) -> None:
        """It has answered; `returned`: it had been lost."""

    @abstractmethod
    def routes_may_be_open(self) -> None:
        """What found no way may find one now."""


class Neighbours:
    """Of one peer."""

    def __init__(self, membership: Membership, transfers: Transfers, machine: Concerned) -> None:
        self.ctx, self.membership, self.transfers, self.machine = membership.ctx, membership, transfers, machine
        self._beating = False

    def handle(self, event: LivenessEvent) -> None:
        """A sign of life, or of its opposite."""
        ctx = self.ctx
        match event:
            case ev.WatchBroken(peer, reason):
                ctx.liveness.watch_broke(peer)
                ctx.suspect(peer, f"connection broke: {reason}", broken=True)
            case ev.SendFailed(to, message, reason):
                if not isinstance(message, Superseded):
                    ctx.suspect(to, f"message failed: {reason}", broken=True)
            case ev.CheckAnswered(peer, unknown, seconds):
                returned = ctx.liveness.answered(event, ctx.now)
                if ctx.holdings.shared_with(peer):
                    ctx.liveness.watch(peer, ctx.out)
                self.transfers.repairs.peer_answered(peer, frozenset(unknown), seconds)
                self.transfers.return_gradient.peer_answered(peer, frozenset(unknown))
                self.machine.peer_cleared(peer, returned)
                if returned:
                    self._tell_lost()
                self.machine.routes_may_be_open()
            case ev.CheckFailed():
                why = ctx.liveness.failed(event, ctx.now, ctx.out)
                if why:
                    for data_peer in sorted({m.data_peer for m in ctx.held} - {ctx.me, event.peer}):
                        ctx.emit(Send(data_peer, Lost(event.peer, why)))
                    self._lost(event.peer, why)

    def told_lost(self, sender: PeerId, peer: PeerId, reason: str) -> None:
        """A data peer's word counts (it leads, and it has asked), a stage peer's if it confirms what this peer has seen
        itself: a broken connection, or silence. Otherwise it is a reason to ask."""
        ctx = self.ctx
        if peer == ctx.me:
            ctx.emit(Send(sender, self.membership.participant.standing()))  # a sign of life
        elif ctx.liveness.is_lost(peer):
            return
        elif sender in self.membership.others.data_peers() or peer in ctx.liveness.excluded:
            ctx.liveness.declare_lost(peer, ctx.now, ctx.out)
            self._lost(peer, reason)
        else:
            ctx.suspect(peer, f"{sender} says lost: {reason}")

    def barred(self, peer: PeerId, reason: str) -> None:
        """Nothing is heard from it any more, so what it holds is done elsewhere."""
        ctx = self.ctx
        if not ctx.liveness.is_lost(peer):
            ctx.liveness.declare_lost(peer, ctx.now, ctx.out)
            self._lost(peer, reason)

    def says_goodbye(self, peer: PeerId) -> None:
        """It leaves: nobody asks after it."""
        if self.ctx.liveness.left(peer, self.ctx.now, self.ctx.out):
            self.ctx.report("peer_left", peer=peer, **self._steps_lost())
            self.transfers.return_gradient.peer_lost(peer)
            self.transfers.repairs.peer_left(peer)
            self._tell_lost()

    def _lost(self, peer: PeerId, reason: str) -> None:
        """One that said that it would leave, and owes nothing, has not been lost."""
        ctx = self.ctx
        record = ctx.view.records.get(peer) if ctx.view is not None else None
        leaves = record is not None and (record.state is PeerState.DRAINING or record.completion is Completion.EVERYWHERE)
        left = leaves and not ctx.holdings.shared_with(peer)
        ctx.report("peer_left" if left else "peer_lost", peer=peer, reason=reason, **self._steps_lost())
        self.machine.peer_lost(peer, reason)
        self.transfers.return_gradient.peer_lost(peer)
        self.transfers.repairs.peer_lost(peer, reason)
        self._tell_lost()

    def _tell_lost(self) -> None:
        """A data peer's record says whom it holds for lost: newcomers, who have asked nobody yet, do not count those."""
        if self.ctx.stage == DATA_STAGE:
            self.ctx.emit(Publish())

    def _steps_lost(self) -> dict[str, int]:
        """Where copies of a stage differ: the steps that a copy has made since the last average are in no other one."""
        steps = self.ctx.life.sync.since_whole(self.membership.participant.version)
        return {"steps_lost": steps} if steps else {}

    # ---- the heartbeat

    def keep_up(self) -> None:
        """To be called whenever there may be something to wait for."""
        if not self._beating and self.ctx.liveness.heartbeat_s > 0:
            self._beating = True
            self.ctx.start_timer(Timer.HEARTBEAT, "", self.ctx.liveness.heartbeat_s)

    def beat(self, others: Iterable[PeerId]) -> None:
        """The timer fired: ask who has been silent, of those that hold work for this peer and of `others`."""
        ctx = self.ctx
        self._beating = False
        wanted = self._wanted() | set(others) - {ctx.me}
        for peer in sorted(wanted):
            silent_s = ctx.liveness.silent_s(peer, ctx.now)
            if silent_s >= ctx.liveness.heartbeat_s:
                ctx.suspect(peer, f"silent for {silent_s:.1f} s")
        if wanted:
            self.keep_up()

    def _wanted(self) -> set[PeerId]:
        """Who has to compute for this peer, or to take what it has computed."""
        wanted = set()
        for held in self.ctx.held.values():
            if held.phase is Phase.DONE and held.sending not in WAITING:
                continue
            if held.sending in WAITING and held.successor is not None:
                wanted.add(held.successor)
            wanted.add(held.predecessor)
        return wanted - {self.ctx.me}
