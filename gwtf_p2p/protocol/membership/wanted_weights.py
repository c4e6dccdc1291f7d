"""The weights that a peer wants: one download at a time, and what it says when it cannot have them."""

from __future__ import annotations

from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Download
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.wire.messages import Rebuild


class WantedWeights:
    """Of one peer. `version` is the one that is being downloaded, or read from an own checkpoint; None while none is.
    `said_missing` is the last one that nobody had, -1 for none; `rebuild` are the stages that begin anew with it, if any."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self.version: int | None = None
        self.said_missing = -1
        self.rebuild: Rebuild | None = None

    def fetch(self, version: int, donors: tuple[PeerId, ...], own: bool, rebuild: Rebuild | None = None) -> None:
        """Have them put in place, unless that is under way. `own`: a checkpoint of its own will do."""
        if self.version != version:
            self.version, self.rebuild = version, rebuild
            first = bool(donors) and not own and rebuild is None and self._may_serve_without_moments()
            self.ctx.emit(Download(version, donors, own, self.ctx.epoch, rebuild, first))

    def _may_serve_without_moments(self) -> bool:
        """Where copies are averaged the moments are part of the average; delayed steps have the version before in the state. A
        data peer that serves begins iterations."""
        life = self.ctx.life
        return self.ctx.stage != DATA_STAGE and not life.sync.is_on and not life.ahead

    def forget(self) -> None:
        """They are here, or are not wanted any more."""
        self.version = None

    def found(self) -> None:
        """Weights are in place."""
        self.said_missing = -1

    def missing(self, version: int) -> bool:
        """Nobody has them. It is said once of each version; False when it was said before."""
        is_new = self.said_missing != version
        if is_new:
            self.said_missing = version
            self.ctx.report("version_missing", stage=self.ctx.stage, version=version, have=self.participant.weights)
        return is_new
