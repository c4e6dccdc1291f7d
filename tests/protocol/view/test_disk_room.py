"""What goes when a volunteer's disk limit is reached: the limit holds, and what the swarm goes on from stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.view.disk_room import OnDisk, making_room, room_for

OWN = Stage(1)
VERSIONS = st.integers(0, 40)
CHECKPOINTS = st.dictionaries(st.tuples(st.integers(0, 3), VERSIONS), st.integers(1, 50), max_size=12)


def disk(there: dict[tuple[int, int], int]) -> list[OnDisk]:
    return [OnDisk(Stage(stage), version, size) for (stage, version), size in there.items()]


@given(CHECKPOINTS, st.integers(0, 3), st.integers(1, 60), st.integers(0, 400), st.sets(st.none() | VERSIONS, max_size=2))
def test_room_is_made_within_the_limit_and_never_of_what_must_stay(
    there: dict[tuple[int, int], int], stage: int, size: int, limit: int, spared: set[int | None]
) -> None:
    kept = disk(there)
    wanted = OnDisk(Stage(stage), 41, size)
    going = making_room(kept, wanted, limit, OWN, spared)
    assert (going is not None) == (size <= room_for(kept, wanted.stage, limit, OWN, spared)) or size > limit
    if going is None:
        return
    left = [each for each in kept if each not in going]
    assert sum(each.size for each in left) + size <= limit
    own = [each.version for each in kept if each.stage == OWN]
    dropped = {each.version for each in going if each.stage == OWN}
    assert not dropped & {max(own, default=-1), *spared}, "what this peer goes on from"
    if stage != OWN:
        for other in {each.stage for each in going}:
            versions = [each.version for each in kept if each.stage == other]
            assert not {each.version for each in going if each.stage == other} & {max(versions), *spared}
    fewer = going[:-1]
    assert not going or sum(e.size for e in kept) - sum(e.size for e in fewer) + size > limit, "no more than has to"


def test_copies_make_way_for_own_checkpoints_and_older_ones_first() -> None:
    kept = disk({(1, 10): 10, (1, 20): 10, (2, 10): 10, (2, 20): 10})
    own = OnDisk(OWN, 30, 10)
    assert making_room(kept, own, 50, OWN, ()) == []
    assert making_room(kept, own, 40, OWN, ()) == [OnDisk(Stage(2), 10, 10)]
    assert making_room(kept, own, 30, OWN, ()) == [OnDisk(Stage(2), 10, 10), OnDisk(OWN, 10, 10)]
    assert making_room(kept, own, 20, OWN, ()) == [OnDisk(Stage(2), 10, 10), OnDisk(OWN, 10, 10), OnDisk(Stage(2), 20, 10)]
    assert making_room(kept, own, 19, OWN, ()) is None
    copy = OnDisk(Stage(2), 30, 10)
    assert making_room(kept, copy, 30, OWN, ()) == [OnDisk(Stage(2), 10, 10), OnDisk(OWN, 10, 10)]
    assert making_room(kept, copy, 29, OWN, ()) is None, "a copy takes the place of nothing that somebody goes on from"
