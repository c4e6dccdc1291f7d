"""The orders of a run's owner and admins as a peer has them: on its disk, and to pass on, each as its issuer has signed it."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from gwtf_p2p.live.discovery.signing import opened, sign
from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.entry import Entry
from gwtf_p2p.protocol.wire.signed import ORDER, EntryTerms, Order, decode_order

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
MOST_ORDERS = 64
"""Orders that are remembered, so that a signature is checked once."""


@dataclass(frozen=True, slots=True)
class SignedOrder:
    """An order, and the bytes by which anybody can see whose it is."""

    order: Order
    signed: bytes


def give(identity: Identity, order: Order) -> SignedOrder:
    """The order as this identity's. Raises ValueError when it is too large."""
    assert order.issuer == identity.peer_id, "nobody would believe an order that another one has signed"
    return SignedOrder(order, sign(identity, ORDER, order))


def read_order(data: bytes, issuer: PeerId | None = None) -> SignedOrder:
    """`issuer`: of no other; what another one has signed costs no check of its signature. Raises RemoteProtocolError for what
    its issuer has not signed, or is no order; OtherWireVersion."""
    signer, body = opened(data, ORDER, issuer)
    return SignedOrder(decode_order(body, signer), data)


class KnownOrders:
    """Orders as they are read from the DHT: the same bytes come from everybody who passes them on, again and again."""

    def __init__(self) -> None:
        self._read: dict[bytes, SignedOrder] = {}

    def __len__(self) -> int:
        return len(self._read)

    def read(self, issuer: PeerId, publisher: PeerId, data: bytes) -> SignedOrder:
        """What another one than the issuer has signed is neither checked nor remembered. Raises RemoteProtocolError."""
        known = self._read.get(data)
        if known is None:
            known = read_order(data, issuer)
            self._read[data] = known
            if len(self._read) > MOST_ORDERS:
                del self._read[next(iter(self._read))]
        return known


class OrderBook:
    """Of one peer in one run: the newest order of each that has a say. What others have no say in is passed over."""

    def __init__(self, identity: Identity, terms: EntryTerms) -> None:
        self.path = identity.path.with_suffix(".runs") / f"{terms.run_id}.orders.json"
        self.terms = terms
        self._newest: dict[PeerId, SignedOrder] = {}
        self._take(self._read())

    @property
    def entry(self) -> Entry:
        """Who may take part."""
        return Entry(self.terms).after(signed.order for signed in self.newest)

    @property
    def newest(self) -> tuple[SignedOrder, ...]:
        """One of each issuer, by id."""
        return tuple(self._newest[issuer] for issuer in sorted(self._newest))

    def hear(self, orders: Iterable[SignedOrder]) -> bool:
        """Take and keep those that are news; whether there were any."""
        if not self._take(orders):
            return False
        draft = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps([base64.b64encode(signed.signed).decode() for signed in self.newest], indent=1))
            draft.replace(self.path)
        except OSError as error:
            logger.warning("%s: orders are not kept here: %s", self.path, error)
        return True

    def _take(self, orders: Iterable[SignedOrder]) -> bool:
        is_news = False
        for signed in orders:
            order, held = signed.order, self._newest.get(signed.order.issuer)
            has_a_say = order.run_id == self.terms.run_id and order.issuer in self.terms.issuers
            if has_a_say and (held is None or order.sequence_number > held.order.sequence_number):
                self._newest[order.issuer] = signed
                is_news = True
        return is_news

    def _read(self) -> list[SignedOrder]:
        try:
            with self.path.open("rb") as file:
                plain = json.loads(file.read(MOST_BYTES))
            if not isinstance(plain, list):
                raise RemoteProtocolError("no list of orders")
            return [read_order(base64.b64decode(str(text), validate=True)) for text in plain]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError, RemoteProtocolError) as error:
            logger.warning("%s is passed over: %s", self.path, error)
            return []
