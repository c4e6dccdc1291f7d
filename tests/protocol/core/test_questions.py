"""How long a suspected peer has for an answer: by what others take, and by how far it is."""

from __future__ import annotations

from dataclasses import replace

from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.core.questions import CHECK_PRIOR_S, LEAST_DEADLINE_S, ROUND_TRIPS, ROUNDS, Questions
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource
from tests.protocol.schedule.test_search import record

ME, NEAR, FAR = PeerId("me"), PeerId("near"), PeerId("far")


def asking() -> Questions:
    """One whose near peers answer in ten milliseconds."""
    questions = Questions(ME, Timings())
    for now in range(4):
        questions.answered(NEAR, 0.01, float(now))
    return questions


def deadlines_s(questions: Questions, peer: PeerId) -> list[float]:
    """Of both rounds."""
    first, again = questions.ask(peer, "late", 9.0, ()), questions.ask_again(peer)
    assert first is not None and again is not None
    questions.end(peer)
    return [first.deadline_s, again.deadline_s]


def test_how_far_a_peer_is_that_has_not_answered_yet_is_not_told_by_the_others() -> None:
    """A round trip of 1.2 s, as through a circuit relay, would be a loss if it had as long as they."""
    assert deadlines_s(asking(), FAR) == [CHECK_PRIOR_S, 2 * CHECK_PRIOR_S]
    assert deadlines_s(asking(), NEAR) == [LEAST_DEADLINE_S, 2 * LEAST_DEADLINE_S]


def test_one_that_has_answered_is_as_far_as_its_quickest_answer() -> None:
    questions = asking()
    questions.answered(FAR, 1.2, 5.0)
    assert deadlines_s(questions, FAR)[0] == ROUND_TRIPS * 1.2
    questions.answered(FAR, 0.3, 6.0)
    questions.answered(FAR, 2.5, 7.0)  # its machine was busy
    assert deadlines_s(questions, FAR)[0] == ROUND_TRIPS * 0.3
    assert questions.ask_lost(FAR).deadline_s == ROUND_TRIPS * 0.3 * 2 ** (ROUNDS - 1)


def test_a_measured_link_says_more_than_answers_do() -> None:
    questions = asking()
    questions.answered(FAR, 1.2, 5.0)
    link = LinkMeasurement(FAR, 0.2, 1e6, LinkSource.PROBE, 1, 0.0)
    questions.observe_view(NetworkView.of([replace(record("me", 0, 1), links=(link,)), record("far", 1, 1)], 1, 1000))
    assert deadlines_s(questions, FAR)[0] == ROUND_TRIPS * 0.2
