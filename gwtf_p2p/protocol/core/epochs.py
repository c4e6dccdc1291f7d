"""What weights of different histories have in common.

The swarm goes back to an earlier iteration when a stage has lost the later ones for good (`welcoming`); that begins a new
*history*. Weights of one version are equal in two histories if neither of them had gone back to before that version in between.
"""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = -1
"""Where a history began that was before this program started: nothing earlier is known to be equal."""


@dataclass(frozen=True, slots=True)
class Past:
    """`history`: how often the swarm has gone back. `branches[h]`: the version that history h + 1 began at."""

    history: int = 0
    branches: tuple[int, ...] = ()

    def shares(self, history: int, version: int) -> bool:
        """Are weights of this version and that history those of this history?"""
        if history >= self.history:
            return history == self.history
        known = self.branches + (UNKNOWN,) * (self.history - len(self.branches))
        return version <= min(known[history : self.history])

    def gone_back_to(self, version: int) -> Past:
        known = self.branches + (UNKNOWN,) * (self.history - len(self.branches))
        return Past(self.history + 1, (*known, version))
