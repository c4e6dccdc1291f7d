"""What a peer is told of its own part in the swarm: it comes, takes part, leaves, and believes that somebody leads.

Nothing here follows from messages of a commit: the program, `membership` and the machine say so, and it is passed on in this
peer's `Standing`. `active`: the swarm lets this data peer take part; `taking_part`: it does, in the iteration at hand. `kept`
are the versions of the weights that it could restore.
"""

from __future__ import annotations

from collections.abc import Callable

from gwtf_p2p.protocol.ids import PeerId


class Role:
    """The role of one peer. It begins as one that joins, leads nobody and keeps nothing."""

    def __init__(self) -> None:
        self.kept: tuple[int, ...] = ()
        self.joining = True
        self.active = False
        self.taking_part = False
        self.leaving = False
        self.coordinator: Callable[[], PeerId | None] = lambda: None

    def keep(self, versions: tuple[int, ...]) -> None:
        """A checkpoint was written or removed."""
        self.kept = versions

    def be_led_by(self, coordinator: Callable[[], PeerId | None]) -> None:
        """Who leads, as this data peer sees it."""
        self.coordinator = coordinator

    def set_active(self, active: bool) -> None:
        """The swarm lets this data peer take part, or does not."""
        self.active = active

    def take_part(self, taking_part: bool) -> None:
        """It takes part in the iteration at hand, or does not."""
        self.taking_part = taking_part

    def join(self) -> None:
        """It has found where the swarm is: what it says of itself counts from now on."""
        self.joining = False

    def leave(self) -> None:
        """It leaves for good."""
        self.leaving = True
