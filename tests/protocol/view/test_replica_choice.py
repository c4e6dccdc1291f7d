"""Who keeps copies of whose checkpoints: equal views agree, nobody keeps their own, every stage has a keeper.

Which versions are kept: whichever stage is lost, and whenever, its copies are of a version that the other stages still have.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest

from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.replica_choice import (
    ASKED_IN_TURN,
    LOOK_S,
    MOST_ASKED,
    MOST_DONORS,
    MOST_LOOK_S,
    Copy,
    CopySearch,
    copies_worth_keeping,
    keepers,
    kept_by,
    neighbouring_stages,
    next_copy,
    secured_version,
    who_keeps,
    worth_copying,
    worth_keeping,
)
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord


def view_of(stages: int, peers_per_stage: int, gone: frozenset[str] = frozenset()) -> NetworkView:
    records = [
        StageRecord(PeerId(f"p{stage}_{i}"), RunId("r"), Stage(stage), PeerState.ONLINE, 1)
        for stage in range(stages + 1)
        for i in range(peers_per_stage)
        if f"p{stage}_{i}" not in gone
    ]
    return NetworkView.of(records, stages, 1)


def test_the_stages_are_a_ring() -> None:
    assert neighbouring_stages(Stage(0), 3) == (1, 3)
    assert neighbouring_stages(Stage(2), 3) == (1, 3)
    assert neighbouring_stages(Stage(0), 1) == (1,)


def test_every_stage_is_kept_by_as_many_others_as_asked() -> None:
    view = view_of(3, 2)
    for k in range(4):
        stage = Stage(k)
        for copies in (1, 2):
            chosen = keepers(view, stage, copies)
            assert len(set(chosen)) == copies
            assert all(view.records[peer].stage in neighbouring_stages(stage, 3) for peer in chosen)
    assert sum(len(kept_by(view, peer, record.stage, 1)) for peer, record in view.records.items()) == 4


def test_a_peer_that_goes_changes_only_what_it_kept() -> None:
    full = view_of(4, 3)
    for gone in full.records:
        fewer = view_of(4, 3, frozenset({gone}))
        for k in range(5):
            before, after = keepers(full, Stage(k), 1), keepers(fewer, Stage(k), 1)
            assert after == before or before == (gone,)


def test_with_too_few_peers_whoever_is_there_keeps_it() -> None:
    view = view_of(1, 1)
    assert keepers(view, Stage(1), 5) == ("p0_0",)


def test_a_version_is_secured_when_every_stage_has_said_so_in_this_epoch() -> None:
    records = list(view_of(2, 2).records.values())
    copied = {"p0_0": (2, 4), "p1_1": (2, 4, 8), "p2_0": (2,), "p2_1": (4,)}

    def secured(epoch: int = 0, **other: tuple[int, ...]) -> int | None:
        told = [replace(r, copied=(copied | other).get(r.peer, ()), epoch=int(r.stage == 1) * epoch) for r in records]
        return secured_version(NetworkView.of(told, 2, 1), 0)

    assert secured() == 4
    assert secured(p2_1=()) == 2
    assert secured(p0_0=()) is None
    assert secured(epoch=1) is None, "the records of stage 1 are of another epoch"


def test_the_secured_version_and_the_roundest_after_it_are_kept_and_copied() -> None:
    tens = range(10, 260, 10)
    assert worth_copying(tens, 80) == (80, 160)
    assert worth_keeping(tens, 3, 80) == {80, 160, 230, 240, 250}
    assert worth_copying(tens, None) == (10, 160), "before there is any, the oldest takes its place"
    assert worth_copying([90, 100], 80) == (100,), "what is not there cannot be copied"
    assert worth_copying([10], None) == (10,)
    assert worth_copying([], 80) == () == worth_copying([], None)
    assert worth_keeping([], 3, None) == set()
    assert worth_copying(tens, 80, 30) == (80, 160, 30), "the best one by its evaluation, wherever it is"
    assert worth_copying(tens, 80, 160) == (80, 160) == worth_copying(tens, 80, 7)
    assert worth_keeping(tens, 3, 80, best=30) == {30, 80, 160, 230, 240, 250} == copies_worth_keeping(tens, 3, 80, best=30)
    assert worth_keeping(tens, 1, 80, [20, 120, 130, 990]) == {80, 120, 130, 160, 250}, "others may count on what is copied"


@dataclass
class Keeping:
    """One stage of the model below: the versions on its own disks and at its keeper, and what it believes to be secured.

    `copy_s`: how long its keeper takes for a copy, `hears_s`: how old the news are that it has of the others; in checkpoints.
    """

    copy_s: int
    hears_s: int
    own: set[int] = field(default_factory=set)
    copies: set[int] = field(default_factory=set)
    secured: int | None = None
    copying: tuple[int, int] | None = None
    told: list[set[int]] = field(default_factory=list)

    def copied(self) -> set[int]:
        return self.own & self.copies

    def write(self, version: int, keep: int) -> None:
        self.own = worth_keeping({*self.own, version}, keep, self.secured, self.copied())

    def copy(self, now: int, keep: int) -> None:
        if self.copying is not None and self.copying[0] <= now:
            self.copies = worth_keeping({*self.copies, self.copying[1]}, max(2, keep), self.secured)
            self.copying = None
        if self.copying is None:
            new = [version for version in worth_copying(self.own, self.secured) if version not in self.copies]
            self.copying = (now + self.copy_s, new[0]) if new else None

    def hear(self, now: int, stages: list[Keeping]) -> None:
        """What all stages have told, `hears_s` ago."""
        if now >= self.hears_s:
            self.secured = max(set.intersection(*(stage.told[now - self.hears_s] for stage in stages)), default=self.secured)


@pytest.mark.parametrize("seed", range(30))
def test_however_slow_copies_and_news_are_no_lost_stage_is_beyond_recovery(seed: int) -> None:
    """Several checkpoints may be written while one copy is made: 1 to 40 here, and while news travel: 0 to 10."""
    rng = Random(seed)
    stages = [Keeping(rng.randint(1, 40), rng.randint(0, 10)) for _ in range(rng.randint(2, 5))]
    slowest = max(stage.copy_s for stage in stages) + max(stage.hears_s for stage in stages)
    keep = rng.randint(1, 3)
    for now in range(1, 1000):
        for stage in stages:
            stage.write(2 * now, keep)
            stage.copy(now, keep)
            stage.told.append(stage.copied())
        for stage in stages:
            stage.hear(now - 1, stages)
            assert len(stage.own) <= 2 * keep + 3
        for lost in stages:
            common = set.intersection(lost.copies, *(stage.own for stage in stages if stage is not lost))
            assert common or not lost.copies, f"after checkpoint {now} a stage is lost for good"
            if now > 4 * slowest:
                assert 2 * now - max(common) <= 12 * slowest + 8, "the version to go back to moves on"


def test_those_that_are_to_keep_copies_are_asked_each_time_and_all_others_in_turn() -> None:
    view, search = view_of(3, 20), CopySearch(Stage(2), copies=2)
    asked = [search.asked(view, serves=True) for _ in range((MOST_ASKED - 2) // ASKED_IN_TURN)]
    first = set(keepers(view, Stage(2), 2))
    assert all(first <= set(each) and len(set(each)) == 2 + ASKED_IN_TURN for each in asked)
    assert len({peer for each in asked for peer in each}) == MOST_ASKED
    assert set(search.asked(view, serves=False)) == set(view.records), "without weights anybody may have what it needs"


def test_what_one_has_said_stands_until_it_is_asked_again_or_is_gone() -> None:
    view, search = view_of(1, 4), CopySearch(Stage(1), copies=1)
    everybody = search.asked(view, serves=False)
    search.heard(everybody, dict.fromkeys(everybody[:2], (0, (2, 4))))
    assert search.found(0) == {2: everybody[:2], 4: everybody[:2]} and search.found(1) == {}
    search.heard(everybody[:1], {})
    assert search.found(0) == {2: everybody[1:2], 4: everybody[1:2]}, "one that does not answer keeps nothing"
    search.asked(view_of(1, 4, frozenset(everybody[1:2])), serves=False)
    assert search.found(0) == {}


def test_donors_of_a_large_stage_are_asked_in_turn() -> None:
    view, search = view_of(3, 7), CopySearch(Stage(2), copies=1)
    asked = [search.donors(view, Stage(1)) for _ in range(7)]
    assert all(len(set(each)) == MOST_DONORS for each in asked)
    assert all(sum(peer in each for each in asked) == MOST_DONORS for peer in view.peers_of_stage(Stage(1)))
    assert search.donors(view_of(3, 2), Stage(3)) == ("p3_0", "p3_1")


def test_the_next_copy_is_the_first_that_is_worth_one_and_is_not_here() -> None:
    a, b = PeerId("a"), PeerId("b")
    there = who_keeps({b: (1, (4, 6, 8)), a: (1, (6, 8)), PeerId("other"): (0, (4, 6, 8))}, epoch=1)
    assert there == {4: (b,), 6: (a, b), 8: (a, b)}
    assert next_copy(there, (), secured=4) == Copy(4, (b,))
    assert next_copy(there, (4,), secured=4) == Copy(8, (a, b))
    assert next_copy(there, (4, 8), secured=4) is None
    assert next_copy(there, (4, 8), secured=4, best=6) == Copy(6, (a, b))


def looks_in(search: CopySearch, view: NetworkView, began: float, seconds: float, kept: tuple[int, ...] = (2,)) -> int:
    """How often a peer looks in so many seconds in which everybody says what it has said before."""
    looks = 0
    for tick in range(int(seconds / LOOK_S)):
        if search.is_due(view, kept, began + tick * LOOK_S):
            looks += 1
            search.heard(asked := search.asked(view, True), dict.fromkeys(asked, (0, (2,))))
            search.offered(Stage(2), dict.fromkeys(search.donors(view, Stage(2)), (0, (2,))))
    return looks


def test_who_hears_nothing_new_asks_more_and_more_rarely_and_any_news_has_it_ask_at_once() -> None:
    search, view = CopySearch(Stage(1), 1), view_of(3, 4)
    assert looks_in(search, view, 0.0, 60.0) >= 4, "until everybody nearby has been asked"
    assert looks_in(search, view, 60.0, 300.0) <= 300 / MOST_LOOK_S + 1
    told = replace(view.records[PeerId("p3_0")], copied=(2,))
    left = view.without([told.peer])
    copied = NetworkView.of([told, *left.records.values()], 3, 1)
    changes = ((left, (2,), "has gone"), (view, (2,), "has come"), (copied, (2,), "tells of a copy"), (copied, (2, 4), "wrote"))
    for number, (now, kept, news) in enumerate(changes):
        at = 400.0 * (1 + number)
        assert search.is_due(now, kept, at), f"somebody {news}"
        assert looks_in(search, now, at + LOOK_S, 300.0, kept) <= 300 / MOST_LOOK_S + 4


def test_an_answer_that_is_another_one_is_followed_at_once() -> None:
    search, view = CopySearch(Stage(1), 1), view_of(3, 1)
    looks_in(search, view, 0.0, 600.0)
    assert not search.is_due(view, (2,), 600.0 + LOOK_S)
    search.offered(Stage(2), {PeerId("p2_0"): (0, (2, 4))})
    assert search.is_due(view, (2,), 600.0 + LOOK_S)
    looks_in(search, view, 602.0, 600.0)
    search.heard(search.asked(view, True), {})
    assert search.is_due(view, (2,), 1202.0 + LOOK_S), "one that kept something does not answer"
