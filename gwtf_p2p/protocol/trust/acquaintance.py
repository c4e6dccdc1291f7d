"""As what a sender is known here: the stages that it holds, by its signed record or by what this peer has taken part in.

A record is signed by the peer that it is about, and a run that admits not everybody shows only the records of those admitted.
Records take seconds to get about; meanwhile three things say as much: the data peers that began the iteration (a commit named
them), the group that this peer averages with, and, at a data peer, whom a coordinator has let in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.commit.roster import Roster
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.messages import Admit

MOST_FORMER = 4096
"""Records run out in less than a minute, and a microbatch that a peer has done may be on its way for longer. The oldest go."""


class Acquaintances:
    """Of one peer; `roster` is a data peer's. `shut_out` are those that may not take part any more, and what they held;
    `former` what others held whose records have run out or name another stage since."""

    def __init__(self, context: Context, participant: Participant, roster: Roster | None) -> None:
        self.ctx, self.participant, self.roster = context, participant, roster
        self.shut_out: dict[PeerId, Stage] = {}
        self.former: dict[tuple[PeerId, Stage], None] = {}
        self._seen: NetworkView | None = None

    def saw(self, view: NetworkView) -> None:
        """The records of all that may take part, also of those that do not count yet (`probation`)."""
        if self._seen is not None and self._seen is not view:
            for held in view.since(self._seen).left:
                self.former.pop(held, None)
                self.former[held] = None
            while len(self.former) > MOST_FORMER:
                del self.former[next(iter(self.former))]
        self._seen = view

    def is_known(self, peer: PeerId) -> bool:
        """It holds some stage of this run, as far as this peer knows."""
        return peer == self.ctx.me or self.has_record(peer) or bool(self._without_record(peer))

    def has_record(self, peer: PeerId) -> bool:
        """Its signed record is in this peer's view."""
        return self.ctx.view is not None and peer in self.ctx.view.records

    def holds(self, peer: PeerId, stages: Collection[int]) -> bool:
        """It holds one of these stages."""
        if peer == self.ctx.me:
            return self.ctx.stage in stages
        view = self.ctx.view
        record = view.records.get(peer) if view is not None else None
        if record is not None and record.stage in stages:
            return True
        return any(stage in stages for stage in self._without_record(peer))

    @property
    def data_peers(self) -> int:
        """How many data peers this peer knows of."""
        view = self.ctx.view
        found = {peer for _, _, peer in view.positions_of_data_peers} if view is not None else set()
        found |= {*(self.participant.data_peers or ())}
        if self.participant.preparing is not None and self.participant.preparing.stage == DATA_STAGE:
            found |= {*self.participant.preparing.participants}
        if self.roster is not None:
            found |= {*self.roster.guests, *(peer for peer, stage in self.roster.stages.items() if stage == DATA_STAGE)}
        return len(found | ({self.ctx.me} if self.ctx.stage == DATA_STAGE else set()))

    def has_held(self, peer: PeerId, stage: int) -> bool:
        """It holds this stage, or did until it was shut out or lost: what it has done until then counts."""
        held = (peer, Stage(stage))
        seen = self._seen is not None and held in self._seen.held
        return self.holds(peer, {stage}) or self.shut_out.get(peer) == stage or seen or held in self.former

    def holds_another(self, peer: PeerId, stages: Collection[int]) -> bool:
        """It is known, as a peer of other stages than these."""
        return self.is_known(peer) and not self.holds(peer, stages)

    def believed(self, admit: Admit) -> Admit:
        """With weights from peers of this stage only, and of the stages beside it where its own are to be rebuilt."""
        donors, rebuild = self._of(admit.donors, self.ctx.stage), admit.rebuild
        if rebuild is not None:
            below = self._of(rebuild.below, self.ctx.stage - 1) if self.ctx.stage > 1 else ()  # data peers hold no layers
            above = self._of(rebuild.above, self.ctx.stage + 1)
            rebuild = replace(rebuild, below=below, above=above)
        return replace(admit, donors=donors, rebuild=rebuild)

    def _of(self, peers: Iterable[PeerId], stage: int) -> tuple[PeerId, ...]:
        return tuple(peer for peer in peers if self.holds(peer, {stage}))

    def _without_record(self, peer: PeerId) -> set[Stage]:
        found: set[Stage] = set()
        if peer in (self.participant.data_peers or ()):
            found.add(DATA_STAGE)
        preparing = self.participant.preparing
        if preparing is not None and peer in preparing.participants:
            found.add(preparing.stage)
        if self.roster is not None:
            if peer in self.roster.guests:
                found.add(DATA_STAGE)
            if peer in self.roster.stages:
                found.add(self.roster.stages[peer])
        return found
