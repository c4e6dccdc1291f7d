"""Who is convicted, and by what: two signed findings against one peer, about the same bytes, on a hop that is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.audit import texts
from gwtf_p2p.protocol.audit.convictions import MOST_UNJUDGED, PASSED_OVER
from gwtf_p2p.protocol.audit.draw import in_order, is_drawn
from gwtf_p2p.protocol.audit.judge import agrees, difference, loser
from gwtf_p2p.protocol.audit.texts import draw_text, finding_text
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire import audit_messages as audit
from gwtf_p2p.protocol.wire.audit_messages import Conviction, Digests, Finding, Hop
from gwtf_p2p.protocol.wire.messages import Complete
from gwtf_p2p.protocol.wire.run_parts import AuditTerms, ToleranceSpec
from gwtf_p2p.simulation.world.audits import is_signed, signature_of
from tests.protocol.peers import A2, A, B, D, Driven, microbatch, record, stage_peer, view

A3, A4 = PeerId("one_2"), PeerId("one_3")
HOP = Hop(microbatch(), Stage(1), A2, D, B)
DIGESTS = Digests("x", "y", "gy", "gx")
PROOF = signature_of(D, draw_text(0, HOP.microbatch))


def sworn(hop: Hop = HOP, digests: Digests = DIGESTS, by: PeerId = A2) -> audit.Testimony:
    said = audit.Testimony(hop, digests, "")
    return replace(said, signature=signature_of(by, texts.testimony_text(said)))


def finding(auditor: PeerId, good: bool = False, about: audit.Testimony | None = None) -> Finding:
    said = Finding(about or sworn(), auditor, good, 0.5, 0.5, "")
    return replace(said, signature=signature_of(auditor, finding_text(said)))


def conviction(first: bool = False, second: bool = False) -> Conviction:
    return Conviction(PROOF, finding(A3, first), finding(A4, second))


def bystander(share: float = 1.0) -> Driven:
    """A peer of the stage, to which all of it is told."""
    driven = stage_peer(A)
    driven.machine.ctx.audit, driven.machine.ctx.signed_by = AuditTerms(share), is_signed
    others = [record(A3, stage=1), record(A4, stage=1)]
    driven.handle(ev.ViewChanged(view([D, A, A2, B, *others])))
    return driven


def heard(driven: Driven, said: Conviction) -> set[PeerId]:
    """Who is convicted by it."""
    out = driven.handle(ev.Received(B, said))
    return {PeerId(str(e.fields["peer"])) for e in out if isinstance(e, ef.Report) and e.name == "peer_convicted"}


def test_a_worker_from_whom_two_auditors_differ_is_convicted() -> None:
    assert heard(bystander(), conviction()) == {A2}


def test_an_auditor_that_differs_from_worker_and_auditor_alike_is_convicted() -> None:
    assert heard(bystander(), conviction(first=False, second=True)) == {A3}
    assert heard(bystander(), conviction(first=True, second=False)) == {A4}


def test_nothing_is_heard_from_a_convicted_peer_any_more() -> None:
    driven = bystander()
    out = driven.handle(ev.Received(B, conviction()))
    assert [e.peer for e in out if isinstance(e, ef.Bar)] == [A2]
    assert driven.machine.ctx.liveness.is_lost(A2)
    driven.now += 1e6
    assert not [e for e in driven.handle(ev.Received(A2, Complete(microbatch(), B, 1.0))) if not isinstance(e, ef.Report)]
    assert driven.machine.ctx.bars.is_barred(A2, driven.now)


def other_bytes() -> Conviction:
    about = sworn(digests=replace(DIGESTS, input="another"))
    return Conviction(PROOF, finding(A3), finding(A4, about=about))


def other_hop() -> Conviction:
    about = sworn(replace(HOP, microbatch=microbatch(1)))
    return Conviction(PROOF, finding(A3, about=about), finding(A4, about=about))


FORGED: dict[str, Callable[[], Conviction]] = {
    "one accuser, twice": lambda: Conviction(PROOF, finding(A3), finding(A3)),
    "the worker against itself": lambda: Conviction(PROOF, finding(A2), finding(A4)),
    "both agree": lambda: conviction(True, True),
    "findings about other bytes": other_bytes,
    "a hop that is not drawn by this proof": other_hop,
    "a proof that another peer has signed": lambda: replace(conviction(), proof=signature_of(B, draw_text(0, HOP.microbatch))),
    "an auditor whose word another has signed": lambda: replace(
        conviction(), second=replace(finding(A4), signature=signature_of(A3, finding_text(finding(A4))))
    ),
    "a finding that was turned round": lambda: replace(conviction(), second=replace(finding(A4, True), agrees=False)),
    "bytes that the worker has not testified to": lambda: Conviction(
        PROOF, finding(A3, about=sworn(by=A3)), finding(A4, about=sworn(by=A3))
    ),
    "an auditor of another stage": lambda: replace(conviction(), second=finding(B)),
    "an auditor that nobody knows": lambda: replace(conviction(), second=finding(PeerId("stranger"))),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_conviction_that_is_not_whole_convicts_nobody(forged: str) -> None:
    assert heard(bystander(), FORGED[forged]()) == set()


def test_a_conviction_is_judged_when_its_auditors_are_known() -> None:
    driven = bystander()
    known = [D, A, A2, B, record(A3, stage=1)]
    driven.handle(ev.ViewChanged(view(known)))
    assert heard(driven, conviction()) == set()
    driven.handle(ev.ViewChanged(view([*known, record(A4, stage=1)])))
    assert [report["peer"] for report in driven.reported("peer_convicted")] == [A2]
    assert driven.machine.ctx.bars.is_barred(A2, driven.now)


def test_what_waits_to_be_judged_has_a_bound() -> None:
    driven = bystander()
    strangers = [PeerId(f"stranger_{i}") for i in range(MOST_UNJUDGED + 10)]
    for stranger in strangers:
        driven.handle(ev.Received(B, Conviction(PROOF, finding(A3), finding(stranger))))
    driven.handle(ev.ViewChanged(view([D, A, A2, B, record(A3, stage=1), record(strangers[0], stage=1)])))
    assert not driven.reported("peer_convicted")
    driven.handle(ev.ViewChanged(view([D, A, A2, B, record(A3, stage=1), record(strangers[-1], stage=1)])))
    assert driven.reported("peer_convicted")


def test_without_audits_in_the_run_nobody_is_convicted() -> None:
    assert heard(bystander(share=0.0), conviction()) == set()


def test_auditors_that_would_not_have_been_asked_convict_nobody() -> None:
    driven = bystander()
    many = [PeerId(f"one_{i}") for i in range(4, 40)]
    driven.handle(ev.ViewChanged(view([D, A, A2, B, record(A3, stage=1), *(record(peer, stage=1) for peer in many)])))
    for ask in driven.did(ef.Ask):
        driven.handle(ev.CheckAnswered(ask.peer, (), 0.01))  # they are there, many as they are
    order = in_order(PROOF, Stage(1), [A, A3, *many])
    last = Conviction(PROOF, finding(order[0]), finding(order[-1]))
    assert heard(driven, last) == set()
    assert heard(driven, Conviction(PROOF, finding(order[0]), finding(order[1 + PASSED_OVER]))) == {A2}


def test_a_single_accuser_never_suffices() -> None:
    for first in (False, True):
        for second in (False, True):
            lost = loser(finding(A3, first), finding(A4, second))
            against = {A3: not first, A4: not second}
            assert lost != A2 or all(against.values())


def test_the_draw_takes_its_share_and_asks_everybody_in_turn() -> None:
    proofs = [signature_of(D, draw_text(0, microbatch(i))) for i in range(4000)]
    drawn = sum(is_drawn(proof, Stage(1), 0.02) for proof in proofs)
    assert 40 < drawn < 130
    assert not any(is_drawn(proof, Stage(1), 0.0) for proof in proofs)
    assert all(is_drawn(proof, Stage(1), 1.0) for proof in proofs)
    firsts = [in_order(proof, Stage(1), [A, A2, A3])[0] for proof in proofs]
    assert min(firsts.count(peer) for peer in (A, A2, A3)) > 1000


@pytest.mark.parametrize(
    ("output", "gradient", "precisions", "good"),
    [
        (2.4e-7, 2.4e-7, ("float32", "float32"), True),
        (1.9e-3, 1.8e-2, ("bfloat16", "float32"), True),
        (1.9e-3, 1.8e-2, ("float32", "bfloat16"), True),
        (1.9e-3, 1.8e-2, ("float32", "float32"), False),
        (1.9e-3, 1.8e-2, ("", "float32"), True),
        (0.0, 1e-1, ("bfloat16", "bfloat16"), False),
        (1.5e-1, 0.0, ("bfloat16", "bfloat16"), False),
        (difference(float("nan")), 0.0, ("bfloat16", "bfloat16"), False),
        (difference(float("inf")), 0.0, ("float32", "float32"), False),
    ],
)
def test_the_coarser_precision_of_two_says_what_they_may_differ_by(
    output: float, gradient: float, precisions: tuple[str, str], good: bool
) -> None:
    assert agrees(output, gradient, precisions, ToleranceSpec()) is good
