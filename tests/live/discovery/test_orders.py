"""Orders in the DHT are their issuer's, whoever passes them on; what has no say, or is older, is passed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gwtf_p2p.live.discovery.order_book import OrderBook, SignedOrder, give, read_order
from gwtf_p2p.live.discovery.signing import sign
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.signed import EntryTerms, Order
from tests.live.conftest import RUN
from tests.live.discovery.test_dht import StartDht, identities, start  # noqa: F401  fixtures

pytestmark = pytest.mark.live

X = PeerId("Qm" + "x" * 44)


def terms_of(owner: Identity, *admins: Identity) -> EntryTerms:
    return EntryTerms(RUN, owner.peer_id, tuple(admin.peer_id for admin in admins))


def order(issuer: Identity, number: int, *banned: PeerId) -> Order:
    return Order(RUN, issuer.peer_id, number, banned)


async def test_orders_are_read_from_whoever_passes_them_on_and_the_newest_counts(start: StartDht) -> None:  # noqa: F811
    owner, admin, other = await start(), await start(), await start()
    terms = terms_of(owner.identity, admin.identity)
    first, second = (give(owner.identity, order(owner.identity, number, X)) for number in (1, 2))
    by_admin = give(admin.identity, order(admin.identity, 1))
    assert await other.dht.publish_order(second) and await admin.dht.publish_order(first)
    assert await other.dht.publish_order(by_admin)
    assert await owner.dht.read_orders(terms) == sorted([second, by_admin], key=lambda signed: signed.order.issuer)
    await other.dht.publish_order(give(other.identity, order(other.identity, 9, owner.identity.peer_id)))
    forged = order(owner.identity, 9, admin.identity.peer_id)
    lies = [b"\xc1", sign(other.identity, "order", forged), sign(owner.identity, "run", forged)]
    for lie in lies:
        with pytest.raises(RemoteProtocolError):
            read_order(lie)
        await other.dht.publish_order(SignedOrder(forged, lie))
        read = await owner.dht.read_orders(terms)
        assert first in read and by_admin in read and forged not in [signed.order for signed in read]


def test_orders_are_kept_on_the_disk_and_older_ones_do_not_come_back(tmp_path: Path) -> None:
    owner, me = create_identity(tmp_path / "owner.key"), create_identity(tmp_path / "me.key")
    terms = terms_of(owner)
    ban, lifted = give(owner, order(owner, 1, X)), give(owner, order(owner, 2))
    assert OrderBook(me, terms).hear([ban]) and OrderBook(me, terms).entry.banned == {X: "banned by the run's owner"}
    book = OrderBook(me, terms)
    assert not book.hear([ban]) and book.hear([lifted]) and not book.hear([ban])
    assert OrderBook(me, terms).newest == (lifted,) and not book.entry.banned
    assert not book.hear([give(me, order(me, 9, owner.peer_id)), SignedOrder(replace(ban.order, run_id="other"), ban.signed)])  # type: ignore[arg-type]
    for damaged in ("{}", "[", '["AAAA"]'):
        book.path.write_text(damaged)
        assert OrderBook(me, terms).newest == ()


async def test_orders_of_strangers_cost_no_check_and_no_memory(
    start: StartDht,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, other = await start(), await start()
    terms = terms_of(owner.identity)
    forged = order(owner.identity, 9, X)
    await other.dht.publish_order(SignedOrder(forged, sign(other.identity, "order", forged)))
    monkeypatch.setattr("gwtf_p2p.live.discovery.signing.signer_of", lambda *_: pytest.fail("a signature was checked"))
    assert await owner.dht.read_orders(terms) == [] and not len(owner.dht._orders)
    assert owner.dht.dropped["format"] == 1
