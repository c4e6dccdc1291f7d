"""Statements that others have and this peer lacks: which, who has told of them, and who is being asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.protocol.exchange.stated import Mark
from gwtf_p2p.protocol.ids import PeerId

MOST_FETCHED = 64
"""Statements in one answer."""

MOST_WANTED, MOST_OF_ONE = 8192, 2048
"""In all, and because one giver has told of them: who tells of what there is not takes no room from the others."""

MOST_GIVERS = 4
"""Of one statement; one after the other is asked for it."""


@dataclass(slots=True)
class _Want:
    sequence_number: int
    givers: list[PeerId] = field(default_factory=list)
    asked: PeerId | None = None


class Wanted:
    """By owner (as marks have it), the newest that was told of."""

    def __init__(self) -> None:
        self._wants: dict[bytes, _Want] = {}

    def __len__(self) -> int:
        return len(self._wants)

    def room(self, giver: PeerId) -> int:
        """How many more statements can be wanted of this giver first."""
        of_giver = sum(want.givers[0] == giver for want in self._wants.values())
        return min(MOST_WANTED - len(self._wants), MOST_OF_ONE - of_giver)

    def want(self, mark: Mark, giver: PeerId) -> None:
        """The giver has this statement; there is `room` for it."""
        want = self._wants.get(mark.owner)
        if want is None or mark.sequence_number > want.sequence_number:
            self._wants[mark.owner] = _Want(mark.sequence_number, [giver])
        elif mark.sequence_number == want.sequence_number and giver not in want.givers and len(want.givers) < MOST_GIVERS:
            want.givers.append(giver)

    def givers(self) -> list[PeerId]:
        """Who can be asked for something now, and is not being asked."""
        busy = {want.asked for want in self._wants.values() if want.asked is not None}
        first = dict.fromkeys(want.givers[0] for want in self._wants.values() if want.asked is None)
        return [giver for giver in first if giver not in busy]

    def begin(self, giver: PeerId) -> list[bytes]:
        """Owners whose statements it is asked for from now on."""
        chosen = [owner for owner, want in self._wants.items() if want.asked is None and want.givers[0] == giver][:MOST_FETCHED]
        for owner in chosen:
            self._wants[owner].asked = giver
        return chosen

    def came(self, owner: bytes, sequence_number: int) -> bool:
        """A statement of this owner has come; whether it was wanted."""
        want = self._wants.get(owner)
        if want is None or sequence_number < want.sequence_number:
            return False
        del self._wants[owner]
        return True

    def brought(self, giver: PeerId) -> None:
        """It has brought some of what it was asked for, and may be asked for the rest."""
        for want in self._wants.values():
            if want.asked == giver:
                want.asked = None

    def failed(self, giver: PeerId) -> None:
        """It has brought nothing: another one that told of it is asked, if there is one."""
        for owner, want in list(self._wants.items()):
            if want.asked == giver:
                want.asked = None
            if want.asked is None and giver in want.givers:
                want.givers.remove(giver)
                if not want.givers:
                    del self._wants[owner]
