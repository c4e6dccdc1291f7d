"""The promise of a participant, for which no two attempts of one iteration are ever committed among peers that can reach each
other.

Coordinators may die or be wrongly thought dead, so two may close the same iteration. This is Paxos' rule, with all participants
of the attempt as its quorum:
- a participant takes part in attempts of one coordinator only, in rising numbers, until another coordinator has asked where it
  stands (`Inquire`) with a higher number; from then on it takes part in nothing lower;
- a coordinator that has asked commits the attempt that all participants it can reach have prepared, if there is one, since it
  may have been committed already; otherwise at least one participant has promised never to prepare it, and a new attempt may
  begin (`inquiry`).

That holds among those that can reach each other. Two sides of a network that is cut in two hold each other for lost, and may
both commit an iteration; when they meet, those of the side that is less far fall behind.
"""

from __future__ import annotations

from gwtf_p2p.protocol.commit.own_share import OwnShare
from gwtf_p2p.protocol.commit.progress import Progress
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.certificates import ATTEMPTS_PER_EPOCH
from gwtf_p2p.protocol.wire.messages import Ballot, Inquire


class Promise:
    """`promised`: the lowest attempt that this peer may take part in, of its coordinator only; None: any."""

    def __init__(self, progress: Progress, share: OwnShare) -> None:
        self.progress, self.share = progress, share
        self.promised: Ballot | None = None

    def inquired(self, sender: PeerId, message: Inquire) -> None:
        """Promise to take part in nothing lower, unless something as high was promised to another coordinator."""
        progress, share = self.progress, self.share
        ballot = Ballot(message.attempt, sender)
        in_range = 0 < message.attempt < (progress.ctx.epoch + 1) * ATTEMPTS_PER_EPOCH
        asks = in_range and message.iteration == progress.version and not progress.behind and not share.stepping
        if asks and (self.promised is None or ballot > self.promised):
            self.promised = ballot
            if not share.prepared:
                share.drop()

    def excludes(self, sender: PeerId, attempt: int) -> bool:
        """An attempt of this coordinator may not be taken part in any more."""
        promised = self.promised
        return promised is not None and (promised.coordinator != sender or attempt < promised.attempt)

    def give(self, ballot: Ballot) -> None:
        """By taking part in this attempt."""
        self.promised = ballot

    def release(self) -> None:
        """It concerned an iteration that is over for this peer."""
        self.promised = None
