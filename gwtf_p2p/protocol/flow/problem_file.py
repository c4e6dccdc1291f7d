"""The problem file of `gwtf plan`, checked field by field. Pure: the caller reads the file.

    {"name", "stages": S,
     "peers": [{"id", "role": "data", "stage": 0, "demand": n, "compute_s"?}
               | {"id", "role": "stage", "stage": 1..S, "capacity": n, "compute_s"?}],
     "links": [{"from", "to", "cost"} | {"from", "to", "latency_s", "bandwidth_bytes_per_s"}],
     "microbatch_bytes"?}

A link leads from a peer to one of the next stage (stage S to the data peers) and serves both passes. One with `cost` is used
as it is, in integer microseconds. One with latency and bandwidth is priced by `costs.hop_cost_us`; its reverse direction may
be listed too, else both directions are taken to be alike. Every mistake raises InputError that names the file, the field and
what was expected; unknown fields are mistakes too, because a misspelt optional field would otherwise go unseen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.flow.min_cost import NO_ARC, IntArray
from gwtf_p2p.protocol.flow.problem import MAX_CAPACITY, MAX_COST_US, MAX_STAGES, DataPeer, Problem, StagePeer
from gwtf_p2p.protocol.ids import OLDER_ROLES, ROLES, PeerId
from gwtf_p2p.protocol.view.hop_cost import hop_cost_us

_TOP = ({"name", "stages", "peers", "links"}, {"microbatch_bytes"})
_DATA = ({"id", "role", "stage", "demand"}, {"compute_s"})
_STAGE_PEER = ({"id", "role", "stage", "capacity"}, {"compute_s"})
_COST_LINK = ({"from", "to", "cost"}, {"latency_s", "bandwidth_bytes_per_s"})
_TIMED_LINK = ({"from", "to", "latency_s", "bandwidth_bytes_per_s"}, set[str]())


@dataclass(frozen=True, slots=True)
class _Peer:
    """One entry of `peers`; `flows` is its demand or capacity."""

    peer: PeerId
    stage: int
    flows: int
    compute_s: float


@dataclass(frozen=True, slots=True)
class _TimedLink:
    latency_s: float
    bandwidth_bytes_per_s: float


def parse_problem(text: str, where: str) -> Problem:
    """`where` names the file in messages. Raises InputError at the first mistake."""
    reader = _Reader(where)
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(where, "", f"expected JSON, but {error}") from error
    top = reader.fields(plain, "", _TOP)
    name = reader.text(top, "", "name")
    stages = reader.whole(top, "", "stages", (1, MAX_STAGES))
    peers = _peers(reader, top, stages)
    layers: list[list[_Peer]] = [[] for _ in range(stages + 2)]
    for peer in sorted(peers.values(), key=lambda p: p.peer):
        layers[peer.stage].append(peer)
    layers[stages + 1] = layers[0]
    if not layers[0]:
        reader.fail("peers", 'expected at least one peer with role "data"')
    costs = _Links(reader, top, layers, peers).read()
    data = tuple(DataPeer(p.peer, p.flows) for p in layers[0])
    stage_peers = tuple(tuple(StagePeer(p.peer, p.flows) for p in layer) for layer in layers[1:-1])
    return Problem(name, data, stage_peers, costs)


def _peers(reader: _Reader, top: Mapping[str, Any], stages: int) -> dict[PeerId, _Peer]:
    peers: dict[PeerId, _Peer] = {}
    for n, plain in enumerate(reader.items(top, "", "peers")):
        at = f"peers[{n}]"
        role = plain.get("role") if isinstance(plain, dict) else None
        role = OLDER_ROLES.get(role, role) if isinstance(role, str) else role
        if isinstance(plain, dict) and "role" in plain and role not in ROLES:
            reader.fail(f"{at}.role", f'expected "data" or "stage", got {role!r:.40}')
        entry = reader.fields(plain, at, _DATA if role == "data" else _STAGE_PEER)
        peer = PeerId(reader.text(entry, at, "id"))
        if peer in peers:
            reader.fail(f"{at}.id", f"expected each peer once, {peer!r} is listed again")
        stage = reader.whole(entry, at, "stage", (0, 0) if role == "data" else (1, stages))
        flows = reader.whole(entry, at, "demand" if role == "data" else "capacity", (0, MAX_CAPACITY))
        compute_s = reader.number(entry, at, "compute_s") if "compute_s" in entry else 0.0
        peers[peer] = _Peer(peer, stage, flows, compute_s)
    return peers


class _Links:
    """Turns `links` into one cost matrix per pair of neighbouring layers."""

    def __init__(
        self, reader: _Reader, top: Mapping[str, Any], layers: list[list[_Peer]], peers: Mapping[PeerId, _Peer]
    ) -> None:
        self._reader, self._top, self._peers = reader, top, peers
        self._stages = len(layers) - 2
        self._index = {p.peer: i for layer in layers[:-1] for i, p in enumerate(layer)}
        sizes = [len(layer) for layer in layers]
        self._costs: tuple[IntArray, ...] = tuple(np.full((a, b), NO_ARC, dtype=np.int64) for a, b in pairwise(sizes))
        self._timed: dict[tuple[PeerId, PeerId], _TimedLink] = {}
        self._seen: set[tuple[PeerId, PeerId]] = set()

    def read(self) -> tuple[IntArray, ...]:
        where_of: dict[tuple[PeerId, PeerId], str] = {}
        for n, plain in enumerate(self._reader.items(self._top, "", "links")):
            pair = self._read_link(plain, f"links[{n}]")
            where_of[pair] = f"links[{n}]"
        if self._timed:
            microbatch_bytes = self._reader.whole(self._top, "", "microbatch_bytes", (0, 1 << 50))
            for pair in self._timed:
                if self._is_onward(pair):
                    self._set_cost(pair, self._timed_cost_us(pair, microbatch_bytes), where_of[pair])
        elif "microbatch_bytes" in self._top:
            self._reader.whole(self._top, "", "microbatch_bytes", (0, 1 << 50))
        return self._costs

    def _read_link(self, plain: Any, at: str) -> tuple[PeerId, PeerId]:
        reader = self._reader
        has_cost = isinstance(plain, dict) and "cost" in plain
        entry = reader.fields(plain, at, _COST_LINK if has_cost else _TIMED_LINK)
        pair = self._known(entry, at, "from"), self._known(entry, at, "to")
        if pair in self._seen:
            reader.fail(at, f"expected each link once, {pair[0]!r} to {pair[1]!r} is listed again")
        self._seen.add(pair)
        onward, reverse = self._is_onward(pair), self._is_onward((pair[1], pair[0]))
        if not onward and (has_cost or not reverse):
            stages = [self._peers[p].stage for p in pair]
            reader.fail(f"{at}.to", f"expected a peer of the stage after {stages[0]}, got {pair[1]!r} of stage {stages[1]}")
        if has_cost:
            self._set_cost(pair, reader.whole(entry, at, "cost", (0, MAX_COST_US)), f"{at}.cost")
        else:
            bandwidth = reader.number(entry, at, "bandwidth_bytes_per_s")
            if bandwidth == 0:
                reader.fail(f"{at}.bandwidth_bytes_per_s", "expected a number above 0, got 0")
            self._timed[pair] = _TimedLink(reader.number(entry, at, "latency_s"), bandwidth)
        return pair

    def _known(self, entry: Mapping[str, Any], at: str, key: str) -> PeerId:
        peer = PeerId(self._reader.text(entry, at, key))
        if peer not in self._peers:
            self._reader.fail(f"{at}.{key}", f"expected the id of a listed peer, got {peer!r}")
        return peer

    def _is_onward(self, pair: tuple[PeerId, PeerId]) -> bool:
        sender, receiver = (self._peers[p].stage for p in pair)
        return receiver == (sender + 1 if sender < self._stages else 0)

    def _set_cost(self, pair: tuple[PeerId, PeerId], cost_us: int, at: str) -> None:
        if cost_us > MAX_COST_US:
            self._reader.fail(at, f"expected a cost of at most {MAX_COST_US} microseconds, got {cost_us}")
        layer = self._peers[pair[0]].stage
        self._costs[layer][self._index[pair[0]], self._index[pair[1]]] = cost_us

    def _timed_cost_us(self, pair: tuple[PeerId, PeerId], microbatch_bytes: int) -> int:
        forth = self._timed[pair]
        back = self._timed.get((pair[1], pair[0]), forth)
        return hop_cost_us(
            (self._peers[pair[0]].compute_s, self._peers[pair[1]].compute_s),
            (forth.latency_s, back.latency_s),
            (forth.bandwidth_bytes_per_s, back.bandwidth_bytes_per_s),
            microbatch_bytes,
        )


class _Reader:
    """Typed access to plain JSON values; every failure names its field."""

    def __init__(self, where: str) -> None:
        self._where = where

    def fail(self, field: str, expected: str) -> NoReturn:
        raise InputError(self._where, field, expected)

    def fields(self, value: Any, at: str, known: tuple[set[str], set[str]]) -> dict[str, Any]:
        """`value` as an object with all required and no unknown fields."""
        if not isinstance(value, dict):
            self.fail(at, f"expected an object, got {_kind(value)}")
        required, optional = known
        missing, unknown = sorted(required - value.keys()), sorted(value.keys() - required - optional)
        if missing:
            self.fail(_join(at, missing[0]), "expected this field, it is missing")
        if unknown:
            self.fail(_join(at, unknown[0]), f"expected only the fields {', '.join(sorted(required | optional))}")
        return value

    def items(self, entry: Mapping[str, Any], at: str, key: str) -> list[Any]:
        value = entry[key]
        if not isinstance(value, list):
            self.fail(_join(at, key), f"expected a list, got {_kind(value)}")
        return value

    def text(self, entry: Mapping[str, Any], at: str, key: str) -> str:
        value = entry[key]
        if not isinstance(value, str) or not value:
            self.fail(_join(at, key), f"expected a text that is not empty, got {_kind(value)}")
        return value

    def whole(self, entry: Mapping[str, Any], at: str, key: str, bounds: tuple[int, int]) -> int:
        low, high = bounds
        if key not in entry:
            self.fail(_join(at, key), "expected this field, it is missing")
        value = entry[key]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            wanted = str(low) if low == high else f"a whole number from {low} to {high}"
            self.fail(_join(at, key), f"expected {wanted}, got {_shown(value)}")
        return value

    def number(self, entry: Mapping[str, Any], at: str, key: str) -> float:
        value = entry[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(_join(at, key), f"expected a number of at least 0, got {_shown(value)}")
        if not (value >= 0 and value <= 1e15 and math.isfinite(value)):
            self.fail(_join(at, key), f"expected a finite number of at least 0, got {_shown(value)}")
        return float(value)


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _kind(value: Any) -> str:
    if value is None or isinstance(value, (bool, str)):
        return _shown(value)
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else "a number"


def _shown(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
