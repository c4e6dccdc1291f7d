"""The example that drives a stage peer by hand does what its page says: the microbatch is taken, computed, and handed back."""

from __future__ import annotations

from examples.one_machine import ANN, story
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.wire.messages import Backward, Forward, Verdict


def test_one_microbatch_goes_through_a_machine() -> None:
    told = story()
    effects = [effect for _, answered in told for effect in answered]
    assert [e.verdict for e in effects if isinstance(e, ef.Answer)] == [Verdict.ACCEPTED, Verdict.ACCEPTED]
    assert [e.work for e in effects if isinstance(e, ef.Compute)] == [ev.Work.FORWARD, ev.Work.BACKWARD]
    pushes = [e for e in effects if isinstance(e, ef.Push)]
    assert [(type(e.message), e.to) for e in pushes] == [(Forward, ANN), (Backward, ANN)]
