"""Whose run is it? Anybody can publish a run record under any run id; which owner a peer keeps to is decided here.

The user's word comes first (`--run_owner`), then the owner whose run this peer has joined before, as its own disk says. A
newcomer that knows neither takes the only owner that there is, and does not choose between two.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId


@dataclass(frozen=True, slots=True)
class OwnerChoice:
    """`owner` None: none of those that there are; `others` are those whose records are passed over, sorted."""

    owner: PeerId | None
    reason: str
    others: tuple[PeerId, ...] = ()

    @property
    def is_conflict(self) -> bool:
        """There are records, and none that this peer may believe."""
        return self.owner is None and bool(self.others)


def choose_owner(there: Collection[PeerId], wanted: PeerId | None, joined: PeerId | None) -> OwnerChoice:
    """`there`: the owners whose records are published. `wanted`: whom the user names. `joined`: whose run this peer has joined
    before."""
    named = wanted or joined
    if named is not None:
        others = tuple(sorted({*there} - {named}))
        why = "as --run_owner says" if wanted else "whose run this peer has joined"
        if named in there:
            return OwnerChoice(named, f"{named}, {why}", others)
        return OwnerChoice(None, f"expected {named}, {why}; published by {', '.join(others) or 'nobody'}", others)
    owners = tuple(sorted({*there}))
    if len(owners) == 1:
        return OwnerChoice(owners[0], f"{owners[0]}, the only one")
    return OwnerChoice(None, f"different run records, by {', '.join(owners)}: --run_owner names the one to trust", owners)
