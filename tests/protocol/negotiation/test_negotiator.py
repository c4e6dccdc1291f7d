"""One side of a negotiation: what it answers, what it gives up, and that its books stay right. Messages are told by hand."""

from __future__ import annotations

from random import Random

import pytest

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.negotiator import Advert, Near, NegotiationConfig, Negotiator
from gwtf_p2p.protocol.wire.messages import ControlMessage, from_header, to_header
from gwtf_p2p.protocol.wire.negotiation_messages import (
    NONE_QUOTED,
    CancelFlow,
    ChangeAnswer,
    CheckFlows,
    FlowAnswer,
    HopEnd,
    NegotiationMessage,
    Passage,
    PathIs,
    PathLost,
    RedirectAnswer,
    RequestChange,
    RequestFlow,
    RequestRedirect,
    UnknownFlows,
    UpstreamIs,
)

D, U, V, W, X = (PeerId(name) for name in "duvwx")
CONFIG = NegotiationConfig(temperature=0.0)


def said(peer: Negotiator) -> list[tuple[PeerId, NegotiationMessage]]:
    for part in peer.parts:
        part.side.slots.check()
    return peer.take_out()


def stage_peer(capacity: int = 2) -> Negotiator:
    """The stage peer `v` between `u` and the data peer `d` (stage 1 of 1 would have d before it, too): hops of 10 and 5."""
    made = Negotiator(V, CONFIG, Random(1), is_data_peer=False)
    made.know(Near({U: 10, X: 12}, {W: 5}, ()), capacity, 0.0)
    assert said(made) == []
    return made


def with_path(made: Negotiator, cost_us: int = 7) -> str:
    """It asks `w` for a path and gets it; the name of the hop."""
    made.hear_advert(W, Advert({D: cost_us}, {}), 1.0)
    [(to, request)] = said(made)
    assert to == W and isinstance(request, RequestFlow) and (request.sink, request.quoted_us) == (D, cost_us)
    made.hear(W, FlowAnswer(request.link, True, D, cost_us), 1.1)
    said(made)
    return request.link


def test_a_path_is_asked_for_offered_and_given_away() -> None:
    made = stage_peer()
    with_path(made)
    assert made.advert().offers == {D: 12}
    made.hear(U, RequestFlow("flow", D, 12), 2.0)
    [(to, answer)] = said(made)
    assert to == U and isinstance(answer, FlowAnswer) and answer.accepted and answer.cost_us == 12
    assert made.advert().offers == {} and answer.offers == {}


def test_a_stale_quote_is_rejected_with_the_true_cost() -> None:
    made = stage_peer()
    with_path(made)
    made.hear(U, RequestFlow("flow", D, 11), 2.0)
    [(_, answer)] = said(made)
    assert isinstance(answer, FlowAnswer) and not answer.accepted and answer.offers == {D: 12}
    assert made.slots.by_in == {}


def test_a_stranger_and_a_second_request_get_nothing() -> None:
    made = stage_peer()
    with_path(made)
    made.hear(PeerId("stranger"), RequestFlow("flow", D, 99), 2.0)
    made.hear(U, RequestFlow("one", D, 12), 2.0)
    made.hear(X, RequestFlow("two", D, 12), 2.0)
    assert [m.accepted for _, m in said(made) if isinstance(m, FlowAnswer)] == [False, True, False]


def test_a_repeated_request_gets_the_same_answer_and_no_second_slot() -> None:
    made = stage_peer()
    with_path(made)
    for _ in range(2):
        made.hear(U, RequestFlow("flow", D, 12), 2.0)
        assert [(m.accepted, m.cost_us) for _, m in said(made) if isinstance(m, FlowAnswer)] == [(True, 12)]
    assert len(made.slots.by_in) == 1


def flowing() -> tuple[Negotiator, str]:
    """`u` uses a path of `v` through `w`; the name of the hop to w."""
    made = stage_peer(capacity=1)
    link = with_path(made)
    made.hear(U, RequestFlow("flow", D, 12), 2.0)
    said(made)
    return made, link


def test_a_cost_travels_upwards_and_an_older_announcement_is_ignored() -> None:
    made, link = flowing()
    made.hear(W, PathIs(link, 2, W, D, 20), 3.0)
    [(to, told)] = said(made)
    assert to == U and isinstance(told, PathIs) and (told.link, told.cost_us) == ("flow", 25)
    made.hear(W, PathIs(link, 1, W, D, 1), 3.0)
    assert said(made) == []


@pytest.mark.parametrize("is_known_again", [False, True])
def test_an_end_that_is_handed_on_after_its_peer_has_gone_is_given_up(is_known_again: bool) -> None:
    """Who hands the hop to x does not know yet that x has left, and nobody tells v a second time."""
    made, _ = flowing()
    made.gone(X, 2.5)
    if is_known_again:
        made.know(Near({U: 10, X: 12}, {W: 5}, ()), 1, 2.7)
    said(made)
    made.hear(U, UpstreamIs("flow", 1, X, D), 3.0)
    answers = [m for to, m in said(made) if to == X]
    assert ("flow" in made.slots.by_in) == is_known_again
    assert [type(answer) for answer in answers] == [PathIs if is_known_again else PathLost]


def test_the_end_of_a_hop_follows_whoever_holds_it() -> None:
    made, _ = flowing()
    made.hear(X, UpstreamIs("flow", 1, X, D), 3.0)
    [(to, told)] = said(made)
    assert to == X and isinstance(told, PathIs) and told.cost_us == 12
    made.hear(U, CancelFlow("flow", 1), 3.0)
    assert "flow" in made.slots.by_in, "u holds it no longer"
    made.hear(X, CancelFlow("flow", 2), 3.0)
    assert made.slots.by_in == {} and made.advert().offers == {D: 12}


def test_a_lost_next_peer_leaves_a_flow_that_is_asked_for_again_and_pushed_back_in_the_end() -> None:
    made, _ = flowing()
    made.gone(W, 4.0)
    assert len(made.slots.pathless()) == 1
    made.know(Near({U: 10, X: 12}, {W: 5}, ()), 1, 5.0)  # it is back
    made.hear_advert(W, Advert({D: 7}, {}), 5.0)
    [(to, request)] = [item for item in said(made) if isinstance(item[1], RequestFlow)]
    assert to == W and isinstance(request, RequestFlow)
    made.hear(W, FlowAnswer(request.link, False, D), 6.0)
    ends: list[NegotiationMessage] = []
    for second in range(7, 40):
        made.tick(float(second))
        for to, message in said(made):
            if isinstance(message, RequestFlow):
                made.hear(to, FlowAnswer(message.link, False, D), float(second))
            elif to == U:
                ends.append(message)
    assert [type(m) for m in ends if not isinstance(m, CheckFlows)] == [PathLost]
    assert not made.slots.by_in


def test_a_lost_peer_before_leaves_a_spare_path_that_is_cancelled_after_a_while() -> None:
    made, link = flowing()
    made.gone(U, 4.0)
    assert made.advert().offers == {D: 12}
    told: list[NegotiationMessage] = []
    for second in range(5, 40):
        made.tick(float(second))
        told += [message for _, message in said(made)]
    assert [m.link for m in told if isinstance(m, CancelFlow)] == [link]
    assert len(made.slots) == 0


def test_an_accept_that_comes_too_late_is_cancelled() -> None:
    made = stage_peer()
    made.hear_advert(W, Advert({D: 7}, {}), 1.0)
    [(_, request)] = said(made)
    assert isinstance(request, RequestFlow)
    made.tick(60.0)
    said(made)
    made.hear(W, FlowAnswer(request.link, True, D, 7), 61.0)
    assert (W, CancelFlow(request.link, 1)) in said(made)
    made.hear(PeerId("sibling"), ChangeAnswer(5, 0, HopEnd("other", X, 3, 2), None, D, 1), 61.0)
    assert (X, CancelFlow("other", 4)) in said(made)


def test_check_flow_drops_what_the_other_end_does_not_know() -> None:
    made, link = flowing()
    made.hear(X, CheckFlows(("flow", "none"), True), 10.0)
    assert said(made) == [(X, UnknownFlows(("flow", "none"), True))], "the flow is u's"
    made.hear(U, CheckFlows(("flow",), True), 10.0)
    assert said(made) == []
    made.hear(W, UnknownFlows((link,), True), 10.0)
    assert link not in made.slots.by_out and "flow" in made.slots.by_in


def test_whoever_finds_no_path_wakes_the_next_stage() -> None:
    made = Negotiator(D, CONFIG, Random(1), is_data_peer=True)
    made.know(Near({W: 5}, {V: 3}, ()), 1, 0.0)
    made.tick(1.0)
    requests = [(to, m) for to, m in said(made) if isinstance(m, RequestFlow)]
    assert [(to, m.quoted_us) for to, m in requests] == [(V, NONE_QUOTED)]


def test_a_data_peer_offers_as_many_paths_as_it_wants_flows() -> None:
    made = Negotiator(D, CONFIG, Random(1), is_data_peer=True)
    made.know(Near({W: 5}, {}, ()), 1, 0.0)
    assert made.advert().offers == {D: 0}
    made.hear(W, RequestFlow("one", D, 0), 1.0)
    made.hear(W, RequestFlow("two", D, 0), 1.0)
    assert [m.accepted for _, m in said(made) if isinstance(m, FlowAnswer)] == [True, False]
    made.know(Near({W: 5}, {}, ()), 0, 2.0)
    assert [type(m) for _, m in said(made)] == [PathLost], "it wants none any more"


# ---- moves: p asks v, both in one stage; hops of v: u 10, x 12, w 5; of p as the passages say


P, Y = PeerId("p"), PeerId("y")


def passage(link: str, before_us: int, after_us: int, sink: PeerId = D, beyond_us: int = 7) -> Passage:
    """From `x` through p to `w`."""
    return Passage(sink, HopEnd(f"in {link}", X, 1, 1), HopEnd(f"out {link}", W, 1, 1), before_us, after_us, beyond_us)


def answer_to(made: Negotiator, request: NegotiationMessage) -> tuple[NegotiationMessage, list[NegotiationMessage]]:
    """What p hears, and what everybody else does."""
    made.hear(P, request, 9.0)
    told = said(made)
    [answer] = [m for to, m in told if to == P]
    return answer, [m for to, m in told if to != P]


def test_a_redirect_is_accepted_when_it_saves_and_both_ends_are_told() -> None:
    made = stage_peer()
    answer, told = answer_to(made, RequestRedirect(1, (passage("a", 9, 5), passage("b", 12, 20))))
    assert answer == RedirectAnswer(1, 1, 1), "x to w through v costs 17: 32 - 17 is more than 14 - 17"
    assert UpstreamIs("out b", 2, V, D) in told and PathIs("in b", 2, V, D, 12, {}) in told
    assert set(made.slots.by_in) == {"in b"} and set(made.slots.by_out) == {"out b"}


def test_a_redirect_may_take_the_inflow_of_one_flow_and_the_outflow_of_another() -> None:
    answer, _ = answer_to(stage_peer(), RequestRedirect(1, (passage("a", 30, 1), passage("b", 1, 30))))
    assert answer == RedirectAnswer(1, 0, 1)


@pytest.mark.parametrize("full", [False, True])
def test_a_redirect_is_refused_when_it_saves_nothing_or_there_is_no_room(full: bool) -> None:
    made = flowing()[0] if full else stage_peer()
    answer, told = answer_to(made, RequestRedirect(1, (passage("a", 99 if full else 12, 99 if full else 5),)))
    assert answer == RedirectAnswer(1) and told == []


def test_a_redirect_goes_on_along_a_cheaper_spare_path() -> None:
    made = stage_peer(capacity=1)
    link = with_path(made, 2)
    answer, told = answer_to(made, RequestRedirect(1, (passage("a", 12, 20, beyond_us=50),)))
    assert answer == RedirectAnswer(1, 0, 0, keeps_path=True)
    assert [type(m) for m in told] == [PathIs] and set(made.slots.by_out) == {link}


def change(its: Passage, after_us: dict[PeerId, int]) -> RequestChange:
    return RequestChange(1, (its,), {U: 50, X: 50}, after_us)


def test_a_change_exchanges_next_hops_when_the_sum_falls() -> None:
    made, link = flowing()
    made.know(Near({U: 10, X: 12}, {W: 5, Y: 1}, ()), 1, 3.0)
    its = Passage(D, HopEnd("in", X, 1, 1), HopEnd("out", Y, 3, 4), 40, 30, 6)
    answer, told = answer_to(made, change(its, {W: 10, Y: 30}))
    assert isinstance(answer, ChangeAnswer) and answer.outflow is not None
    assert (answer.chosen, answer.outflow.link, answer.inflow, answer.beyond_us) == (0, link, None, 7)
    assert UpstreamIs("out", 4, V, D) in told
    assert [m.cost_us for m in told if isinstance(m, PathIs)] == [7], "v's flow goes by y now: 1 and 6 beyond"
    made.hear(W, PathIs(link, 9, W, D, 1), 9.0)
    assert said(made) == [(P, PathIs(link, 9, W, D, 1))], "what still comes for the hop that p has is sent on to it"


def test_a_change_is_refused_when_the_sum_rises() -> None:
    made, _ = flowing()
    made.know(Near({U: 10, X: 12}, {W: 5, Y: 6}, ()), 1, 3.0)
    its = Passage(D, HopEnd("in", X, 1, 1), HopEnd("out", Y, 3, 4), 40, 2, 6)
    answer, told = answer_to(made, change(its, {W: 10, Y: 2}))
    assert answer == ChangeAnswer(1) and told == []


def test_a_move_of_a_peer_that_is_gone_meanwhile_leaves_the_flow_pathless() -> None:
    """p accepts a Change and its next peer leaves before the answer is here."""
    made, _ = flowing()
    made.know(Near({U: 10, X: 12}, {W: 5}, (P,)), 1, 3.0)
    requests: list[RequestChange] = []
    for second in range(4, 60):
        made.tick(second / 2)
        for to, message in said(made):
            if isinstance(message, RequestChange):
                requests.append(message)
            elif isinstance(message, RequestRedirect):
                made.hear(to, RedirectAnswer(message.token), second / 2)
        if requests:
            break
    made.hear(P, ChangeAnswer(requests[0].token, 0, HopEnd("new", Y, 1, 1), None, D, 3), 30.0)
    assert (Y, CancelFlow("new", 2)) in said(made)
    assert not made.slots.by_out and "flow" in made.slots.by_in


def test_messages_survive_the_wire() -> None:
    made, _ = flowing()
    messages: list[ControlMessage] = [
        RequestFlow("a", D, -5, True),
        FlowAnswer("a", True, D, 3, {X: 4}, {D: 1}, {U: -2}),
        ChangeAnswer(1, 2, HopEnd("a", U, 1, 2), None, D, 5, {X: 1}),
        ChangeAnswer(1),
        CheckFlows(("a", "b"), False),
    ]
    assert [from_header(to_header(message)) for message in messages] == messages
    assert made.messages > 0


@pytest.mark.parametrize("wrong", [{"tick_s": 0.0}, {"search": 0.0}, {"search": 1.5}, {"temperature": -1.0}, {"known": 0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        NegotiationConfig(**wrong)  # type: ignore[arg-type]
