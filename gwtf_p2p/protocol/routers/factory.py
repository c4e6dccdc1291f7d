"""Routers by name, with their settings. What is imported is what is asked for: a live peer loads one router.

A router's settings are a frozen dataclass. `configure` changes single fields of the default by name and text, as the command
line gives them, and refuses what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from random import Random
from typing import Any

from gwtf_p2p.protocol.core.router import Router
from gwtf_p2p.protocol.errors import InputError, LocalProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.settings import RouterSettings


@dataclass(frozen=True, slots=True)
class RouterKind:
    """What a run must know about a router besides its answers.

    `unbounded_queues`: stage peers take whatever they are sent (SWARM knows no refusal). `star`: tensors between stage peers
    pass through the data peer.
    """

    name: str
    unbounded_queues: bool = False
    star: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        RouterKind("gwtf"),
        RouterKind("negotiated"),
        RouterKind("greedy"),
        RouterKind("random"),
        RouterKind("optimal"),
        RouterKind("swarm", unbounded_queues=True),
        RouterKind("swarm+rebalance", unbounded_queues=True),
        RouterKind("swarm-hub", unbounded_queues=True, star=True),
    )
}


SWARMS = ("swarm", "swarm+rebalance", "swarm-hub")
"""The kinds of one class, `SwarmRouter`."""


def router_kind(name: str, where: str = "--router") -> RouterKind:
    """Raises InputError that lists the choices."""
    if name not in KINDS:
        raise InputError(where, "", f"expected one of {', '.join(KINDS)}, got {name!r}")
    return KINDS[name]


def default_config(name: str) -> RouterSettings:
    """The router's settings when nothing is said. Raises InputError for an unknown name, LocalProtocolError for one that has
    a line in `KINDS` and no branch here."""
    if router_kind(name).name in SWARMS:
        from gwtf_p2p.protocol.routers.swarm import PAPER, REBALANCED

        return REBALANCED if name == "swarm+rebalance" else PAPER
    if name in ("greedy", "random"):
        from gwtf_p2p.protocol.routers.greedy import HopConfig

        return HopConfig()
    if name == "negotiated":
        from gwtf_p2p.protocol.negotiation.negotiator import NegotiationConfig

        return NegotiationConfig()
    if name in ("gwtf", "optimal"):
        from gwtf_p2p.protocol.routers.gwtf import GwtfConfig

        return GwtfConfig("paper" if name == "optimal" else "iteration")
    raise _forgotten(name, "default_config")


def make_router(name: str, config: RouterSettings, seed: int, me: PeerId) -> Router:
    """The router of peer `me`. Raises InputError for an unknown name, LocalProtocolError for one without a branch here.

    Routers that plan take the run's seed as it is, so that equal views give equal plans in all peers; SWARM's break ties
    with a stream of their own per peer.
    """
    if router_kind(name).name in SWARMS:
        from gwtf_p2p.protocol.routers.swarm import SwarmConfig, SwarmRouter

        assert isinstance(config, SwarmConfig)
        return SwarmRouter(config, _own_seed(seed, me))
    if name == "greedy":
        from gwtf_p2p.protocol.routers.greedy import GreedyRouter, HopConfig

        assert isinstance(config, HopConfig)
        return GreedyRouter(config)
    if name == "random":
        from gwtf_p2p.protocol.routers.greedy import HopConfig
        from gwtf_p2p.protocol.routers.random import RandomRouter

        assert isinstance(config, HopConfig)
        return RandomRouter(Random(_own_seed(seed, me)), config)
    if name == "negotiated":
        from gwtf_p2p.protocol.negotiation.negotiator import NegotiationConfig
        from gwtf_p2p.protocol.routers.negotiated import NegotiatedRouter

        assert isinstance(config, NegotiationConfig)
        return NegotiatedRouter(me, config, Random(_own_seed(seed, me)))
    if name == "optimal":
        from gwtf_p2p.protocol.routers.optimal import optimal_router

        return optimal_router(me)
    if name == "gwtf":
        return _planning(config, seed, me)
    raise _forgotten(name, "make_router")


def _planning(config: RouterSettings, seed: int, me: PeerId) -> Router:
    from gwtf_p2p.protocol.routers.gwtf import GwtfConfig, GwtfRouter

    assert isinstance(config, GwtfConfig)
    if config.cost == "iteration":
        from gwtf_p2p.protocol.routers.gwtf_iteration import IterationRouter

        return IterationRouter(me, seed)
    return GwtfRouter(me)


def _forgotten(name: str, function: str) -> LocalProtocolError:
    return LocalProtocolError(f"router {name} has a line in KINDS and no branch in {function} (protocol/routers/factory.py)")


def _own_seed(seed: int, me: PeerId) -> int:
    return int.from_bytes(sha256(f"{seed}/{me}".encode()).digest()[:8])


def configure(name: str, settings: Mapping[str, str], flag: str = "--router") -> RouterSettings:
    """The default settings with some fields changed. Raises InputError that names the flag, the field and what it takes."""
    config: Any = default_config(name)
    kinds = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    changes: dict[str, object] = {}
    for field, text in settings.items():
        where = f"{flag} {name}"
        if field not in kinds:
            raise InputError(where, field, f"unknown setting, expected one of {', '.join(kinds)}")
        changes[field] = _parse(text, kinds[field], where, field)
    try:
        configured: RouterSettings = replace(config, **changes)
        return configured
    except ValueError as error:
        raise InputError(f"{flag} {name}", "", str(error)) from error


def _parse(text: str, kind: type, where: str, field: str) -> object:
    if kind is bool:
        if text not in ("true", "false"):
            raise InputError(where, field, f"expected true or false, got {text!r}")
        return text == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise InputError(where, field, f"expected {'a whole number' if kind is int else 'a number'}, got {text!r}") from error
