"""Transfers share links and lines max-min fairly, and take the time that this implies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import Line, Links, LinkSpec, Transfer, max_min_rates

A, B, C, D = (PeerId(name) for name in "abcd")


def links(lines: dict[PeerId, float] | None = None, narrow: float = 1e9) -> Links:
    """Latency 0.5 s; the link from a to b carries `narrow` bytes/s, all others are wide."""
    return Links(Kernel(), lambda s, r: LinkSpec(0.5, narrow if (s, r) == (A, B) else 1e9), lines or {})


def finish_times(network: Links, *transfers: tuple[PeerId, PeerId, int]) -> list[float]:
    """When each of the transfers, begun together, has left."""
    ends: dict[int, float] = {}
    for i, (sender, receiver, size) in enumerate(transfers):
        network.start(sender, receiver, size, lambda i=i: ends.setdefault(i, network.kernel.now))
    network.kernel.run(lambda: False, 1e9)
    return [ends[i] for i in range(len(transfers))]


def test_one_transfer_has_the_narrowest_of_link_and_lines() -> None:
    assert finish_times(links({A: 100.0, C: 50.0}), (A, C, 100)) == [pytest.approx(2.0)]
    assert finish_times(links({A: 100.0}, narrow=20.0), (A, B, 100)) == [pytest.approx(5.0)]


def test_two_transfers_share_a_line_and_the_second_speeds_up_when_the_first_is_done() -> None:
    assert finish_times(links({A: 100.0}), (A, C, 100), (A, D, 200)) == [pytest.approx(2.0), pytest.approx(3.0)]


def test_what_one_transfer_cannot_use_the_other_gets() -> None:
    """a-b is limited to 10 by its link, so a-c has 90 of the line of 100, not half of it."""
    assert finish_times(links({A: 100.0}, narrow=10.0), (A, B, 100), (A, C, 90))[1] == pytest.approx(1.0)


def test_up_and_down_do_not_share() -> None:
    assert finish_times(links({A: 100.0}), (A, C, 100), (C, A, 100)) == [pytest.approx(1.0)] * 2


def test_a_transfer_via_a_third_peer_takes_both_legs_one_after_the_other() -> None:
    network, ends = links({A: 100.0, B: 50.0}), []
    network.start(A, C, 100, lambda: ends.append(network.kernel.now), via=B)
    network.kernel.run(lambda: False, 1e9)
    assert ends == [pytest.approx(100 / 50 + 0.5 + 100 / 50)]
    assert network.bytes_sent == 200


@pytest.mark.parametrize("at", [1.0, 2.2, 3.0])
def test_a_cancelled_transfer_frees_its_lines_in_either_leg_and_between(at: float) -> None:
    network, ends = links({A: 100.0, B: 50.0}), []
    transfer = network.start(A, C, 100, lambda: ends.append("never"), via=B)
    network.kernel.at(at, lambda: network.stop(transfer))
    network.kernel.at(at, lambda: network.start(B, D, 100, lambda: ends.append(network.kernel.now)) and None)
    network.kernel.run(lambda: False, 1e9)
    assert ends == [pytest.approx(at + 2.0)]


def test_a_cancelled_transfer_counts_what_it_has_sent() -> None:
    network = links({A: 100.0})
    transfer = network.start(A, C, 100, lambda: None)
    network.kernel.at(0.25, lambda: network.stop(transfer))
    network.kernel.run(lambda: False, 1e9)
    assert network.bytes_sent == 25


@given(
    capacities=st.lists(st.floats(1.0, 1e6), min_size=2, max_size=6),
    uses=st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=8),
)
def test_rates_are_max_min_fair(capacities: list[float], uses: list[set[int]]) -> None:
    """The certificate: no line above its capacity, and each transfer has a full line on which nobody has more than it."""
    lines = [Line(capacity) for capacity in capacities]
    transfers = []
    for order, use in enumerate(uses):
        mine = tuple(lines[i % len(lines)] for i in sorted({i % len(lines) for i in use}))
        transfers.append(Transfer(order, A, B, 1.0, lambda: None, mine, 0.0))
        for line in mine:
            line.users[order] = transfers[-1]
    rates = {transfer.order: rate for transfer, rate in max_min_rates(tuple(lines))}
    assert set(rates) == set(range(len(transfers)))
    load = {id(line): sum(rates[order] for order in line.users) for line in lines}
    assert all(load[id(line)] <= line.capacity * (1 + 1e-9) for line in lines)
    for transfer in transfers:
        assert any(
            load[id(line)] >= line.capacity * (1 - 1e-9)
            and rates[transfer.order] >= max(rates[order] for order in line.users) * (1 - 1e-9)
            for line in transfer.lines
        )
