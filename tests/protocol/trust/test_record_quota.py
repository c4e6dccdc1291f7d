"""A reader looks at a bounded number of records of a key, and at those first that were there before a flood."""

from __future__ import annotations

from gwtf_p2p.protocol.trust.record_quota import RecordQuota


def records(*names: str) -> dict[bytes, str]:
    return {name.encode(): name for name in names}


def test_all_are_looked_at_while_there_are_few() -> None:
    assert [name for _, name in RecordQuota(3).chosen("k", records("a", "b", "c"))] == ["a", "b", "c"]


def test_whoever_was_there_before_a_flood_stays_in_sight() -> None:
    quota = RecordQuota(4)
    quota.chosen("k", records("y", "z"))
    flood = records(*(f"ghost{n}" for n in range(1000)), "y", "z")
    for _ in range(3):
        names = [name for _, name in quota.chosen("k", flood)]
        assert names[:2] == ["y", "z"] or set(names) >= {"y", "z"}
        assert len(names) == 4


def test_who_has_gone_leaves_its_place_and_keys_do_not_share_theirs() -> None:
    quota = RecordQuota(1)
    quota.chosen("k", records("a"))
    assert [name for _, name in quota.chosen("other", records("b", "a"))] == ["b"]
    assert [name for _, name in quota.chosen("k", records("b", "a"))] == ["a"]
    assert [name for _, name in quota.chosen("k", records("b", "c"))] == ["b"]
