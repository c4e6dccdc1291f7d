"""A tensor far larger than what is usual for its kind is refused, its sender is named, and the microbatch goes elsewhere."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.trust.magnitudes import FACTOR, LEAST, WINDOW, Magnitudes
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, small_swarm
from tests.protocol.peers import A2, B2, A, B, C, D, Driven, in_step, leading, microbatch, record

ONE, TWO, THREE = PeerId("1"), PeerId("2"), PeerId("3")
M = microbatch()


def usual(*senders: PeerId, size: float = 1.0, kind: Slot = Slot.INPUT) -> Magnitudes:
    """These have sent a while."""
    magnitudes = Magnitudes()
    for _ in range(LEAST):
        for sender in senders:
            assert not magnitudes.refusal(kind, sender, size)
    return magnitudes


def test_what_is_far_beyond_the_usual_is_refused_and_what_is_within_is_not() -> None:
    magnitudes = usual(ONE)
    assert not magnitudes.refusal(Slot.INPUT, ONE, FACTOR)
    assert "20000 times as large as usual" in magnitudes.refusal(Slot.INPUT, ONE, 2 * FACTOR)
    assert magnitudes.refusal(Slot.INPUT, ONE, float("inf"))
    assert not magnitudes.refusal(Slot.INPUT, TWO, 0.0)


def test_nothing_is_refused_before_it_is_known_what_is_usual_and_kinds_have_bounds_of_their_own() -> None:
    magnitudes = Magnitudes()
    assert not any(magnitudes.refusal(Slot.INPUT, ONE, 10.0**n) for n in range(LEAST))
    magnitudes = usual(ONE, size=1.0)
    assert not magnitudes.refusal(Slot.OUTPUT_GRADIENT, ONE, 1e9)


def test_zeros_say_nothing_of_what_is_usual() -> None:
    magnitudes = usual(ONE, size=0.0)
    assert magnitudes.usual(Slot.INPUT) is None and not magnitudes.refusal(Slot.INPUT, ONE, 1e-3)


def test_growth_is_followed_however_far_it_goes() -> None:
    magnitudes, size = usual(ONE, TWO), 1.0
    for _ in range(400):
        size *= 1.1
        assert not magnitudes.refusal(Slot.INPUT, ONE, size) and not magnitudes.refusal(Slot.INPUT, TWO, size)
    assert size > FACTOR**4


def test_a_jump_of_the_only_sender_is_refused_for_a_while_and_then_believed() -> None:
    magnitudes = usual(ONE)
    refused = sum(bool(magnitudes.refusal(Slot.INPUT, ONE, 2 * FACTOR)) for _ in range(2 * WINDOW))
    assert 0 < refused <= WINDOW


@pytest.mark.parametrize("others", [(TWO,), (TWO, THREE)])
def test_one_sender_among_several_does_not_move_the_bound(others: tuple[PeerId, ...]) -> None:
    magnitudes = usual(ONE, *others)
    for _ in range(10 * WINDOW):
        assert magnitudes.refusal(Slot.INPUT, ONE, 2 * FACTOR)
        assert not any(magnitudes.refusal(Slot.INPUT, other, 1.0) for other in others)


# ---- what becomes of the microbatch


def test_an_activation_that_is_not_taken_is_told_to_its_data_peer_and_taken_from_another() -> None:
    driven = in_step(B)
    driven.sees([record(D), record(A), record(A2), record(B)])
    forward = msg.Forward(M, (7, 0, 0), Stage(2), (C,))
    driven.handle(ev.Offered(A, forward))
    driven.handle(ev.DeliveryBroken(A, forward, "too large", refused=True))
    assert driven.sent(msg.Missing, D) == [msg.Missing(A, Stage(1), (M,))]
    assert not driven.did(ef.Ask), "it is there, and not suspected of anything"
    driven.takes(M, A2, (7, 1, 0), (C,))


def test_a_gradient_that_is_not_taken_is_asked_of_another_peer() -> None:
    driven = in_step()
    driven.sees([record(D), record(A), record(B), record(B2)])
    driven.is_accepted(driven.hands_on(M, D, (7, 0), (B, C)))
    backward = msg.Backward(M, (7, 0, 0), Stage(1), (B, C))
    driven.handle(ev.Offered(B, backward))
    driven.handle(ev.DeliveryBroken(B, backward, "too large", refused=True))
    assert driven.pushed().to == B2 and driven.sent(msg.Superseded, B)
    assert not driven.machine.ctx.liveness.lost and not driven.did(ef.Bar)


def test_the_peer_before_a_refused_one_hands_the_microbatch_to_another() -> None:
    driven = in_step()
    driven.sees([record(D), record(A), record(B), record(B2)])
    driven.is_accepted(driven.hands_on(M, D, (7, 0), (B, C)))
    driven.hears(D, msg.Redo(M, Stage(2), B, (), 7, refused=True))
    assert driven.pushed().to == B2


def test_a_data_peer_asks_those_before_for_another_way_and_goes_one_itself_from_the_first_stage() -> None:
    driven = leading(A, A2, B, B2)
    driven.is_accepted(first_push(driven))
    driven.hears(B, msg.Missing(A, Stage(1), (M,)))
    assert driven.pushed().to == A2
    driven.is_accepted(driven.pushed())
    result = msg.Forward(M, (7, 1, 0, 0), Stage(3))
    driven.handle(ev.Offered(B, result))
    driven.handle(ev.DeliveryBroken(B, result, "too large", refused=True))
    assert {*driven.sent_to(msg.Redo)} == {A, A2}


def test_only_a_peer_of_the_next_stage_can_say_that_something_is_not_taken() -> None:
    driven = leading(A, A2, B, B2)
    driven.is_accepted(first_push(driven))
    driven.hears(A2, msg.Missing(A, Stage(1), (M,)))
    assert not driven.did(ef.Push) and not driven.sent_to(msg.Redo)


def first_push(driven: Driven) -> ef.Push:
    """Of a data peer's microbatch, on its way into the first stage."""
    while (push := driven.last_push(M)) is None:
        assert driven.computing is not None
        driven.computes(driven.computing.work, driven.computing.microbatch)
    return push


@pytest.mark.parametrize("refused", ["relay_1_0", "relay_2_1", "relay_3_0"])
def test_a_peer_whose_tensors_nobody_takes_costs_detours_and_ends_no_run(refused: str) -> None:
    swarm = small_swarm(SmallConfig(stages=3, stage_peers=2))
    swarm.world.pushes.refuses = lambda sender, push: "too large" if sender == refused else ""
    tally = swarm.run(4, deadline_s=120.0)
    assert (tally.lost, tally.double) == (0, 0)
    assert not swarm.reported("peer_barred") and not swarm.reported("peer_lost"), "it may be honest"
    assert not any(refused in str(r.fields["route"]) for _, r, _ in swarm.reported("microbatch_done"))
