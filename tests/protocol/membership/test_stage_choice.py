"""Which stage a newcomer takes, and who moves by SWARM's rule: tables."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.membership.rebalancing import choose_stage
from gwtf_p2p.protocol.membership.swarm_rebalancing import Move, NoMove, swarm_move
from gwtf_p2p.protocol.view.plans import tag
from gwtf_p2p.protocol.wire.records import PeerState, Timing
from tests.protocol.peers import A2, B2, C2, D2, D3, A, B, C, D, record, view

ME = PeerId("me")
SLOW = {"forward": Timing(1.0, 5, 0.0), "backward": Timing(2.0, 5, 0.0)}


def test_a_newcomer_takes_an_empty_stage_first() -> None:
    choice = choose_stage(view([A, A2, C]), ME)
    assert (choice.stage, choice.reason) == (2, "no peer serves it yet")


def test_a_newcomer_takes_the_slowest_stage() -> None:
    choice = choose_stage(view([record(A, **SLOW), record(B, **SLOW), record(B2, **SLOW), record(C, **SLOW)]), ME)
    assert choice.stage in (1, 3) and choice.reason.startswith("the slowest of 3 stages")
    slowest = record(B2, forward=Timing(5.0, 5, 0.0), backward=Timing(9.0, 5, 0.0))
    assert choose_stage(view([record(A, **SLOW), record(A2, **SLOW), slowest, record(C, **SLOW)]), ME).stage == 2


def test_a_peer_that_is_about_to_serve_counts_and_one_that_leaves_or_is_oneself_does_not() -> None:
    coming = [A, record(B, PeerState.JOINING), record(C, PeerState.DRAINING)]
    assert choose_stage(view(coming), ME).stage == 3
    assert choose_stage(view([A, B, C]), C).stage == 3


def test_newcomers_that_see_the_same_records_spread_over_equal_stages() -> None:
    chosen = {choose_stage(view([A, B, C]), PeerId(f"new_{i}")).stage for i in range(30)}
    assert chosen == {1, 2, 3}


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ({A: 1.0, A2: 3.0, B: 9.0, B2: 9.0, C: 5.0}, Move(A, 1, 2, "one_0 holds 1.0 of 4.0 in stage 1, stage 2 holds 18.0")),  # type: ignore[arg-type]
        ({A: 3.0, A2: 3.0, B: 1.0, B2: 0.5, C: 9.0}, Move(B2, 2, 3, "two_1 holds 0.5 of 1.5 in stage 2, stage 3 holds 9.0")),  # type: ignore[arg-type]
        ({A: 1.0, A2: 1.0, B: 1.0, B2: 1.0, C: 2.0}, NoMove("all stages hold 2.0")),
        ({A: 4.0, A2: 4.0, C: 9.0}, Move(B, 2, 3, "two_0 holds 0.0 of 0.0 in stage 2, stage 3 holds 9.0")),  # type: ignore[arg-type]
    ],
    ids=["the least loaded of the least loaded stage", "a stage of one peer takes", "equal loads", "no figure counts as empty"],
)
def test_the_least_loaded_peer_of_the_least_loaded_stage_moves_to_the_most_loaded(
    lengths: dict[PeerId, float], expected: Move | NoMove
) -> None:
    assert swarm_move(view([A, A2, B, B2, C]), lengths) == expected


def test_a_stage_is_never_emptied_by_a_move() -> None:
    assert swarm_move(view([A, B, C]), {A: 0.0, B: 9.0, C: 9.0}) == NoMove("every stage has one peer at most")


def lost(*names: PeerId, sequence_number: int = 0) -> dict[str, int]:
    return {tag(peer): sequence_number for peer in names}


def test_a_newcomer_does_not_count_whom_the_data_peers_hold_for_lost() -> None:
    """Their records live on for half a minute."""
    assert choose_stage(view([record(D), A, A2, B, C, C2]), ME).stage == 2
    assert choose_stage(view([record(D, lost=lost(C, C2)), A, A2, B, C, C2]), ME).stage == 3
    alone = choose_stage(view([record(D, lost=lost(B)), A, A2, B, C, C2]), ME)
    assert (alone.stage, alone.reason) == (2, "no peer serves it yet")


def test_one_that_has_published_since_counts_again() -> None:
    back = [record(peer, PeerState.SYNCING, sequence_number=7) for peer in (C, C2)]
    assert choose_stage(view([record(D, lost=lost(C, C2, sequence_number=6)), A, A2, B, *back]), ME).stage == 2
    assert choose_stage(view([record(D, lost=lost(C, C2, sequence_number=7)), A, A2, B, *back]), ME).stage == 3


def test_it_takes_half_of_the_data_peers_to_hold_a_peer_for_lost() -> None:
    peers = [A, A2, B, C, C2]
    one, other, third = (record(peer, lost=of) for peer, of in ((D, lost(C, C2)), (D2, {}), (D3, {})))
    assert choose_stage(view([one, other, *peers]), ME).stage == 3
    assert choose_stage(view([one, other, third, *peers]), ME).stage == 2
    assert choose_stage(view([A, A2, B, record(C, lost=lost(A, A2)), C2]), ME).stage == 2, "stage peers are not asked"
