"""Is a commit proven? What a participant has signed is looked at here, with nothing but records: keys come from those.

A certificate proves its commit to a peer when, in every stage, at least half of those that this peer knows to serve there and
has not lost have signed one and the same average, and one at least; in its own stage, of those that its `Prepare` names, and
the average that it has itself. Signatures that do not fit count for nothing, and neither does what they stand under. Of a whole
attempt all have signed; half are enough because some may have died since, or records outlive their peers. Who is missing is
asked whether it lives and where it stands, and the certificate is looked at again when something is known: one that has come to
the next iteration by this commit need not have signed it. A peer that has not prepared an attempt, and so has no part in it,
falls behind when it is proven in half of the stages, and signed by somebody in the others (`shows`), or signed by somebody in
all of them (`is_signed`) where whoever leads, or another witness, says so too; it follows only what is proven.

Runs whose interpreter verifies nothing (`Context.verify` is None: single machines in tests) go without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gwtf_p2p.protocol.commit.attempt import is_norm_of, norm_of_stages
from gwtf_p2p.protocol.commit.own_share import OwnShare
from gwtf_p2p.protocol.commit.progress import Origin
from gwtf_p2p.protocol.core.context import Context, Verify
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.remembered import Remembered
from gwtf_p2p.protocol.wire.certificates import Alike, Certificate
from gwtf_p2p.protocol.wire.messages import Admit, Commit, ControlMessage, Inquire, Prepare, Prepared, Standing
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

NOBODY: frozenset[PeerId] = frozenset()

Signers = Mapping[int, Mapping[tuple[str, float], frozenset[PeerId]]]
"""By stage, and by digest and squared norm of the average."""

Sign = Callable[[str], str]
"""The signature of a text by this peer."""

MOST_ASKED = 4
ASK_EVERY_S = 1.0
"""Peers that are asked at once whether they live, as they have not signed, and how often each of them is."""

MOST_GONE_ON = 8192
VERIFIED_OF_PEER, LEAST_VERIFIED = 4, 64
"""Signatures whose verdict is remembered: so many for each peer of which there is a record, which is that of a few commits, and
as many again of those before."""


Average = tuple[str, float, str]
"""Digest and squared norm of an average, and the digest of the weights that it is for."""


@dataclass(frozen=True, slots=True)
class Own:
    """What this peer has prepared of an attempt."""

    prepare: Prepare
    average: Average


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a certificate proves nothing here: `stage` has too few signers that this peer knows; `missing` have not signed."""

    stage: Stage
    missing: tuple[PeerId, ...]


def certificate_of(prepare: Prepare, said: Mapping[PeerId, Prepared]) -> Certificate | None:
    """What these participants of one attempt have signed; None when there is nothing."""
    groups: dict[tuple[int, str, float, str], list[tuple[PeerId, str]]] = {}
    terms = prepare.terms
    for peer, prepared in sorted(said.items()):
        if prepared.attempt == prepare.attempt and prepared.terms == terms and prepared.signature:
            key = (prepared.stage, prepared.digest, prepared.squared_norm, prepared.state)
            groups.setdefault(key, []).append((peer, prepared.signature))
    if not groups:
        return None
    alike = (
        Alike(Stage(stage), digest, norm, state, tuple(p for p, _ in signed), tuple(s for _, s in signed))
        for (stage, digest, norm, state), signed in sorted(groups.items())
    )
    return Certificate(prepare.iteration, prepare.attempt, terms, tuple(alike))


def signed(message: ControlMessage, sign: Sign | None) -> ControlMessage:
    """The message as it goes out: what a participant says of what it has prepared bears its signature."""
    if sign is None:
        return message
    match message:
        case Prepared():
            return replace(message, signature=sign(message.statement))
        case Standing() if (prepared := message.as_prepared) is not None:
            return replace(message, signature=sign(prepared.statement))
    return message


@dataclass(frozen=True, slots=True)
class Reading:
    """What a certificate says to one who has certain records. `fitting`: each group with those of it whose records say that
    they hold its stage, and whose signatures fit; `signers`: the same by what they have signed."""

    fitting: tuple[tuple[Alike, frozenset[PeerId]], ...]
    signers: Signers


_READINGS = Remembered[Reading](4)


def _reading(certificate: Certificate, records: Mapping[PeerId, StageRecord], fits: Verify) -> Reading:
    fitting: list[tuple[Alike, frozenset[PeerId]]] = []
    signers: dict[int, dict[tuple[str, float], frozenset[PeerId]]] = {}
    for group in certificate.groups:
        text, found = certificate.statement_of(group), set()
        for peer, signature in zip(group.peers, group.signatures, strict=False):
            record = records.get(peer)
            if record is not None and record.stage == group.stage and fits(record.signing_key, text, signature):
                found.add(peer)
        if found:
            peers, of_stage = frozenset(found), signers.setdefault(group.stage, {})
            fitting.append((group, peers))
            what = (group.digest, group.squared_norm)
            of_stage[what] = of_stage.get(what, NOBODY) | peers
    return Reading(tuple(fitting), signers)


class Certifier:
    """Of one peer. `unproven` is a commit that it has prepared and that cannot be told to be proven yet: some are dead, or
    their records late. It is looked at again with every event."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.unproven: tuple[PeerId, Commit] | None = None
        self._gone_on: set[PeerId] = set()
        self._asked_at: dict[PeerId, float] = {}
        self._verified: dict[tuple[str, str, str], bool] = {}
        self._verified_before: dict[tuple[str, str, str], bool] = {}
        self._looked_at: tuple[object, ...] = ()

    @property
    def is_on(self) -> bool:
        """Commits are proven in this run."""
        return self.ctx.verify is not None

    def is_forged(self, sender: PeerId, prepared: Prepared) -> bool:
        """It bears another signature than that of the key that the sender's record names."""
        key = self._key_of(sender)
        return self.is_on and key != "" and not self._fits(key, prepared.statement, prepared.signature)

    def forget(self) -> None:
        """No commit is waited for any more."""
        self.unproven = None
        self._gone_on.clear()
        self._asked_at.clear()

    def may_be_proven_now(self) -> bool:
        """Something is known since that commit was looked at: of who there is, or of who is lost."""
        known = (self.ctx.view, self.ctx.liveness.lost)
        is_news, self._looked_at = self.unproven is not None and known != self._looked_at, known
        return is_news

    def believes(self, standing: Standing, with_witness: bool = False) -> bool:
        """A peer says that it is further: has it the proof of it, or (`with_witness`) what takes a witness beside it? One that
        has started again, and seen no commit since, has none to show."""
        certificate = standing.certificate
        if not self.is_on or (certificate is None and standing.committed is None):
            return True
        if certificate is None or certificate.position != standing.position:
            return False
        return self.shows(certificate) or (with_witness and self.is_signed(certificate))

    def is_signed(self, certificate: Certificate) -> bool:
        """Somebody has signed it in each stage. Where the swarm was cut in two, that is all that the other side may have."""
        have = self._read(certificate).signers
        return all(have.get(stage) for stage in range(self.ctx.stages + 1))

    def shows(self, certificate: Certificate) -> bool:
        """The swarm has gone on without this peer, which has not prepared that attempt: the commit is proven in half of the
        stages, and somebody has signed it in each of the others. Who was thought lost then, and is back, may be more than half
        of a stage: nobody could prove that commit to anybody while those believe to serve."""
        have = self._read(certificate).signers
        of_stages = [self._of_stage(Stage(stage), have) for stage in range(self.ctx.stages + 1)]
        lacks = [lack for lack in of_stages if isinstance(lack, Lack)]
        return 2 * len(lacks) <= len(of_stages) and all(have.get(lack.stage) for lack in lacks)

    def proves(self, sender: PeerId, message: Commit, own: Own) -> bool:
        """Others have prepared what this peer has. Who is missing is asked whether it lives, and is told of this commit by
        whoever leads: nobody else does before that is proven to somebody."""
        if not self.is_on:
            return True
        certificate, reason, preparing = message.certificate, "", own.prepare
        attempt = (preparing.iteration, preparing.attempt, preparing.terms)
        if certificate is None:
            reason = "it has no certificate"
        elif (certificate.iteration, certificate.attempt, certificate.terms) != attempt:
            reason = "its certificate is of another attempt"
        proof = self._proof(certificate, own) if certificate is not None and not reason else None
        if isinstance(proof, dict) and not preparing.skipped_for and not is_norm_of(proof.values(), message.gradient_norm):
            reason = "the norm is not that of its certificate"
        if proof is None or reason:
            self.forget()
            self.ctx.report("commit_refused", sender=sender, iteration=message.iteration, reason=reason)
            return False
        lack = proof if isinstance(proof, Lack) else None
        self.unproven = (sender, message) if lack is not None else None
        if lack is not None:
            self._ask(lack.missing, sender, message)
        return lack is None

    def _ask(self, missing: Sequence[PeerId], sender: PeerId, message: Commit) -> None:
        """A few of those that have not signed, others each time, and each of them now and then."""
        now = self.ctx.now
        for peer in [peer for peer in missing if now - self._asked_at.get(peer, -ASK_EVERY_S) >= ASK_EVERY_S][:MOST_ASKED]:
            self._asked_at[peer] = now
            self.ctx.suspect(peer, f"it has not signed the commit of iteration {message.iteration}")
            self.ctx.emit(Send(peer, Inquire(message.iteration)))
            if sender == self.ctx.me:
                self.ctx.emit(Send(peer, message))  # its own attempt, begun without a peer that is back since: it has to follow

    def stands_by(self, peer: PeerId, standing: Standing, prepare: Prepare) -> bool:
        """A peer that has not signed, as it has come since, has gone on from the commit that is waited for: it counts as those
        that have. Whether that is news."""
        if self.unproven is None or not _is_of(standing.certificate, prepare):
            return False
        is_news = peer not in self._gone_on and not standing.syncing and len(self._gone_on) < MOST_GONE_ON
        if is_news:
            self._gone_on.add(peer)
        return is_news

    def waits_for(self, standing: Standing, prepare: Prepare | None) -> bool:
        """What a peer shows is the commit of the attempt that this peer has prepared, and not proven here yet, or not heard of:
        who is about to take part says so before most of those that step."""
        if prepare is None or not _is_of(standing.certificate, prepare):
            return False
        return self.unproven is not None or standing.syncing

    def differs(self, state: str, certificate: Certificate | None) -> bool:
        """Most of this stage have averaged for other weights than these of this peer's."""
        most = self.state_of_most(certificate)
        if not most or state in ("", most):
            return False
        self.ctx.report("state_differs", iteration=certificate.iteration if certificate else 0, own=state, most=most)
        return True

    def state_of_most(self, certificate: Certificate | None) -> str:
        """The digest of the weights that more than half of those that have signed in this stage have; '' if there is none."""
        counts: dict[str, int] = {}
        for group, peers in self._read(certificate).fitting if certificate is not None else ():
            if group.stage == self.ctx.stage and group.state:
                counts[group.state] = counts.get(group.state, 0) + len(peers)
        most = max(counts, key=lambda state: counts[state], default="")
        return most if most and 2 * counts[most] > sum(counts.values()) else ""

    def lacks(self, certificate: Certificate) -> Lack | None:
        """What a certificate lacks to prove its commit; None: nothing."""
        proof = self._proof(certificate)
        return proof if isinstance(proof, Lack) else None

    def _proof(self, certificate: Certificate, own: Own | None = None) -> dict[Stage, float] | Lack:
        """The squared norms of the averages that enough have signed, by stage; or what it lacks to prove its commit.
        `own`: what this peer has prepared of that attempt."""
        have, proven = self._read(certificate).signers, dict[Stage, float]()
        for stage in map(Stage, range(self.ctx.stages + 1)):
            found = self._of_stage(stage, have, own)
            if isinstance(found, Lack):
                return found
            if found is not None:
                proven[stage] = found
        return proven

    def _of_stage(self, stage: Stage, have: Signers, own: Own | None = None) -> float | Lack | None:
        """Squared norm of the average that enough of this stage have signed, or what is lacking; None: nobody else is in it."""
        ctx, signed = self.ctx, have.get(stage, {})
        own_norm: float | None = None
        if own is not None and stage == ctx.stage:
            digest, own_norm, _ = own.average
            signed = {what: peers for what, peers in signed.items() if what[0] == digest}
            expected = _here(own.prepare.participants, ctx.view.records if ctx.view is not None else {})
        else:
            expected = ctx.view.signing.get(stage, NOBODY) if ctx.view is not None else NOBODY
        expected = expected - {ctx.me} - ctx.liveness.lost
        if own is not None:
            expected -= self._gone_on
        if stage == ctx.stage and not expected:
            return own_norm
        what, there = max(signed.items(), key=lambda each: (len(each[1] & expected), each[0]), default=(("", 0.0), NOBODY))
        if not there or 2 * len(there & expected) < len(expected):
            return Lack(stage, tuple(sorted(expected - there)))
        return what[1] if own_norm is None else own_norm

    def _read(self, certificate: Certificate) -> Reading:
        """Who has signed it, by the records that are here."""
        view = self.ctx.view
        records = view.records if view is not None else {}
        return _READINGS.of((certificate, view, self.ctx.verify), lambda: _reading(certificate, records, self._fits))

    def _fits(self, key: str, text: str, signature: str) -> bool:
        """Each is verified once: a certificate comes with the commit, and again with what others say of where they stand."""
        verify, what = self.ctx.verify, (key, text, signature)
        if verify is None or not key or not signature:
            return False
        if what not in self._verified:
            before = self._verified_before.get(what)
            peers = len(self.ctx.view.records) if self.ctx.view is not None else 0
            if len(self._verified) >= max(LEAST_VERIFIED, VERIFIED_OF_PEER * peers):
                self._verified_before, self._verified = self._verified, {}
            self._verified[what] = verify(key, text, signature) if before is None else before
        return self._verified[what]

    def _key_of(self, peer: PeerId) -> str:
        record = self.ctx.view.records.get(peer) if self.ctx.view is not None else None
        return record.signing_key if record is not None else ""


def _here(participants: Iterable[PeerId], records: Mapping[PeerId, StageRecord]) -> frozenset[PeerId]:
    """Who may have signed: not one that has started again since, knows nothing of it, and waits for those that do."""
    there = ((peer, records.get(peer)) for peer in participants)
    return frozenset(peer for peer, record in there if record is not None and record.state is not PeerState.JOINING)


def _is_of(certificate: Certificate | None, prepare: Prepare) -> bool:
    """It is about this attempt."""
    wanted = (prepare.iteration, prepare.attempt, prepare.terms)
    return certificate is not None and (certificate.iteration, certificate.attempt, certificate.terms) == wanted


def origin_of(certifier: Certifier, message: Admit) -> Origin:
    """Of the weights that a peer is admitted to: without the proof of that commit it is not known which attempt they are from.
    The norm is that of what most have signed in each stage; what nobody has signed counts for nothing."""
    committed, proof = message.committed, message.certificate
    if committed is None or proof is None or (proof.position, proof.attempt) != (message.position, committed.attempt):
        return Origin(proof)
    stages = certifier._read(proof).signers.values()
    most = [max(signed, key=lambda what: len(signed[what])) for signed in stages]
    return Origin(proof, committed, norm_of_stages([squared for _, squared in most]))


def is_prepared(certificate: Certificate, share: OwnShare) -> bool:
    """It is of the attempt that a peer itself has prepared, and waits for or steps by."""
    return share.prepared and share.preparing is not None and _is_of(certificate, share.preparing)
