"""Is a commit proven? What a participant has signed is looked at here, with nothing but records: keys come from those.

A certificate proves its commit to a peer when, in every stage, at least half of those that this peer knows to serve there and
has not lost have signed, and one at least; in its own stage, of those that its `Prepare` names. Signatures that do not fit
count for nothing. Of a whole attempt all have signed; half are enough because some may have died since, or records outlive
their peers. Who is missing is asked whether it lives, and the certificate is looked at again when something is known.

Runs whose interpreter verifies nothing (`Context.verify` is None: single machines in tests) go without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gwtf_p2p.protocol.commit.attempt import certifies_norm
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.certificates import Alike, Certificate
from gwtf_p2p.protocol.wire.messages import Commit, ControlMessage, Prepare, Prepared, Standing
from gwtf_p2p.protocol.wire.records import PeerState

Sign = Callable[[str], str]
"""The signature of a text by this peer."""

MOST_ASKED = 4
"""Peers that are asked at once whether they live, as they have not signed."""

MOST_VERIFIED = 8192
"""Signatures whose verdict is remembered; then all are forgotten."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a certificate proves nothing here: `stage` has too few signers that this peer knows; `missing` have not signed."""

    stage: Stage
    missing: tuple[PeerId, ...]


def certificate_of(prepare: Prepare, said: Mapping[PeerId, Prepared]) -> Certificate | None:
    """What these participants of one attempt have signed; None when there is nothing."""
    groups: dict[tuple[int, str, float, str], list[tuple[PeerId, str]]] = {}
    for peer, prepared in sorted(said.items()):
        if prepared.attempt == prepare.attempt and prepared.terms == prepare.terms and prepared.signature:
            key = (prepared.stage, prepared.digest, prepared.squared_norm, prepared.state)
            groups.setdefault(key, []).append((peer, prepared.signature))
    if not groups:
        return None
    alike = (
        Alike(Stage(stage), digest, norm, state, tuple(p for p, _ in signed), tuple(s for _, s in signed))
        for (stage, digest, norm, state), signed in sorted(groups.items())
    )
    return Certificate(prepare.iteration, prepare.attempt, prepare.terms, tuple(alike))


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


class Certifier:
    """Of one peer. `unproven` is a commit that it has prepared and that cannot be told to be proven yet: some are dead, or
    their records late. It is looked at again with every event."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.unproven: tuple[PeerId, Commit] | None = None
        self._verified: dict[tuple[str, str, str], bool] = {}

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

    def believes(self, standing: Standing) -> bool:
        """A peer says that it is further: has it the proof of it? One that has started again, and seen no commit since, has
        none to show."""
        if not self.is_on or (standing.certificate is None and standing.committed is None):
            return True
        certificate = standing.certificate
        return certificate is not None and certificate.position == standing.position and self.lacks(certificate) is None

    def proves(self, sender: PeerId, message: Commit, preparing: Prepare) -> bool:
        """Others have prepared what this peer has. Who is missing is asked whether it lives."""
        if not self.is_on:
            return True
        certificate, reason = message.certificate, ""
        attempt = (preparing.iteration, preparing.attempt, preparing.terms)
        if certificate is None:
            reason = "it has no certificate"
        elif (certificate.iteration, certificate.attempt, certificate.terms) != attempt:
            reason = "its certificate is of another attempt"
        elif not certifies_norm(certificate, message.gradient_norm, skipped=bool(preparing.skipped_for)):
            reason = "the norm is not that of its certificate"
        if certificate is None or reason:
            self.ctx.report("commit_refused", sender=sender, iteration=message.iteration, reason=reason)
            return False
        lack = self.lacks(certificate, preparing)
        self.unproven = (sender, message) if lack is not None else None
        for peer in lack.missing[:MOST_ASKED] if lack is not None else ():
            self.ctx.suspect(peer, f"it has not signed the commit of iteration {message.iteration}")
        return lack is None

    def differs(self, state: str, certificate: Certificate | None) -> bool:
        """Most of this stage have averaged for other weights than these of this peer's."""
        most = certificate.state_of(self.ctx.stage) if certificate is not None else ""
        if not most or state in ("", most):
            return False
        self.ctx.report("state_differs", iteration=certificate.iteration if certificate else 0, own=state, most=most)
        return True

    def lacks(self, certificate: Certificate, own: Prepare | None = None) -> Lack | None:
        """What a certificate lacks to prove its commit; None: nothing. `own`: what this peer has prepared of that attempt."""
        ctx, have = self.ctx, self._signers(certificate)
        records = ctx.view.records if ctx.view is not None else {}
        for k in range(ctx.stages + 1):
            serving = {p for p, r in records.items() if r.stage == k and r.state is PeerState.ONLINE and r.signing_key}
            expected = set(own.participants) & records.keys() if own is not None and k == ctx.stage else serving
            expected = {p for p in expected if p != ctx.me and not ctx.liveness.is_lost(p)}
            if k == ctx.stage and not expected:
                continue  # this peer is alone in its stage
            there = have.get(k, set())
            if not there or 2 * len(there & expected) < len(expected):
                return Lack(Stage(k), tuple(sorted(expected - there)))
        return None

    def _signers(self, certificate: Certificate) -> dict[int, set[PeerId]]:
        """By stage, those whose records say that they hold it, and whose signatures fit."""
        found: dict[int, set[PeerId]] = {}
        records = self.ctx.view.records if self.ctx.view is not None else {}
        for group in certificate.groups:
            text = certificate.statement_of(group)
            for peer, signature in zip(group.peers, group.signatures, strict=False):
                record = records.get(peer)
                if record is not None and record.stage == group.stage and self._fits(record.signing_key, text, signature):
                    found.setdefault(group.stage, set()).add(peer)
        return found

    def _fits(self, key: str, text: str, signature: str) -> bool:
        """Each is verified once: a certificate comes with the commit, and again with what others say of where they stand."""
        verify, what = self.ctx.verify, (key, text, signature)
        if verify is None or not key or not signature:
            return False
        if what not in self._verified:
            if len(self._verified) >= MOST_VERIFIED:
                self._verified.clear()
            self._verified[what] = verify(key, text, signature)
        return self._verified[what]

    def _key_of(self, peer: PeerId) -> str:
        record = self.ctx.view.records.get(peer) if self.ctx.view is not None else None
        return record.signing_key if record is not None else ""
