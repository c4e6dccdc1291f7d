"""Who may take part: the owner's word, then a ban by an admin, then an allowance, then the run record's own list."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.trust.entry import Entry
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.messages import Verdict
from gwtf_p2p.protocol.wire.records import PeerState
from gwtf_p2p.protocol.wire.signed import EntryTerms, Order
from tests.protocol.peers import A2, B2, D2, A, B, D, Driven, in_step, microbatch, record

OWNER, ADMIN, OTHER_ADMIN, X = PeerId("owner"), PeerId("admin"), PeerId("other_admin"), PeerId("x")
RUN = RunId("r")
TERMS = EntryTerms(RUN, OWNER, (ADMIN, OTHER_ADMIN))
LISTED = replace(TERMS, admission="listed", members=(A,))


def order(issuer: PeerId = OWNER, number: int = 1, ban: tuple[PeerId, ...] = (), allow: tuple[PeerId, ...] = ()) -> Order:
    return Order(RUN, issuer, number, ban, allow)


@pytest.mark.parametrize(
    ("terms", "orders", "is_in"),
    [
        (TERMS, [], True),
        (TERMS, [order(ban=(X,))], False),
        (TERMS, [order(ban=(X,)), order(number=2)], True),
        (TERMS, [order(number=2, ban=(X,)), order(number=1)], False),
        (TERMS, [order(ADMIN, ban=(X,))], False),
        (TERMS, [order(ADMIN, ban=(X,)), order(allow=(X,))], True),
        (TERMS, [order(ADMIN, allow=(X,)), order(OTHER_ADMIN, ban=(X,))], False),
        (TERMS, [order(ADMIN, ban=(X,)), order(ban=(ADMIN,))], True),
        (TERMS, [order(X, ban=(X,)), order(B, ban=(X,))], True),
        (TERMS, [Order(RunId("other"), OWNER, 1, (X,))], True),
        (LISTED, [], False),
        (LISTED, [order(allow=(X,))], True),
        (LISTED, [order(ADMIN, allow=(X,))], True),
        (LISTED, [order(ADMIN, allow=(X,)), order(ban=(ADMIN,))], False),
        (replace(LISTED, members=(X,)), [], True),
        (replace(LISTED, members=(X,)), [order(ADMIN, ban=(X,))], False),
    ],
)
def test_who_is_in(terms: EntryTerms, orders: list[Order], is_in: bool) -> None:
    assert (not Entry(terms).after(orders).refusal(X)) == is_in
    assert (not Entry(terms).after(reversed(orders)).refusal(X)) == is_in, "in whatever order they come"


def test_nobody_shuts_out_the_owner_and_admins_not_each_other() -> None:
    entry = Entry(LISTED).after([order(ADMIN, ban=(OWNER, OTHER_ADMIN)), order(ban=(OWNER,))])
    assert not entry.refusal(OWNER) and not entry.refusal(OTHER_ADMIN)
    assert not entry.banned


def under_orders(driven: Driven, *orders: Order) -> None:
    driven.machine.gate.entry = Entry(TERMS)
    driven.handle(ev.Ordered(orders))


def test_a_banned_peer_loses_its_connections_and_what_it_holds_is_done_by_others() -> None:
    driven = in_step()
    driven.sees([record(D), record(A), record(B), record(B2)])
    driven.is_accepted(driven.hands_on(microbatch(), D, (7, 0), (B,)))
    under_orders(driven, order(ban=(B,)))
    assert [bar.peer for bar in driven.did(ef.Bar)] == [B]
    assert driven.machine.ctx.view is not None and B not in driven.machine.ctx.view.records
    assert driven.pushed().to == B2
    assert driven.reported("peer_banned") == [{"peer": B, "reason": "banned by the run's owner"}]


def test_nothing_is_heard_from_a_banned_peer_until_it_is_allowed_again() -> None:
    driven = in_step()
    driven.sees([record(D), record(D2), record(A)])
    under_orders(driven, order(ban=(D2,)))
    offer = msg.Forward(microbatch(of=D2), (7, 0), Stage(1))
    driven.handle(ev.Offered(D2, offer))
    assert driven.verdict()[0] is Verdict.REFUSED
    assert driven.hears(D2, msg.Inquire(0, 5)) == []
    driven.sees([record(D), record(D2), record(A), record(A2)])
    assert driven.machine.ctx.view is not None and D2 not in driven.machine.ctx.view.records
    driven.handle(ev.Ordered((order(number=2),)))
    assert driven.machine.ctx.view is not None
    assert [(bar.peer, bar.seconds) for bar in driven.did(ef.Bar)] == [(D2, 0.0)]
    assert D2 in driven.machine.ctx.view.records, "as it was seen last, without waiting for another look"
    driven.handle(ev.Offered(D2, offer))
    assert driven.verdict()[0] is Verdict.ACCEPTED


def test_who_is_allowed_again_but_was_convicted_of_wrong_work_is_not_heard() -> None:
    driven = in_step()
    driven.sees([record(D), record(D2), record(A)])
    under_orders(driven, order(ban=(D2,)))
    driven.machine.ctx.bars.convict(D2)
    driven.handle(ev.Ordered((order(number=2),)))
    assert driven.did(ef.Bar) == [] and driven.machine.ctx.bars.is_barred(D2, 1e12)


def test_orders_that_have_been_heard_and_those_of_others_change_nothing() -> None:
    driven = in_step()
    driven.sees([record(D), record(A), record(B, PeerState.ONLINE)])
    under_orders(driven, order(ban=(X,)))
    for again in (order(ban=(X,)), order(number=0), order(B, 9, ban=(D,)), Order(RunId("other"), OWNER, 9, (B,))):
        assert driven.handle(ev.Ordered((again,))) == []
