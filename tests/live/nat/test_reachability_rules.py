"""What a peer concludes about its own reachability, as tables."""

from __future__ import annotations

import itertools

import pytest

from gwtf_p2p.live.nat.reachability_rules import (
    NO_END,
    OVERHEAD_BYTES,
    Mapping,
    Role,
    Situation,
    circuit_left,
    is_likely,
    kind_of,
    path_of,
    punch_role,
    renew_in_s,
)
from gwtf_p2p.protocol.wire.records import PathType

HERE = "/ip4/192.0.0.200/tcp/31330"
KEPT = Situation((HERE, HERE))
ONE_OBSERVER = Situation((HERE,))
VARIES = Situation((HERE, "/ip4/192.0.0.200/tcp/4711"))
OPEN = Situation((HERE, HERE), HERE)
UNSEEN = Situation()


def test_one_observer_is_believed_when_the_port_is_the_own_one() -> None:
    listens = ("/ip4/192.168.1.2/tcp/31330",)
    assert Situation((HERE,), listens=listens).mapping is Mapping.KEPT
    assert Situation(("/ip4/192.0.0.200/tcp/4711",), listens=listens).mapping is Mapping.VARIES


def test_traffic_waits_for_a_punch_only_where_both_ports_are_kept() -> None:
    assert is_likely(KEPT, ONE_OBSERVER)
    elsewhere = Situation(("/ip4/192.0.0.201/tcp/31330",) * 2)
    assert not is_likely(elsewhere, VARIES)
    assert is_likely(KEPT, VARIES), "behind one router no punch is needed"


@pytest.mark.parametrize(
    ("connections", "kind"),
    [
        ([], None),
        (["/ip4/192.0.0.200/tcp/31337/p2p/Qm1/p2p-circuit"], PathType.RELAYED),
        (["/ip4/192.0.0.200/tcp/31337/p2p/Qm1/p2p-circuit", "/ip4/192.0.0.201/tcp/31330"], PathType.PUNCHED),
        (["/ip4/127.0.0.1/tcp/4000"], PathType.PUNCHED),
        (["/ip4/127.0.0.1/tcp/4001"], PathType.PUBLIC),
        (["/ip4/192.168.1.3/tcp/31330"], PathType.PUBLIC),
    ],
)
def test_the_kind_of_a_path_is_that_of_its_best_connection(connections: list[str], kind: PathType | None) -> None:
    assert kind_of(connections, {4000}, both_behind_nat=True) is kind


@pytest.mark.parametrize(
    ("situation", "mapping"), [(KEPT, Mapping.KEPT), (ONE_OBSERVER, Mapping.UNKNOWN), (VARIES, Mapping.VARIES)]
)
def test_two_observers_are_needed_to_know_the_mapping(situation: Situation, mapping: Mapping) -> None:
    assert situation.mapping is mapping


def test_a_peer_is_public_only_when_it_was_dialled_back() -> None:
    assert path_of(OPEN)[0] is PathType.PUBLIC
    for situation in (KEPT, VARIES, UNSEEN, ONE_OBSERVER):
        path, reason = path_of(situation)
        assert path is PathType.RELAYED
        assert str(len(situation.observed)) in reason


@pytest.mark.parametrize(
    ("me", "other", "role"),
    [
        (VARIES, KEPT, Role.DIALS),
        (KEPT, VARIES, Role.WAITS),
        (VARIES, VARIES, None),
        (KEPT, OPEN, None),
        (OPEN, VARIES, None),
        (KEPT, UNSEEN, None),
        (ONE_OBSERVER, VARIES, Role.WAITS),
    ],
)
def test_whose_port_varies_dials(me: Situation, other: Situation, role: Role | None) -> None:
    assert punch_role(me, other, True)[0] is role
    assert punch_role(me, other, False)[0] is role


@pytest.mark.parametrize(("one", "other"), list(itertools.product([KEPT, VARIES, OPEN, UNSEEN, ONE_OBSERVER], repeat=2)))
def test_both_ends_agree_on_their_roles(one: Situation, other: Situation) -> None:
    roles = {punch_role(one, other, True)[0], punch_role(other, one, False)[0]}
    assert roles in ({None}, {Role.DIALS, Role.WAITS})


def test_a_reservation_is_renewed_soon_and_then_at_half_its_life() -> None:
    assert renew_in_s(3600, is_first=True) == 20
    assert renew_in_s(3600, is_first=False) == 1800
    assert renew_in_s(10, is_first=True) == 5
    assert renew_in_s(-100, is_first=False) == 1


@pytest.mark.parametrize(
    ("budget_bytes", "budget_s", "used", "age", "left"),
    [
        (1_000_000, 120, 0, 0.0, 900_000 - OVERHEAD_BYTES),
        (1_000_000, 120, 500_000, 0.0, 400_000 - OVERHEAD_BYTES),
        (1_000_000, 120, 990_000, 0.0, 0),
        (4 << 30, 1800, 0, 1700.0, 0),
        (0, 1800, 1 << 50, 1600.0, NO_END),
        (0, 0, 1 << 50, 1e9, NO_END),
    ],
)
def test_a_circuit_is_left_before_its_budget_ends(budget_bytes: int, budget_s: int, used: int, age: float, left: int) -> None:
    assert circuit_left(budget_bytes, budget_s, used, age) == left
