"""Gradients go before activations, both before bulk; a small payload waits for a piece of a large one, not for all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.core.line_cap import LineCap
from gwtf_p2p.protocol.core.sending import MOST_OVERTAKEN, Place, SendSlots, Urgency, urgency_of

B, F, X = Urgency.BACKWARD, Urgency.FORWARD, Urgency.BULK
RATE = 1e6

Payload = tuple[float, int, Urgency]
"""When it comes, how many bytes it has, how urgent it is."""


def ends_of(payloads: list[Payload], rate: float = RATE) -> list[float]:
    """When each has passed a line whose senders ask as streams do: a piece at a time, again when they are told to."""
    cap, ends = LineCap(rate), [0.0] * len(payloads)
    left = [size for _, size, _ in payloads]
    asks: list[tuple[float, int, Place | None]] = [(at, number, None) for number, (at, _, _) in enumerate(payloads)]
    while asks:
        asks.sort(key=lambda ask: (ask[0], ask[1]))
        now, number, place = asks.pop(0)
        if place is None:
            place = cap.join(min(cap.piece_bytes, left[number]), payloads[number][2])
        wait_s = cap.wait_of(place, now)
        if wait_s > 0:
            asks.append((now + wait_s, number, place))
            continue
        left[number] -= place.size
        ends[number] = now
        if left[number]:
            asks.append((now, number, None))
    return ends


def test_a_kind_of_message_says_how_urgent_its_payload_is() -> None:
    assert [urgency_of(kind) for kind in ("Backward", "Forward", "average", "state", "None")] == [B, F, X, X, X]


def test_many_small_payloads_do_not_queue_behind_a_large_one() -> None:
    large = (0.0, 20_000_000, X)
    small = [(1.0 + 0.01 * n, 50_000, F) for n in range(40)]
    ends = ends_of([large, *small])
    waited = [end - at for end, (at, _, _) in zip(ends[1:], small, strict=True)]
    assert max(waited) < 40 * 0.05 + 0.5 and ends[0] > 20.0


def test_a_gradient_overtakes_activations_that_came_before_it() -> None:
    activations: list[Payload] = [(0.0, 1_000_000, F) for _ in range(4)]
    ends = ends_of([*activations, (0.5, 300_000, B), (0.5, 300_000, X)])
    assert ends[4] < 1.2 and ends[4] < min(ends[:4])
    assert ends[5] > sorted(ends[:4])[0]


def test_nothing_is_overtaken_for_ever() -> None:
    stream: list[Payload] = [(0.1 * n, 100_000, B) for n in range(200)]
    assert ends_of([*stream, (1.0, 100_000, X)])[-1] < 1.0 + 0.1 * (MOST_OVERTAKEN + 4)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 400_000), st.sampled_from(Urgency)), min_size=1, max_size=12))
def test_in_any_order_all_pass_and_no_more_than_the_line_carries(payloads: list[Payload]) -> None:
    ends = ends_of(payloads)
    begin, total = min(at for at, _, _ in payloads), sum(size for _, size, _ in payloads)
    assert max(ends) >= begin + (total - LineCap(RATE).burst_bytes) / RATE - 1e-3
    assert all(end >= at for end, (at, _, _) in zip(ends, payloads, strict=True))


def test_whoever_gives_up_stands_in_nobodys_way() -> None:
    cap = LineCap(RATE)
    gone, waiting = cap.join(50_000, B), cap.join(50_000, X)
    cap.wait_s(1_000_000, 0.0)
    assert cap.wait_of(waiting, 0.0) > 0 < cap.wait_of(gone, 0.0)
    cap.leave(gone)
    assert cap.wait_of(waiting, 10.0) == 0.0
    cap.leave(waiting)


def test_without_a_cap_nothing_waits() -> None:
    cap = LineCap()
    places = [cap.join(10**9, X) for _ in range(3)]
    assert [cap.wait_of(place, 0.0) for place in reversed(places)] == [0.0] * 3 and cap.total_bytes == 3 * 10**9


def test_bulk_leaves_slots_to_activations_and_both_leave_some_to_gradients() -> None:
    slots = SendSlots(8)
    bulk = [slots.ask(X) for _ in range(20)]
    forward = [slots.ask(F) for _ in range(20)]
    backward = [slots.ask(B) for _ in range(8)]
    assert [sum(place.has_slot for place in each) for each in (bulk, forward, backward)] == [4, 2, 2]
    assert slots.free(bulk[0]) == [backward[2]], "the most urgent one that waits"
    for place in backward:
        slots.free(place)
    assert sum(place.has_slot for place in forward) == 3, "three quarters are not backward, and three of them are bulk"


def test_one_slot_serves_all_and_a_place_that_is_given_up_is_passed_over() -> None:
    slots = SendSlots(1)
    first, second, third = slots.ask(X), slots.ask(F), slots.ask(B)
    assert (first.has_slot, second.has_slot, third.has_slot) == (True, False, False)
    assert slots.free(third) == []
    assert slots.free(first) == [second] and second.has_slot
    assert slots.free(second) == [] and slots.ask(X).has_slot


@pytest.mark.parametrize("urgency", Urgency)
def test_those_of_one_urgency_go_in_the_order_in_which_they_came(urgency: Urgency) -> None:
    ends = ends_of([(0.001 * n, 200_000, urgency) for n in range(5)])
    assert ends == sorted(ends)
