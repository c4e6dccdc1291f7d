"""What puts a peer out of step: a proof, the word of who leads with less than that, or witnesses. And what does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.certificates import Alike, Certificate
from gwtf_p2p.protocol.wire.records import StageRecord
from gwtf_p2p.simulation.world.signatures import key_of, verify
from tests.protocol.commit.participating import prepare
from tests.protocol.peers import A2, B2, C2, D2, A, B, C, D, Driven, in_step, record
from tests.protocol.trust.test_certificates import EVERYBODY, RIGHT, certificate, commit, known

HERE = 4
"""The iteration that the peer takes part in."""


def taking_part(*others: StageRecord) -> Driven:
    """A peer of stage 1 that D leads, as D2 would after it."""
    driven = in_step(iteration=HERE)
    driven.machine.ctx.verify = verify
    driven.sees([*known(weights_version=HERE), *others])
    driven.machine.participant.set_voters((D, D2))
    return driven


def waiting() -> tuple[Driven, msg.Prepare, Certificate]:
    """It has averaged, and waits for the commit; the certificate is what all have signed of it."""
    driven, attempt = taking_part(), prepare(iteration=HERE)
    driven.hears(D, attempt)
    driven.handle(ev.AverageDone(HERE, 1, "average", 0.1, 1.0, RIGHT))
    return driven, attempt, certificate(attempt, EVERYBODY)


def stepping() -> tuple[Driven, msg.Prepare, Certificate]:
    driven, attempt, proof = waiting()
    driven.hears(D, commit(attempt, proof))
    assert driven.did(ef.Step)
    return driven, attempt, proof


def ahead(driven: Driven, peers: Iterable[PeerId], **fields: object) -> None:
    """The records of these show a later position."""
    shown = {"weights_version": HERE + 1, **fields}
    driven.sees([*known([p for p in EVERYBODY if p not in peers], weights_version=HERE), *known(peers, **shown)])


def is_out(driven: Driven) -> bool:
    return driven.machine.participant.progress.behind


@pytest.mark.parametrize(("crowded", "shown"), [((2, 3), True), ((0, 2, 3), False)])
def test_most_may_be_missing_in_half_of_the_stages_and_in_more_with_a_second_witness(
    crowded: tuple[int, ...], shown: bool
) -> None:
    """A peer of each stage, together, would do otherwise. Whoever was cut off from the others is missing anywhere."""
    others = [record(p, stage=k, signing_key=key_of(p)) for k in crowded for p in (PeerId(f"{k}_x"), PeerId(f"{k}_y"))]
    driven, later = taking_part(*others), prepare(iteration=9)
    told = commit(later, certificate(later, (D, A2, B, C)))
    driven.hears(D2, told)
    assert is_out(driven) is shown
    driven.hears(C2, msg.Standing(Stage(3), 10, committed=later.ballot, certificate=certificate(later, (D, A2, B))))
    assert is_out(driven) is shown, "that is signed by nobody of stage 3"
    driven.hears(C2, msg.Standing(Stage(3), 10, committed=later.ballot, certificate=told.certificate))
    assert is_out(driven)


@pytest.mark.parametrize("by", [D, D2])
@pytest.mark.parametrize("signers", [(D, A2, B, C), (D, A2, B)])
def test_who_leads_needs_no_second_witness_for_what_somebody_of_each_stage_has_signed(
    by: PeerId, signers: tuple[PeerId, ...]
) -> None:
    """It could have the peer go back without any proof. Most of all stages were cut off, and nobody else can have stepped."""
    others = [record(p, stage=k, signing_key=key_of(p)) for k in range(4) for p in (PeerId(f"{k}_x"), PeerId(f"{k}_y"))]
    for kind in ("commit", "standing"):
        driven, attempt = taking_part(*others), prepare(iteration=HERE)
        told = commit(attempt, certificate(attempt, signers))
        if kind == "standing":
            driven.hears(by, msg.Standing(Stage(0), HERE + 1, committed=attempt.ballot, certificate=told.certificate))
        else:
            driven.hears(by, told)
        assert is_out(driven) is (by == D and len(signers) == 4)


@pytest.mark.parametrize("changed", [{"attempt": 8}, {"iteration": 9}])
def test_the_proof_of_the_very_commit_that_a_peer_waits_for_or_steps_by_puts_it_out_of_step_under_no_name(
    changed: dict[str, int],
) -> None:
    for driven, attempt, proof in (waiting(), stepping()):
        driven.hears(D2, replace(commit(attempt, proof), **changed))  # type: ignore[arg-type]
        assert not is_out(driven)


def test_peers_that_have_stepped_a_moment_earlier_are_no_witnesses_that_the_swarm_has_gone_back() -> None:
    admit = msg.Admit(HERE + 1, (), (D2,), epoch=1, own=True, epoch_starts=(HERE + 1,))
    for told in (admit, msg.Standing(Stage(0), HERE + 1, epoch=1)):
        for driven, _, _ in (waiting(), stepping()):
            ahead(driven, (B, C))
            driven.hears(D2, told)
            assert not is_out(driven)
            ahead(driven, (B, C), epoch=1)
            driven.hears(D2, told)
            assert is_out(driven) is (not driven.machine.participant.share.stepping)


def test_who_cannot_confirm_a_claim_is_not_asked_again_before_the_others() -> None:
    driven, asked = taking_part(), set()
    for _ in range(3):
        driven.now += 2.0
        driven.hears(D2, msg.Standing(Stage(0), HERE + 3))
        asked |= set(driven.sent_to(msg.Inquire))
    assert asked == set(EVERYBODY) - {A, D2}


# ---- weights of one iteration that come from two attempts: the network was cut in two


def from_(driven: Driven, peer: PeerId, ballot: msg.Ballot) -> None:
    """It says that its weights come from there."""
    driven.hears(peer, msg.Standing(Stage({D: 0, D2: 0, A2: 1, B: 2, B2: 2, C: 3, C2: 3}[peer]), HERE + 1, committed=ballot))


def stepped() -> tuple[Driven, msg.Ballot]:
    driven, attempt, _ = stepping()
    driven.handle(ev.Kept((HERE, HERE + 1)))
    driven.handle(ev.Stepped(HERE))
    ahead(driven, EVERYBODY)
    return driven, attempt.ballot


def test_who_stands_alone_with_its_weights_finds_out_when_most_of_all_have_others_and_keeps_none_of_that_version() -> None:
    driven, own = stepped()
    for peer in (B, B2, C, A2):
        from_(driven, peer, msg.Ballot(9, D2))
        from_(driven, D2, own)
        assert not is_out(driven), "that is half"
    from_(driven, C2, msg.Ballot(9, D2))
    assert is_out(driven) and driven.machine.participant.role.kept == (HERE,)


def test_a_peer_that_follows_knows_which_attempt_its_weights_come_from() -> None:
    attempt = prepare(iteration=HERE + 2)
    proof = certificate(attempt, EVERYBODY)
    invented = Alike(Stage(1), "0", 1e30, RIGHT, tuple(PeerId(f"x{k}") for k in range(9)), ("no signature",) * 9)
    for shown in (proof, replace(proof, groups=(*proof.groups, invented))):
        for committed, known_as in ((attempt.ballot, attempt.ballot), (msg.Ballot(7, D), None)):
            driven = taking_part()
            driven.hears(D, msg.Admit(HERE + 3, (A2,), (D, D2), certificate=shown, committed=committed))
            progress = driven.machine.participant.progress
            assert progress.committed == known_as and driven.did(ef.Download)
            assert progress.gradient_norm == (2.0 if known_as else 0.0), "of what is signed"
