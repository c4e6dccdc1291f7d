"""Averages in rows: every value of every member is summed exactly once, for few messages each, however many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest

from gwtf_p2p.protocol.averages.rows import MOST_ALL_WITH_ALL, Rows, rows_of
from gwtf_p2p.protocol.commit.attempt import in_rows
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.messages import Prepare, Share
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

Summed = dict[Fraction, tuple[Fraction, int]]
"""Where a piece of the values begins: where it ends, and who has brought something to its sum, a bit for each."""


def members_of(n: int) -> tuple[PeerId, ...]:
    return tuple(PeerId(f"peer{k:03d}") for k in range(n))


class Averaged:
    """All that is sent where members average by these rows, done by hand: who has which sums, and messages by member."""

    def __init__(self, members: Sequence[PeerId], most: int, left_out: Sequence[PeerId] = ()) -> None:
        self.sent: Counter[PeerId] = Counter()
        self.most = most
        brought = {member: 1 << number for number, member in enumerate(members) if member not in left_out}
        self.all = sum(brought.values())
        self.known = self._average(tuple(members), brought, Fraction(0), Fraction(1), left_out)

    def _average(
        self,
        members: tuple[PeerId, ...],
        brought: dict[PeerId, int],
        begin: Fraction,
        end: Fraction,
        left_out: Sequence[PeerId] = (),
    ) -> dict[PeerId, Summed]:
        rows = rows_of(members, self.most, left_out)
        if rows is None:
            owners = [member for member in members if member not in left_out]
            return self._row(members, owners, {owner: self._summed(members, brought) for owner in owners}, (begin, end))
        known: dict[PeerId, Summed] = {}
        across: dict[PeerId, Summed] = {}
        size = (end - begin) / rows.lanes
        for lane in range(rows.lanes):
            column = rows.column(lane)
            means = {row[lane]: self._summed(row, brought) for row in rows.rows}
            for row in rows.rows:
                self._messages_to(row[lane], row)
            across |= self._average(column, means, begin + lane * size, begin + (lane + 1) * size)
        for row in rows.rows:
            owners = row[: rows.lanes]
            told = {begin: piece for owner in owners for begin, piece in across[owner].items()}
            for owner in owners:
                self.sent[owner] += len(row) - 1
            known |= dict.fromkeys(row, told)
        return known

    def _row(
        self, members: Sequence[PeerId], owners: Sequence[PeerId], sums: dict[PeerId, int], of: tuple[Fraction, Fraction]
    ) -> dict[PeerId, Summed]:
        size, told = (of[1] - of[0]) / len(owners), Summed()
        for k, owner in enumerate(owners):
            self._messages_to(owner, members)
            told[of[0] + k * size] = of[0] + (k + 1) * size, sums[owner]
            self.sent[owner] += len(members) - 1
        return dict.fromkeys(members, told)

    def _messages_to(self, owner: PeerId, members: Sequence[PeerId]) -> None:
        for member in members:
            self.sent[member] += member != owner

    @staticmethod
    def _summed(members: Sequence[PeerId], brought: dict[PeerId, int]) -> int:
        found = 0
        for member in members:
            assert not found & brought.get(member, 0), "what one has brought is summed once"
            found |= brought.get(member, 0)
        return found

    def is_whole(self, summed: Summed) -> bool:
        """The pieces lie one behind the other, and everybody has brought something to each."""
        ends = [Fraction(0), *(end for _, (end, _) in sorted(summed.items()))]
        return [*sorted(summed), Fraction(1)] == ends and all(by == self.all for _, by in summed.values())


@pytest.mark.parametrize("most", [2, 3, 8])
def test_every_value_is_summed_once_and_all_have_all_of_them(most: int) -> None:
    for n in (*range(1, 71), 200, 513):
        members = members_of(n)
        averaged = Averaged(members, most)
        told = {id(pieces): pieces for pieces in averaged.known.values()}
        assert averaged.known.keys() == {*members} and all(averaged.is_whole(pieces) for pieces in told.values()), n
        levels = next(k for k in range(1, 20) if most**k >= n)
        assert max(averaged.sent.values()) <= 2 * most * levels, n
        assert n > most or rows_of(members, most) is None


def test_what_a_member_sends_grows_with_the_logarithm_of_the_members() -> None:
    sent = {n: max(Averaged(members_of(n), MOST_ALL_WITH_ALL).sent.values()) for n in (6, 8, 9, 12, 24, 64, 512)}
    assert sent == {6: 10, 8: 14, 9: 8, 12: 10, 24: 15, 64: 28, 512: 42}


@pytest.mark.parametrize(("n", "out"), [(10, 1), (24, 5), (20, 11), (13, 4)])
def test_those_that_are_left_out_own_nothing_and_hear_all(n: int, out: int) -> None:
    members = members_of(n)
    left_out = members[1 : 2 * out : 2]
    averaged = Averaged(members, 8, left_out)
    assert averaged.known.keys() == {*members} and all(map(averaged.is_whole, averaged.known.values()))
    rows = rows_of(members, 8, left_out)
    if rows is not None:
        assert {member for row in rows.rows for member in row} == {*members}
        assert all(rows.lane_of(member) is None for member in left_out)


def test_rows_are_the_same_for_all_and_differ_by_one_at_most() -> None:
    rows = rows_of(members_of(23), 8)
    assert rows == rows_of(members_of(23), 8) and rows is not None
    assert [len(row) for row in rows.rows] == [5, 5, 5, 4, 4] and rows.lanes == 4
    guest = rows.rows[0][-1]
    assert rows.lane_of(guest) is None and rows.lane_of(rows.rows[1][2]) == 2
    weights = {member: float(number) for number, member in enumerate(members_of(23))}
    assert rows.weights_across(weights)[0] == 0 + 1 + 2 + 3 + 4
    assert rows_of(members_of(500), 0) is None and rows_of(members_of(500), 1) is None
    assert isinstance(rows_of(members_of(9), 8), Rows)


def record(peer: PeerId, able: bool) -> StageRecord:
    return StageRecord(peer, RunId("run"), Stage(1), PeerState.ONLINE, 1, averages_in_rows=able)


@pytest.mark.parametrize(
    ("able", "known", "members", "most"),
    [(9, 9, 9, 8), (9, 9, 9, 9), (9, 9, 9, 0), (9, 9, 9, 1), (8, 9, 9, 8), (8, 8, 9, 8), (0, 0, 9, 8)],
)
def test_a_group_averages_in_rows_when_it_is_large_and_all_its_members_can(
    able: int, known: int, members: int, most: int
) -> None:
    peers = members_of(members)
    prepare = Prepare(0, 1, PeerId("data"), Stage(1), tuple(Share(peer, ()) for peer in peers))
    view = NetworkView.of([record(peer, k < able) for k, peer in enumerate(peers[:known])], 1, 1)
    expected = most if able == members and 2 <= most < members else 0
    assert in_rows(prepare, view, most).all_with_all == expected
    assert in_rows(prepare, None, most).all_with_all == 0
