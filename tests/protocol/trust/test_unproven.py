"""Who has shown nothing yet is what a set of everybody would say, and is no set of everybody in a large swarm."""

from __future__ import annotations

import sys
from random import Random

import pytest

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.unproven import Crowd, Others, Unproven

ME = PeerId("p005")
EVERYBODY = [PeerId(f"p{n:03}") for n in range(40)]


class Naive:
    """The same, kept as sets."""

    def __init__(self) -> None:
        self.members: frozenset[PeerId] = frozenset()
        self.proven: set[PeerId] = set()
        self.vouched: set[PeerId] = set()

    def saw(self, members: frozenset[PeerId]) -> None:
        self.members = members
        self.vouched &= members

    @property
    def all(self) -> set[PeerId]:
        return {*self.members} - self.proven - self.vouched - {ME}


@pytest.mark.parametrize("seed", range(30))
def test_it_is_what_is_left_of_all_members_whatever_has_happened(seed: int) -> None:
    random, unproven, naive = Random(seed), Unproven(ME), Naive()
    for _ in range(60):
        what = random.randrange(4)
        if what == 0:
            members = frozenset(random.sample(EVERYBODY, random.randrange(len(EVERYBODY))))
            unproven.saw(members)
            naive.saw(members)
        elif what == 1 and naive.members:
            peer = random.choice(sorted(naive.members))
            unproven.prove(peer)
            naive.proven.add(peer)
        elif what == 2:
            others = random.sample(EVERYBODY, 3)
            crowd = unproven.without(others)
            assert [*crowd.in_order] == sorted(naive.all - {*others})
            unproven.vouch(crowd)
            naive.vouched |= naive.all - {*others}
        elif random.random() < 0.5:
            continue  # not looked at in between
        assert unproven.all == naive.all
        assert {peer for peer in EVERYBODY if peer in unproven} == naive.all
        assert unproven.at_least <= len(naive.all)


def test_who_comes_back_is_not_vouched_for_any_more() -> None:
    unproven, members = Unproven(ME), frozenset(EVERYBODY)
    unproven.saw(members)
    unproven.vouch(unproven.without([]))
    assert not unproven.all
    unproven.saw(members - {EVERYBODY[7]})
    unproven.saw(frozenset(EVERYBODY))
    assert unproven.all == {EVERYBODY[7]}


def test_of_many_peers_each_keeps_less_than_a_set_of_the_swarm() -> None:
    members = frozenset(PeerId(f"q{n:05}") for n in range(5000))
    kept = []
    for n in range(3):
        unproven = Unproven(PeerId(f"q{n:05}"))
        unproven.saw(members)
        unproven.prove(PeerId("q00100"))
        crowd = unproven.without([PeerId("q00200")])
        unproven.vouch(crowd)
        assert unproven.all == {PeerId("q00200")}
        kept.append(crowd)
    assert all(crowd.base is members for crowd in kept)
    assert sum(sys.getsizeof(crowd.without) for crowd in kept) < sys.getsizeof(members) / 50


def test_peers_in_order_without_a_few() -> None:
    ordered = tuple(EVERYBODY)
    without = {EVERYBODY[0], EVERYBODY[1], EVERYBODY[17], EVERYBODY[39], PeerId("nobody of them")}
    others = Others(ordered, without)
    expected = [peer for peer in EVERYBODY if peer not in without]
    assert [*others] == expected and len(others) == len(expected)
    assert others[-1] == expected[-1] and others[3:30:4] == expected[3:30:4]
    assert Random(3).sample(others, 7) == Random(3).sample(expected, 7)
    with pytest.raises(IndexError):
        others[len(expected)]
    crowd = Crowd(frozenset(EVERYBODY), without)
    assert [peer for peer in EVERYBODY if peer in crowd] == expected
