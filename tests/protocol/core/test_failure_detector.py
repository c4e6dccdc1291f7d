"""Who may be planned with: a peer that is back, once a record says so."""

from __future__ import annotations

from dataclasses import replace

from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.core.failure_detector import Liveness
from gwtf_p2p.protocol.effects import Effect
from gwtf_p2p.protocol.events import CheckAnswered
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from tests.protocol.schedule.test_search import record

OTHER = PeerId("r")


def test_a_peer_that_answers_again_serves_when_it_has_published_again() -> None:
    liveness, out = Liveness(PeerId("d"), Timings()), list[Effect]()
    old = record("r", 1, 1)
    liveness.observe_view(NetworkView.of([old], 1, 1000), out)
    liveness.declare_lost(OTHER, 1.0, out)
    assert liveness.lost == {OTHER} and not liveness.back
    assert liveness.answered(CheckAnswered(OTHER, frozenset(), 0.1), 2.0), "its program has been started again"
    assert not liveness.lost and liveness.back == {OTHER}, "its old record still says that it is online"
    liveness.observe_view(NetworkView.of([replace(old, sequence_number=old.sequence_number + 1)], 1, 1000), out)
    assert not liveness.back


def test_a_lost_peer_whose_new_record_has_come_serves_as_soon_as_it_answers() -> None:
    liveness, out = Liveness(PeerId("d"), Timings()), list[Effect]()
    old = record("r", 1, 1)
    liveness.observe_view(NetworkView.of([old], 1, 1000), out)
    liveness.declare_lost(OTHER, 1.0, out)
    liveness.observe_view(NetworkView.of([replace(old, sequence_number=old.sequence_number + 1)], 1, 1000), out)
    liveness.answered(CheckAnswered(OTHER, frozenset(), 0.1), 2.0)
    assert not liveness.lost and not liveness.back
