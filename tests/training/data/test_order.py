"""Windows are dealt once each: through changes of the number of data peers, through epochs, and between datasets by weight."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data.order import SHARES, Deal, Permutation, Shares


@given(st.integers(1, 700), st.text(max_size=5))
def test_a_permutation_is_a_bijection(size: int, name: str) -> None:
    permutation = Permutation(name, size)
    assert sorted(map(permutation, range(size))) == list(range(size))


def test_a_permutation_of_more_windows_than_fit_into_memory() -> None:
    permutation = Permutation("large", 10**15)
    found = [permutation(number) for number in range(1000)]
    assert len(set(found)) == 1000
    assert max(found) > 9 * 10**14 and min(found) < 10**14


def test_permutations_of_other_names_differ_and_the_same_one_does_not() -> None:
    orders = {tuple(map(Permutation(name, 50), range(50))) for name in ("a", "b", "a")}
    assert len(orders) == 2


def dealt(deal: Deal, data_peers: list[int], per_data_peer: int) -> list[int]:
    """Microbatch numbers of all iterations, iteration i with `data_peers[i]` data peers."""
    return [
        deal.microbatch(iteration, index, shard, shards)
        for iteration, shards in enumerate(data_peers)
        for shard in range(shards)
        for index in range(per_data_peer)
    ]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(1, 4))
def test_microbatches_are_dealt_once_each_however_often_the_data_peers_change(data_peers: list[int], per: int) -> None:
    numbers = dealt(Deal(per), data_peers, per)
    assert sorted(numbers) == list(range(len(numbers)))


@given(st.lists(st.integers(1, 5), min_size=2, max_size=30), st.integers(1, 4))
def test_who_knows_what_there_was_before_deals_the_same(data_peers: list[int], per: int) -> None:
    numbers = iter(dealt(Deal(per), data_peers, per))
    changes = [(i, before) for i, (before, now) in enumerate(itertools.pairwise(data_peers), 1) if before != now]
    for iteration, shards in enumerate(data_peers):  # each asked of a deal that was never asked before
        for shard in range(shards):
            for index in range(per):
                assert Deal(per, changes).microbatch(iteration, index, shard, shards) == next(numbers)


def test_what_was_dealt_is_not_dealt_to_another_number() -> None:
    deal = Deal(2)
    deal.microbatch(5, 0, 0, 3)
    with pytest.raises(InputError, match="data_peers: expected 3 in iteration 5, to which its windows were dealt, got 2"):
        deal.microbatch(5, 0, 0, 2)
    with pytest.raises(InputError, match="expected 3 in iteration 4"):
        deal.microbatch(4, 0, 0, 2)
    assert deal.microbatch(6, 0, 0, 2) == 6 * 2 * 3
    assert deal.microbatch(5, 1, 2, 3) == 5 * 2 * 3 + 5
    with pytest.raises(InputError, match="shard: expected 0 to 1, got 2"):
        deal.microbatch(7, 0, 2, 2)


def test_a_mixture_keeps_to_its_weights_and_reads_every_dataset_in_order_without_a_gap() -> None:
    shares = Shares(0, [3.0, 1.0, 1e-9])
    found = [shares.of(ordinal) for ordinal in range(3 * SHARES)]
    counts = Counter(dataset for dataset, _ in found)
    assert counts[2] == 3  # at least one in a turn
    assert abs(counts[0] - 0.75 * 3 * SHARES) <= 6
    for dataset, count in counts.items():
        assert sorted(own for d, own in found if d == dataset) == list(range(count))
    assert sum(a != b for (a, _), (b, _) in itertools.pairwise(found)) > SHARES // 2, "datasets come by turns"


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=32))
def test_shares_of_any_weights_add_up(weights: list[float]) -> None:
    shares = Shares(1, weights).shares
    assert sum(shares) == SHARES
    assert min(shares) >= 1
