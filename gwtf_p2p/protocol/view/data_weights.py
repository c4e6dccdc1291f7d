"""Whose embedding and head somebody takes that is no member of the run: from which data peers, of which position.

A position is (epoch, version). One record must not say alone how far a run is: the position that counts is the furthest that at
least half of the data peers have reached. Where it cannot be had, for they may be at the step just now, those below it are
tried, the furthest first. Only who is at a position is asked for it: further peers may have kept it or not.
"""

from __future__ import annotations

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView

Position = tuple[int, int]


def positions_to_take(view: NetworkView) -> tuple[tuple[Position, tuple[PeerId, ...]], ...]:
    """(position, the data peers at it, by id), in the order in which they are to be tried; empty when nobody is online."""
    at: dict[Position, list[PeerId]] = {}
    for peer in view.data_peers:
        record = view.records[peer]
        at.setdefault((record.epoch, record.weights_version), []).append(peer)
    found, reached = [], 0
    for position in sorted(at, reverse=True):
        reached += len(at[position])
        if 2 * reached >= len(view.data_peers):
            found.append((position, tuple(at[position])))
    return tuple(found)
