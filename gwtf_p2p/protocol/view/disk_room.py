"""What a volunteer's limit on disk space leaves of the checkpoints: what goes so that another one fits, or that it does not.

Of each stage the newest version and the secured one stay: the peer, or the swarm, goes on from them. So does the best one, by
its evaluation, where the run keeps it. Older ones go, copies before own ones. Where that does not do, an own checkpoint takes
the place of copies, whatever they are; a copy never does that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import Stage


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A checkpoint's folder: `size` in bytes."""

    stage: Stage
    version: int
    size: int


def making_room(
    there: Iterable[OnDisk], wanted: OnDisk, limit: int, own: Stage, spared: Collection[int | None]
) -> list[OnDisk] | None:
    """What goes so that all that stays, and `wanted`, take at most `limit` bytes, in the order in which it goes.

    None if it cannot be; then nothing goes. `spared`: the secured version, and the best one.
    """
    kept = list(there)
    over = sum(each.size for each in kept) + wanted.size - limit
    going: list[OnDisk] = []
    for each in _least_missed(kept, wanted, own, spared):
        if over <= 0:
            break
        going.append(each)
        over -= each.size
    return going if over <= 0 else None


def room_for(there: Iterable[OnDisk], stage: Stage, limit: int, own: Stage, spared: Collection[int | None]) -> int:
    """The size in bytes of the largest checkpoint of this stage for which room could be made; 0 if there is none."""
    kept = list(there)
    may_go = _least_missed(kept, OnDisk(stage, -1, 0), own, spared)
    return max(0, limit - sum(each.size for each in kept) + sum(each.size for each in may_go))


def _least_missed(there: list[OnDisk], wanted: OnDisk, own: Stage, spared: Collection[int | None]) -> list[OnDisk]:
    """What may go for `wanted`, the least missed first: older ones, of other stages before this peer's own."""
    newest: dict[Stage, int] = {}
    for each in there:
        newest[each.stage] = max(newest.get(each.stage, -1), each.version)

    def stays(each: OnDisk) -> bool:
        return each.version == newest[each.stage] or each.version in spared

    may_go = [each for each in there if not stays(each) or (wanted.stage == own and each.stage != own)]
    return sorted(may_go, key=lambda each: (stays(each), each.stage == own, each.version, each.stage))
