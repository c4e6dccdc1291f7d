"""What an auditor gathers and computes belongs to a job that is under way, or is let go."""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.wire.audit_messages import AuditOrder
from tests.protocol.audit.test_convictions import DIGESTS, HOP, PROOF, bystander, sworn
from tests.protocol.peers import D, Driven


def ordered() -> Driven:
    driven = bystander()
    driven.handle(ev.Received(D, AuditOrder(HOP, PROOF, sworn())))
    assert driven.did(ef.Gather)
    return driven


def test_tensors_that_come_when_the_job_has_ended_are_let_go() -> None:
    driven = bystander()
    driven.handle(ev.Gathered(HOP, DIGESTS))
    assert [drop.microbatch for drop in driven.did(ef.DropGathered)] == [HOP.microbatch]


def test_nothing_compared_is_no_finding() -> None:
    driven = ordered()
    driven.handle(ev.Gathered(HOP, DIGESTS))
    driven.handle(ev.Computed(ev.Work.AUDIT, HOP.microbatch, 0.0))
    assert not driven.did(ef.Sign) and driven.did(ef.DropGathered)
