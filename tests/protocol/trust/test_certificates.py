"""A commit, and a later position, are believed for what the participants have signed, and not for who says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.certifying import LEAST_VERIFIED, certificate_of, signed
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.certificates import Alike, Certificate
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from gwtf_p2p.simulation.world.signatures import key_of, sign, verify
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, small_swarm
from tests.protocol.commit.participating import prepare
from tests.protocol.peers import A2, B2, C2, D2, D3, STAGE_OF, A, B, C, D, Driven, in_step, record

EVERYBODY = (D, D2, A, A2, B, B2, C, C2)
RIGHT = "weights"


def known(peers: Iterable[PeerId] = EVERYBODY, **fields: object) -> list[StageRecord]:
    return [record(peer, signing_key=key_of(peer), **fields) for peer in peers]  # type: ignore[arg-type]


def verifying(peers: Iterable[PeerId] = EVERYBODY) -> Driven:
    """A peer of stage 1 that looks at signatures, and knows the keys of these."""
    driven = in_step()
    driven.machine.ctx.verify = verify
    driven.sees(known(peers))
    return driven


def certificate(
    attempt: msg.Prepare, signers: Iterable[PeerId], by: PeerId | None = None, states: dict[PeerId, str] | None = None
) -> Certificate:
    """What these have prepared of an attempt; `by`: who has signed all of it."""
    said: dict[PeerId, msg.Prepared] = {}
    for peer in signers:
        stage, state = Stage(STAGE_OF[peer]), (states or {}).get(peer, RIGHT)
        prepared = msg.Prepared(attempt.iteration, attempt.attempt, stage, "average", 1.0, attempt.terms, state)
        said[peer] = replace(prepared, signature=sign(by or peer, prepared.statement))
    found = certificate_of(attempt, said)
    assert found is not None
    return found


def commit(attempt: msg.Prepare, proof: Certificate | None, norm: float | None = None) -> msg.Commit:
    """`norm` None: the one that is signed."""
    stages = {group.stage for group in proof.groups} if proof is not None else ()
    return msg.commit_of(attempt, len(stages) ** 0.5 if norm is None else norm, proof)


def prepared(driven: Driven, state: str = RIGHT) -> msg.Prepare:
    """It has averaged, and waits for the commit."""
    attempt = prepare()
    driven.hears(D, attempt)
    driven.handle(ev.AverageDone(0, 1, "average", 0.1, 1.0, state))
    return attempt


# ---- reading one


def test_each_signature_is_looked_at_once_for_all_peers_that_have_the_same_records() -> None:
    looked: list[str] = []

    def counting(key: str, text: str, signature: str) -> bool:
        looked.append(signature)
        return verify(key, text, signature)

    peers = [verifying() for _ in range(5)]
    proof, view = certificate(prepare(), EVERYBODY), peers[0].machine.ctx.view
    for driven in peers:
        ctx = driven.machine.ctx
        ctx.verify, ctx.view = counting, view
        assert driven.machine.participant.certifier.lacks(proof) is None
    assert len(looked) == len(EVERYBODY)


def test_verdicts_of_a_few_commits_are_remembered_and_no_more() -> None:
    """A run has thousands of commits an hour. What came a moment ago comes again, and is not verified again."""
    driven, looked = verifying(), list[str]()

    def counting(key: str, text: str, signature: str) -> bool:
        looked.append(text)
        return verify(key, text, signature)

    certifier = driven.machine.participant.certifier
    driven.machine.ctx.verify = counting
    for iteration in range(100):
        proof = certificate(prepare(iteration=iteration), EVERYBODY)
        assert certifier.lacks(proof) is None
        assert certifier.lacks(replace(proof, groups=tuple(reversed(proof.groups)))) is None
    assert len(looked) == 100 * len(EVERYBODY)
    assert len(certifier._verified) + len(certifier._verified_before) <= 2 * LEAST_VERIFIED


def test_who_has_other_records_reads_another_proof_in_the_same_certificate() -> None:
    one, other = verifying(), verifying()
    other.sees([record(peer, signing_key=key_of(A) if peer in (B, B2) else key_of(peer)) for peer in EVERYBODY])
    proof = certificate(prepare(), EVERYBODY)
    assert one.machine.participant.certifier.lacks(proof) is None
    lack = other.machine.participant.certifier.lacks(proof)
    assert lack is not None and lack.stage == STAGE_OF[B]


# ---- a commit that this peer has prepared


def test_a_commit_that_all_have_signed_is_applied_and_its_proof_is_shown_to_others() -> None:
    driven = verifying()
    attempt = prepared(driven)
    proof = certificate(attempt, EVERYBODY)
    driven.hears(D, commit(attempt, proof))
    assert driven.did(ef.Step) == [ef.Step(0, 1, 2.0)]
    driven.handle(ev.Stepped(0))
    assert driven.machine.participant.standing().certificate == proof


@pytest.mark.parametrize(
    ("signers", "by"),
    [(EVERYBODY, D), ((D, D2), None), ((D, D2, A, B, C), D), ((D, D2, A2, B, B2), None)],
    ids=["the leader signs for all", "data peers alone", "half, signed by the leader", "a stage is missing"],
)
def test_whoever_leads_cannot_commit_what_others_have_not_prepared(signers: tuple[PeerId, ...], by: PeerId | None) -> None:
    driven = verifying()
    attempt = prepared(driven)
    driven.hears(D, commit(attempt, certificate(attempt, signers, by)))
    driven.hears(D, commit(attempt, None))
    assert not [effect for effect in driven.log if isinstance(effect, ef.Step)]
    assert not driven.machine.participant.out_of_step


def test_who_waits_for_a_proof_is_not_out_of_step_when_a_newcomer_shows_that_very_commit() -> None:
    """Two of three peers of stage 2 have come since; they cannot sign, and show it while their weights are not here yet."""
    third, attempt = PeerId("third"), prepare()
    driven = verifying()
    driven.sees([*known(), record(third, stage=2, signing_key=key_of(third))])
    prepared(driven)
    proof = certificate(attempt, (D, D2, A, A2, B, C, C2))
    driven.hears(D, commit(attempt, proof))
    for newcomer in (B2, third):
        shown = msg.Standing(Stage(2), 1, certificate=proof, syncing=True)
        driven.hears(newcomer, shown)
        assert not driven.did(ef.Step) and not driven.machine.participant.out_of_step
    driven.hears(B2, replace(shown, syncing=False))
    assert driven.did(ef.Step) == [ef.Step(0, 1, 2.0)]


def test_another_norm_than_the_participants_have_signed_is_refused() -> None:
    driven = verifying()
    attempt = prepared(driven)
    driven.hears(D, commit(attempt, certificate(attempt, EVERYBODY), norm=1e6))
    assert not driven.did(ef.Step) and "norm" in driven.reported("commit_refused")[0]["reason"]


@pytest.mark.parametrize("squared_norm", [-1.0, 1e30])
def test_what_nobody_has_signed_counts_for_nothing_in_the_norm_either(squared_norm: float) -> None:
    """Else whoever leads has one peer alone skip the step, or clip it to another size."""
    driven = verifying()
    attempt = prepared(driven)
    proof = certificate(attempt, EVERYBODY)
    invented = Alike(Stage(1), "0", squared_norm, RIGHT, (PeerId("a"),), ("no signature",))
    forged = replace(proof, groups=(invented, *proof.groups))
    norm = -1.0 if squared_norm < 0 else (squared_norm + 4.0) ** 0.5
    driven.hears(D, commit(attempt, forged, norm=norm))
    assert not driven.did(ef.Step) and "norm" in driven.reported("commit_refused")[0]["reason"]
    driven.hears(D, commit(attempt, forged, norm=4**0.5))
    assert driven.did(ef.Step) == [ef.Step(0, 1, 2.0)]


@pytest.mark.parametrize("stage", [1, 2])
def test_different_averages_of_a_stage_do_not_prove_a_commit_together(stage: int) -> None:
    """And in its own stage a peer goes by the average that it has itself."""
    third = PeerId("third")
    driven = verifying()
    attempt = replace(prepare(), shares=(*prepare().shares, msg.Share(third, ())) if stage == 1 else prepare().shares)
    driven.sees([*known(), record(third, stage=stage, signing_key=key_of(third))])
    driven.hears(D, attempt)
    driven.handle(ev.AverageDone(0, 1, "average", 0.1, 1.0, RIGHT))
    said = {}
    for peer, where in {**STAGE_OF, third: stage}.items():
        digest = f"of {peer}" if where == stage else "average"
        one = msg.Prepared(0, 1, Stage(where), digest, 1.0, attempt.terms, RIGHT)
        said[peer] = replace(one, signature=sign(peer, one.statement))
    driven.hears(D, commit(attempt, certificate_of(attempt, said), norm=2.0))
    assert not driven.did(ef.Step)


def test_a_participant_that_signs_something_else_than_it_was_asked_does_not_stop_the_run() -> None:
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=2, data_peers=2))
    liar = PeerId("relay_1_0")
    of_liar = swarm.world.peers[liar].machine.ctx
    emit = of_liar.emit

    def lie(*effects: ef.Effect) -> None:
        told = (
            replace(e, message=replace(e.message, terms="others"))
            if isinstance(e, ef.Send) and isinstance(e.message, msg.Prepared)
            else e
            for e in effects
        )
        emit(*told)

    of_liar.emit = lie  # type: ignore[method-assign]
    honest = [peer for peer in swarm.world.peers if peer != liar]
    versions = [swarm.world.peers[peer].machine.participant for peer in honest]
    kernel = swarm.world.kernel
    assert kernel.run(lambda: all(p.version >= 3 for p in versions), kernel.now + 120.0), swarm.story()
    assert swarm.reported("peer_barred")


def test_a_certificate_of_other_terms_is_refused() -> None:
    """Whoever leads tells some that the step is skipped, and others that it is not."""
    driven = verifying()
    attempt = prepared(driven)
    skips = prepare(skipped_for=(B,))
    driven.hears(D, commit(attempt, certificate(skips, EVERYBODY)))
    assert not driven.did(ef.Step) and driven.reported("commit_refused")


def test_half_of_a_stage_is_enough_and_who_has_not_signed_is_asked() -> None:
    driven = verifying()
    attempt = prepared(driven)
    driven.hears(D, commit(attempt, certificate(attempt, (D, A2, B, C))))
    assert driven.did(ef.Step)
    driven = verifying()
    attempt = prepared(driven)
    driven.hears(D, commit(attempt, certificate(attempt, (D, D2, A2, C))))
    assert {effect.peer for effect in driven.did(ef.Ask)} == {B, B2}


def test_a_commit_is_looked_at_again_when_it_is_known_that_others_are_lost_or_who_they_are() -> None:
    driven = verifying((D, D2, A, A2, B, B2))  # the records of stage 3 are late
    attempt = prepared(driven)
    driven.hears(D, commit(attempt, certificate(attempt, (D, D2, A2, B, B2, C))))
    assert not driven.did(ef.Step)
    driven.sees(known())
    assert driven.did(ef.Step)


def test_a_participant_that_has_started_again_and_waits_for_weights_is_not_waited_for() -> None:
    """It has lost what it had prepared: it signs nothing of it, and gets no weights before those who have it step."""
    driven = verifying()
    attempt = prepared(driven)
    driven.hears(D, commit(attempt, certificate(attempt, (D, D2, A, B, B2, C))))
    assert not driven.did(ef.Step) and [effect.peer for effect in driven.did(ef.Ask)] == [A2]
    again = record(A2, PeerState.JOINING, signing_key=key_of(A2), sequence_number=1)
    driven.sees([*(one for one in known() if one.peer != A2), again])
    assert driven.did(ef.Step)


@pytest.mark.parametrize("unchecked", [True, False])
def test_who_has_other_weights_than_most_of_its_stage_says_so_and_gets_theirs_if_they_came_from_others(unchecked: bool) -> None:
    driven = verifying()
    driven.machine.participant.progress.unchecked = unchecked
    attempt = replace(prepare(), shares=(*prepare().shares, msg.Share(PeerId("one_2"), ())))
    driven.sees([*known(), record(PeerId("one_2"), stage=1, signing_key=key_of(PeerId("one_2")))])
    driven.hears(D, attempt)
    driven.handle(ev.AverageDone(0, 1, "average", 0.1, 1.0, "mine"))
    said = dict.fromkeys(EVERYBODY, "weights") | {A: "mine"}
    proof = certificate(attempt, EVERYBODY, states=said)
    more = msg.Prepared(0, 1, Stage(1), "average", 1.0, attempt.terms, "weights")
    third = PeerId("one_2")
    all_said = {
        peer: msg.Prepared(0, 1, Stage(STAGE_OF[peer]), "average", 1.0, attempt.terms, said[peer]) for peer in EVERYBODY
    } | {third: more}
    proof = certificate_of(attempt, {p: replace(m, signature=sign(p, m.statement)) for p, m in all_said.items()})  # type: ignore[assignment]
    driven.hears(D, commit(attempt, proof))
    assert driven.machine.participant.out_of_step is unchecked and bool(driven.did(ef.Step)) is not unchecked
    assert driven.reported("state_differs") == [{"iteration": 0, "own": "mine", "most": "weights"}]


# ---- a position that this peer has not got to


def later(iteration: int = 4) -> msg.Prepare:
    return prepare(iteration=iteration)


def test_one_peer_with_the_proof_puts_another_out_of_step() -> None:
    driven = verifying()
    driven.hears(D, commit(later(), certificate(later(), EVERYBODY)))
    assert driven.machine.participant.out_of_step


@pytest.mark.parametrize("signers", [(D,), (D, D2), (D, D2, A2), (D, A2, B)])
def test_nobody_falls_behind_for_what_a_few_have_signed(signers: tuple[PeerId, ...]) -> None:
    driven = verifying()
    proof = certificate(later(), signers, by=D)
    for liar in (D, D2):
        driven.hears(liar, commit(later(), proof))
        driven.hears(liar, commit(later(), None))
        driven.hears(liar, msg.Standing(Stage(0), 5, committed=later().ballot, certificate=proof))
        driven.hears(liar, msg.Standing(Stage(0), 5, committed=later().ballot))
    assert not driven.machine.participant.out_of_step


def test_what_is_said_without_a_proof_by_those_that_have_started_again_takes_two() -> None:
    driven = verifying()
    driven.hears(A2, msg.Standing(Stage(1), 5))
    assert not driven.machine.participant.out_of_step
    driven.hears(B2, msg.Standing(Stage(2), 5))
    assert driven.machine.participant.out_of_step


def test_a_newcomer_is_not_admitted_to_an_iteration_that_nobody_has_got_to() -> None:
    driven = in_step()
    driven.machine.ctx.verify = verify
    driven.sees([*known((D, D2)), *known((A2, B, C), weights_version=5), *known((A,), state=PeerState.JOINING)])
    for lie in (msg.Admit(900, (A2,), (D,)), msg.Admit(5, (A2,), (D,), certificate=certificate(later(), (D,)))):
        driven.hears(D, lie)
        assert driven.reported("admit_refused") and not driven.did(ef.Download)
    driven.hears(D, msg.Admit(5, (A2,), (D,), certificate=certificate(later(), (D, A2, B, C))))
    assert [download.version for download in driven.did(ef.Download)] == [5]


@pytest.mark.parametrize("version", [5, 0])
def test_a_newcomer_is_admitted_where_most_of_a_stage_have_come_since_that_commit_and_gone_on_from_it(version: int) -> None:
    """Two of three data peers were away: nobody could ever be admitted again, and the run stood still."""
    driven = in_step()
    driven.machine.ctx.verify = verify
    driven.sees([*known((D,)), *known((D2, D3, A2, B, C), weights_version=version), *known((A,), state=PeerState.JOINING)])
    driven.hears(D, msg.Admit(5, (A2,), (D,), certificate=certificate(later(), (D, A2, B, C))))
    assert [download.version for download in driven.did(ef.Download)] == ([5] if version else [])
    assert bool(driven.reported("admit_refused")) is not bool(version)


@pytest.mark.parametrize(("state", "right"), [(RIGHT, True), ("of a liar", False)])
def test_a_newcomer_takes_only_weights_that_most_of_its_stage_have_signed(state: str, right: bool) -> None:
    driven = in_step()
    driven.machine.ctx.verify = verify
    driven.sees([*known((D, D2)), *known((A2, B, C), weights_version=5), *known((A,), state=PeerState.JOINING)])
    driven.hears(D, msg.Admit(5, (A2,), (D,), certificate=certificate(later(), (D, A2, B, C))))
    attempt = prepare(iteration=5)
    driven.hears(D, attempt)
    driven.handle(ev.AverageDone(5, 1, "average", 0.1, 1.0, "of no weights that are here"))
    assert [said.state for said in driven.sent(msg.Prepared, D)] == [""]
    driven.hears(D, commit(attempt, certificate(attempt, (D, A2, B, C))))
    driven.handle(ev.Downloaded(5, state))
    assert bool(driven.did(ef.Step)) is right and bool(driven.reported("state_refused")) is not right


def test_a_coordinator_believes_no_answer_about_a_later_iteration_without_its_proof() -> None:
    from tests.protocol.commit.coordinating import finished

    driven = finished()
    driven.machine.ctx.verify = verify
    driven.hears(A, msg.Standing(Stage(1), 7, committed=later(6).ballot))
    driven.hears(B, msg.Standing(Stage(2), 0, promised=msg.Ballot(1, D)))
    assert not driven.machine.participant.out_of_step
    assert driven.reported("inquired") and not driven.reported("going_back")


# ---- signatures


def test_what_is_prepared_is_signed_as_it_goes_out_and_another_keys_signature_is_a_breach() -> None:
    said = msg.Prepared(0, 1, Stage(1), "average", 1.0, "terms", "state")
    out = signed(said, lambda text: sign(A, text))
    assert isinstance(out, msg.Prepared) and verify(key_of(A), said.statement, out.signature)
    driven = verifying()
    certifier = driven.machine.participant.certifier
    assert certifier.is_forged(B, out) and not certifier.is_forged(A, out)
