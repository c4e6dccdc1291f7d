"""What weights of different epochs have in common.

The swarm goes back to an earlier iteration when a stage has lost the later ones for good (`admission`); that begins a new
*epoch*. Weights of one version are equal in two epochs if neither of them had gone back to before that version in between.
Where a stage that is lost is rebuilt, the version itself is another one too.
"""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = -1
"""Where an epoch began that was before this program started: nothing earlier is known to be equal."""


@dataclass(frozen=True, slots=True)
class Past:
    """`epoch`: how often the swarm has gone back. `branches[h]`: the version that epoch h + 1 began at."""

    epoch: int = 0
    epoch_starts: tuple[int, ...] = ()

    def shares(self, epoch: int, version: int) -> bool:
        """Are weights of this version and that epoch those of this epoch?"""
        if epoch >= self.epoch:
            return epoch == self.epoch
        known = self.epoch_starts + (UNKNOWN,) * (self.epoch - len(self.epoch_starts))
        return version <= min(known[epoch : self.epoch])

    def gone_back_to(self, version: int, rebuilds: bool = False) -> Past:
        """`rebuilds`: this version of some stage is made anew, so the former one is equal no more."""
        known = self.epoch_starts + (UNKNOWN,) * (self.epoch - len(self.epoch_starts))
        return Past(self.epoch + 1, (*known, version - 1 if rebuilds else version))
