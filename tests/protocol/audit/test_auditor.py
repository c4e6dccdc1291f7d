"""What an auditor gathers and computes belongs to a job that is under way, or is let go."""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.audit_messages import AuditOrder
from tests.protocol.audit.test_convictions import DIGESTS, HOP, PROOF, bystander, sworn
from tests.protocol.peers import A2, A, B, D, Driven, microbatch


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


def test_what_is_done_again_waits_while_a_microbatch_is_on_its_way_here_and_not_for_the_average() -> None:
    driven = ordered()
    driven.handle(ev.Started(0, incarnation=7))
    driven.hears(D, msg.Admit(0, data_peers=(D,)))
    mine = microbatch(1)
    driven.handle(ev.Offered(D, msg.Forward(mine, (7, 0), Stage(1), (B,))))
    assert driven.verdict()[0] is msg.Verdict.ACCEPTED
    driven.handle(ev.Gathered(HOP, DIGESTS))
    assert not driven.did(ef.Compute)
    driven.hears(D, msg.Prepare(0, 1, D, Stage(1), (msg.Share(A, ()), msg.Share(A2, (HOP.microbatch,))), data_peers=(D,)))
    assert [compute.work for compute in driven.did(ef.Compute)] == [ev.Work.AUDIT]
