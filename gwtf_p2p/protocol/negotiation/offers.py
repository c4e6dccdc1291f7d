"""What a peer lets others know of its paths: offers and prices. In a record, or with the answer to a request.

*Offer*: the cost of its cheapest spare path to a data peer. *Price*: what it would cost another data peer, from this peer on,
if it took over the flow of this peer that gains most by that, less what that flow costs now from its data peer on. So a data
peer that adds its own hop to the price gets what all together would pay more; below 0, all together gain. Prices are told in
stage 1 only, next to the data peers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.side import Side
from gwtf_p2p.protocol.negotiation.slots import Slot


@dataclass(frozen=True, slots=True)
class Advert:
    """What others should know of this peer: see the module docstring."""

    offers: Mapping[str, int]
    prices: Mapping[str, int]


def offers_of(side: Side) -> dict[str, int]:
    """By data peer."""
    slots = side.slots
    if slots.is_sink:
        return {side.me: 0} if slots.room > 0 else {}
    found: dict[str, int] = {}
    for slot in slots.spare():
        found[slot.sink] = min(found.get(slot.sink, side.cost_us(slot)), side.cost_us(slot))
    return dict(sorted(found.items()))


def cheapest_spare(side: Side, sink: PeerId) -> Slot | None:
    """Ties go to the older one."""
    return min((s for s in side.slots.spare() if s.sink == sink), key=side.cost_us, default=None)


def prices_of(side: Side) -> dict[str, int]:
    """By data peer."""
    found: dict[str, int] = {}
    for slot in side.slots.complete():
        for sink, price in _prices(side, slot).items():
            found[sink] = min(found.get(sink, price), price)
    return dict(sorted(found.items()))


def best_to_take(side: Side, sink: PeerId) -> tuple[Slot, int] | None:
    """The flow that `sink` should take over, and its price."""
    priced = [(slot, _prices(side, slot).get(sink)) for slot in side.slots.complete()]
    known = [(slot, price) for slot, price in priced if price is not None]
    return min(known, key=lambda item: item[1], default=None)


def _prices(side: Side, slot: Slot) -> dict[str, int]:
    """Of this flow, if it comes from a data peer."""
    end = slot.inflow
    if end is None or end.peer != slot.sink or end.peer not in side.near.before_us:
        return {}
    now_us = side.near.before_us[end.peer] + side.cost_us(slot)
    return {sink: cost - now_us for sink, cost in side.others_us(slot).items()}
