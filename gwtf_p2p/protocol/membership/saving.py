"""Which versions of its weights a peer has written to its disk: at the run's interval, the last, and those that it leaves with.

Where copies of a stage differ between their averages, only versions at which they are equal are written: the run may go back to
any version that is on the disks, and goes on from one.

A checkpoint that cannot be written is not tried again: the next version is. Weights that replace others (a download, going
back) are as if nothing of them had been asked for.
"""

from __future__ import annotations

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Checkpoint

NOTHING = -1


class Saving:
    """Of one peer. `failure` is why the version that was asked for last is not on the disk, '' while it may be."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self.failure = ""
        self._asked = self._settled = NOTHING

    def started(self, version: int) -> None:
        """The weights have come from a checkpoint of this version, if it is above 0."""
        self._asked = self._settled = version or NOTHING

    def stepped(self, version: int) -> None:
        """The weights are of this version now, unless a later step of an earlier attempt has replaced them."""
        is_due = self.ctx.life.is_due(version) or self.participant.progress.is_over(version)
        if self.participant.weights == version and is_due:
            self.ask(version)

    def replaced(self) -> None:
        """Other weights are in place, which may differ from what was written under the same number."""
        self._asked = self._settled = NOTHING

    def leave(self) -> None:
        """Keep what this peer has computed: it may be gone for long."""
        if self.participant.weights > 0 and not self.participant.progress.lacks_moments:
            self.ask(self.participant.weights)

    def ask(self, version: int) -> None:
        """Have the weights written, once. Those of the last iteration are asked for also where nothing is kept: whoever carries
        it out says when all that it has to do with them is done."""
        progress = self.participant.progress
        is_last = progress.is_over(version)
        if version != self._asked and (is_last or (self.ctx.life.keeps and self._is_whole(version))):
            self._asked, self.failure = version, ""
            self.ctx.emit(Checkpoint(version, progress.evaluating.known))

    def _is_whole(self, version: int) -> bool:
        """An average of copies that was skipped has left them as they were."""
        sync = self.ctx.life.sync
        return not sync.is_on or (sync.is_whole(version) and not self.participant.progress.skipped)

    def settled(self, event: ev.Checkpointed) -> None:
        """The interpreter has written it, or cannot."""
        if event.version == self._asked:
            self._settled, self.failure = event.version, event.reason

    def is_settled(self, version: int) -> bool:
        """Whether this version is on the disk, or will not be."""
        return self._settled == version

    def has_written(self, version: int) -> bool:
        """Whether this version is on the disk."""
        return self.ctx.life.keeps and self._settled == version and not self.failure
