"""Who takes part and who leads, as one data peer knows it."""

from __future__ import annotations

from gwtf_p2p.protocol.commit.roster import Roster
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Standing
from tests.protocol.peers import A2, B2, C2, D2, D3, STAGE_OF, A, B, C, D, data_peer, view


def roster(me: PeerId = D2, *, version: int = 1, voters: tuple[PeerId, ...] | None = (D, D2), active: bool = True) -> Roster:
    """Of a data peer at this iteration, which `voters` have begun."""
    machine = data_peer(me).machine
    machine.ctx.view = view(STAGE_OF)
    machine.participant.start_from(version, ())
    machine.participant.set_voters(voters)
    machine.participant.role.set_active(active)
    return Roster(machine.ctx, machine.participant)


def loses(of: Roster, *peers: PeerId) -> None:
    for peer in peers:
        of.ctx.liveness.declare_lost(peer, 0.0, [])


def stands(peer: PeerId, version: int = 1, **changes: object) -> Standing:
    return Standing(Stage(STAGE_OF[peer]), version, **{"active": True, **changes})  # type: ignore[arg-type]


def test_the_first_live_data_peer_that_began_the_iteration_leads() -> None:
    of = roster()
    assert of.coordinator() == D and not of.coordinates
    loses(of, D)
    assert of.coordinator() == D2 and of.coordinates and of.data_peers() == (D2,)


def test_before_the_first_commit_all_that_are_online_began() -> None:
    assert roster(version=0, voters=None).data_peers() == (D, D2, D3)


def test_a_guest_takes_part_and_does_not_lead_unless_nobody_else_is_left() -> None:
    of = roster(D3, voters=(D2,))
    of.enter(D, stands(D, taking_part=True))
    assert of.data_peers() == (D, D2, D3) and of.coordinator() == D2
    loses(of, D2)
    assert of.coordinator() == D


def test_who_started_again_during_the_iteration_does_not_lead_until_it_takes_part_once_more() -> None:
    of = roster()
    of.remove(D, gone=True)
    assert of.coordinator() == D2 and of.data_peers() == (D2,)
    of.admit(D, DATA_STAGE, in_step=False)
    assert of.coordinator() == D2, "it lacks the weights"
    of.admit(D, DATA_STAGE, in_step=True)
    assert of.coordinator() == D


def test_who_says_that_it_does_not_take_part_does_not_lead_after_a_cold_start() -> None:
    of = roster(voters=None)
    of.enter(D, stands(D, active=False))
    assert of.coordinator() == D2 and D not in of.data_peers()
    of.enter(D, stands(D, active=True))
    assert of.coordinator() == D
    first = roster(version=0, voters=None)
    first.enter(D, stands(D, 0, active=False))
    assert first.coordinator() == D, "nobody takes part before the first iteration"


def test_a_peer_that_does_not_take_part_itself_does_not_lead() -> None:
    of = roster(D, active=False)
    assert of.coordinator() == D2 and not of.coordinates


def test_an_attempt_has_all_that_are_at_the_iteration_but_the_lost_and_the_gone() -> None:
    of = roster()
    everybody = (A, A2, B, B2, C, C2, D)
    of.learn({p: stands(p) for p in everybody} | {D3: stands(D3, joining=True)})
    of.learn(
        {p: stands(p) for p in everybody} | {A2: stands(A2, 0), B2: stands(B2, leaving=True), C2: stands(C2, syncing=True)}
    )
    assert of.present() == {A: 1, B: 2, C: 3, C2: 3, D: 0}
    assert of.serving(Stage(3)) == [C], "who has no weights is no donor"
    loses(of, A)
    of.remove(B, gone=True)
    assert of.present() == {C: 3, C2: 3, D: 0}
    of.enter(B, stands(B))
    assert B in of.present()
    assert of.remove(B, gone=False) == 2 and of.remove(B, gone=False) is None


def test_the_next_iteration_begins_with_the_participants_of_the_last_attempt() -> None:
    of = roster()
    of.remove(D3, gone=True)
    of.enter(D3, stands(D3, taking_part=True))
    of.remove(B, gone=True)
    loses(of, C)
    of.begin({A: Stage(1), B: Stage(2), C: Stage(3), D: DATA_STAGE})
    assert of.present() == {A: 1, D: 0}
    assert D3 not in of.data_peers(), "who began it is in the voters now"


def test_of_a_loss_hear_the_data_peers_and_the_neighbouring_stages() -> None:
    assert roster(D).concerned_by_loss(B, None) == [D2, D3, A, A2, C, C2][:2] + sorted([A, A2, C, C2])


def test_of_the_last_peer_of_a_stage_everybody_hears_since_somebody_may_have_to_take_its_place() -> None:
    of = roster(D)
    loses(of, A2)
    assert of.concerned_by_loss(A, Stage(1)) == sorted([B, B2, C, C2, D2, D3])


def test_of_a_lost_data_peer_or_one_whose_stage_nobody_knows_everybody_hears() -> None:
    of = roster(D)
    everybody = sorted(p for p in STAGE_OF if p not in (D, D2))
    assert of.concerned_by_loss(D2, DATA_STAGE) == everybody
    assert of.concerned_by_loss(PeerId("stranger"), None) == sorted([*everybody, D2])
