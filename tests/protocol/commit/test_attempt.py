"""What is averaged in one attempt: shares, groups, digests."""

from __future__ import annotations

from gwtf_p2p.protocol.commit.attempt import Attempt, prepares
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.transfer.ledger import NOBODY
from gwtf_p2p.protocol.wire.messages import Ballot, Credit, Finished
from tests.protocol.peers import A2, D2, A, B, D, microbatch

ROSTER = {D: Stage(0), D2: Stage(0), A: Stage(1), A2: Stage(1), B: Stage(2)}


def groups(finished: dict[PeerId, Finished], roster: dict[PeerId, Stage] = ROSTER):  # type: ignore[no-untyped-def]
    return prepares((1, 4), Ballot(7, D), Ballot(6, D2), roster, finished, 2)


def test_each_stage_gets_the_shares_that_the_ledgers_credit_and_the_others_of_the_roster_empty_ones() -> None:
    finished = {
        D: Finished(4, (Credit(0, (A, B)), Credit(1, (A, B))), 1.0),
        D2: Finished(4, (Credit(0, (A2, B)),), 4.0),
    }
    made = groups(finished)
    assert sorted(made) == [0, 1, 2]
    assert made[Stage(1)].share_of(A) == {microbatch(0, 4), microbatch(1, 4)}
    assert made[Stage(1)].share_of(A2) == {microbatch(0, 4, D2)}
    assert made[Stage(2)].share_of(B) == {microbatch(0, 4), microbatch(1, 4), microbatch(0, 4, D2)}
    assert made[Stage(0)].share_of(D2) == {microbatch(0, 4, D2)}
    assert {prepare.total for prepare in made.values()} == {3}
    assert {prepare.mean_loss for prepare in made.values()} == {2.0}, "weighted by microbatches"
    assert {(p.iteration, p.epoch, p.ballot, p.base) for p in made.values()} == {(4, 1, Ballot(7, D), Ballot(6, D2))}


def test_a_credited_peer_takes_part_though_the_roster_does_not_know_it() -> None:
    made = groups({D: Finished(4, (Credit(0, (A, B)),), 1.0)}, {D: Stage(0)})
    assert made[Stage(1)].participants == (A,) and made[Stage(2)].participants == (B,)


def test_an_empty_place_of_fast_recovery_is_in_nobodys_share() -> None:
    made = groups({D: Finished(4, (Credit(0, (A, NOBODY)), Credit(1, (A, B))), 1.0)})
    assert made[Stage(1)].total == 2 and made[Stage(2)].total == 1
    assert NOBODY not in made[Stage(2)].participants


def test_a_data_peer_that_leaves_does_not_begin_the_next_iteration() -> None:
    made = groups({D: Finished(4, (Credit(0, (A, B)),), 1.0), D2: Finished(4, (), 0.0, leaving=True)})
    assert {prepare.data_peers for prepare in made.values()} == {(D,)}
    assert D2 in made[Stage(0)].participants, "but it steps with the others"


def test_no_two_groups_and_no_two_attempts_share_the_name_of_an_average() -> None:
    finished = {D: Finished(4, (Credit(0, (A, B)),), 1.0)}
    keys = [p.key for n in (1, 2) for p in prepares((0, 4), Ballot(n, D), None, ROSTER, finished, 2).values()]
    keys += [p.key for p in prepares((0, 4), Ballot(1, D2), None, ROSTER, finished, 2).values()]
    assert len(set(keys)) == len(keys) == 9


def test_an_attempt_waits_for_every_participant_and_its_groups_must_agree() -> None:
    attempt = Attempt(7, groups({D: Finished(4, (Credit(0, (A, B)),), 1.0)}))
    assert attempt.participants == ROSTER
    assert attempt.waiting_for() == [D, D2, A, A2, B]
    for peer in attempt.participants:
        attempt.digests[peer] = f"stage {ROSTER[peer]}"
    assert attempt.waiting_for() == [] and attempt.disagreement() is None
    attempt.digests[A2] = "others"
    assert attempt.disagreement() == "participants of stage 1 ended with different averages"
