"""Who may take part in a run: its record says it, and what its owner and the owner's admins have ordered since.

In this order: nobody shuts out the owner. Whom the owner bans is out, whom the owner allows is in, whatever admins say. Then a
ban by any admin counts, then an admin's allowance; admins are no subject of each other's orders. Whoever is not spoken of is
in, unless the run is `listed` and does not list it. Who has been banned gives no orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.signed import EntryTerms, Order


@dataclass(frozen=True, slots=True)
class Entry:
    """As one peer knows it. `orders` has the newest order of each issuer."""

    terms: EntryTerms = field(default_factory=EntryTerms)
    orders: Mapping[PeerId, Order] = field(default_factory=lambda: MappingProxyType({}))

    def after(self, orders: Iterable[Order]) -> Entry:
        """With these, where they are newer; what is of another run, or of nobody who has a say, is passed over."""
        known = dict(self.orders)
        for order in orders:
            held = known.get(order.issuer)
            has_a_say = order.run_id == self.terms.run_id and order.issuer in self.terms.issuers
            if has_a_say and (held is None or order.sequence_number > held.sequence_number):
                known[order.issuer] = order
        return replace(self, orders=MappingProxyType(known)) if known != self.orders else self

    def banning(self, issuer: PeerId, peers: Iterable[PeerId], sequence_number: int) -> Order:
        """The issuer's next order, which bans these peers as well. `sequence_number`: at least so high."""
        former = self._former(issuer)
        banned = tuple(dict.fromkeys((*former.banned, *peers)))
        allowed = tuple(peer for peer in former.allowed if peer not in banned)
        return replace(former, sequence_number=max(former.sequence_number + 1, sequence_number), banned=banned, allowed=allowed)

    def allowing(self, issuer: PeerId, peers: Iterable[PeerId], sequence_number: int) -> Order:
        """The issuer's next order, which allows these peers. Who is in without being named is not named."""
        out = set(peers)
        former = self._former(issuer)
        former = replace(former, banned=tuple(peer for peer in former.banned if peer not in out))
        without = replace(self, orders={**self.orders, issuer: former})
        named = (peer for peer in peers if without.refusal(peer))
        allowed = tuple(dict.fromkeys((*former.allowed, *named)))
        return replace(former, sequence_number=max(former.sequence_number + 1, sequence_number), allowed=allowed)

    def refusal(self, peer: PeerId) -> str:
        """Why a peer may not take part; empty if it may."""
        terms = self.terms
        if peer == terms.owner:
            return ""
        owners = self.orders.get(terms.owner)
        if owners is not None and peer in owners.banned:
            return "banned by the run's owner"
        if owners is not None and peer in owners.allowed:
            return ""
        by_admins = self._by_admins() if peer not in terms.admins else ()
        for order in by_admins:
            if peer in order.banned:
                return f"banned by the admin {order.issuer}"
        if terms.admission != "listed" or peer in terms.members or peer in terms.admins:
            return ""
        return "" if any(peer in order.allowed for order in by_admins) else "not on the list of the run's owner"

    @property
    def spoken_of(self) -> frozenset[PeerId]:
        """Everybody whom an order names."""
        return frozenset(peer for order in self.orders.values() for peer in (*order.banned, *order.allowed))

    @property
    def banned(self) -> Mapping[PeerId, str]:
        """Everybody who is banned, sorted, and by whom."""
        return {peer: why for peer in sorted(self.spoken_of) if (why := self.refusal(peer)).startswith("banned")}

    def visible(self, view: NetworkView) -> NetworkView:
        """The records of those that may take part."""
        if self.terms.admission != "listed" and not self.orders:
            return view
        out = [peer for peer in view.records if self.refusal(peer)]
        return view.without(out) if out else view

    def _former(self, issuer: PeerId) -> Order:
        return self.orders.get(issuer, Order(self.terms.run_id, issuer, 0))

    def _by_admins(self) -> tuple[Order, ...]:
        """Of admins that the owner has not banned, by id."""
        owners = self.orders.get(self.terms.owner)
        out = owners.banned if owners is not None else ()
        return tuple(order for issuer, order in sorted(self.orders.items()) if issuer != self.terms.owner and issuer not in out)
