"""Routers by name: each has its settings and its class, and a name that was only half entered is no other router."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.core.router import Router
from gwtf_p2p.protocol.errors import InputError, LocalProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.routers.factory import KINDS, RouterKind, default_config, make_router
from gwtf_p2p.protocol.settings import RouterSettings

ME = PeerId("me")


def class_of(name: str) -> str:
    made: Router = make_router(name, default_config(name), 0, ME)
    return type(made).__name__


def test_each_kind_is_its_own_router() -> None:
    assert {name: class_of(name) for name in KINDS} == {
        "gwtf": "IterationRouter",
        "negotiated": "NegotiatedRouter",
        "greedy": "GreedyRouter",
        "random": "RandomRouter",
        "optimal": "GwtfRouter",
        "swarm": "SwarmRouter",
        "swarm+rebalance": "SwarmRouter",
        "swarm-hub": "SwarmRouter",
    }


@pytest.mark.parametrize("queues", [False, True])
def test_a_name_without_branches_is_an_error_and_no_other_router(queues: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "fastest", RouterKind("fastest", unbounded_queues=queues))
    with pytest.raises(LocalProtocolError, match=r"fastest .*no branch in default_config"):
        default_config("fastest")
    with pytest.raises(LocalProtocolError, match=r"fastest .*no branch in make_router"):
        make_router("fastest", RouterSettings(), 0, ME)


def test_an_unknown_name_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match="--router: expected one of gwtf"):
        default_config("fastest")
