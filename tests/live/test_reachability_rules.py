"""What a peer concludes about its own reachability, as tables."""

from __future__ import annotations

import itertools

import pytest

from gwtf_p2p.live.reachability_rules import (
    Mapping,
    Role,
    Situation,
    needs_new_circuit,
    path_of,
    punch_role,
    renew_in_s,
)
from gwtf_p2p.protocol.records import PathType

HERE = "/ip4/192.0.0.200/tcp/31330"
KEPT = Situation((HERE, HERE))
ONE_OBSERVER = Situation((HERE,))
VARIES = Situation((HERE, "/ip4/192.0.0.200/tcp/4711"))
OPEN = Situation((HERE, HERE), HERE)
UNSEEN = Situation()


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
    ("budget_bytes", "budget_s", "used", "age", "following", "new"),
    [
        (128 << 10, 120, 0, 0, 100_000, False),
        (128 << 10, 120, 0, 0, 128 << 10, True),
        (128 << 10, 120, 100_000, 0, 30_000, True),
        (4 << 30, 1800, 0, 1700, 1, True),
        (4 << 30, 1800, 0, 1600, 1 << 20, False),
        (0, 0, 1 << 50, 1e9, 1 << 40, False),
    ],
)
def test_a_circuit_is_replaced_before_its_budget_ends(
    budget_bytes: int, budget_s: int, used: int, age: float, following: int, new: bool
) -> None:
    assert needs_new_circuit(budget_bytes, budget_s, used, age, following) is new
