"""Is a message one that this peer of this run can be meant by? Beyond the bounds of its fields, which hold for every run.

What is wrong is either a *breach* (no honest peer sends it) or may be due to what the sender, or this peer, does not know yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gwtf_p2p.protocol.audit.convictions import is_testified, why_unproven
from gwtf_p2p.protocol.audit.witness import draws
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId
from gwtf_p2p.protocol.remembered import Remembered
from gwtf_p2p.protocol.transfer.receipts import credited
from gwtf_p2p.protocol.trust.acquaintance import Acquaintances
from gwtf_p2p.protocol.wire import audit_messages as audit
from gwtf_p2p.protocol.wire import messages as msg
from gwtf_p2p.protocol.wire.certificates import ATTEMPTS_PER_EPOCH
from gwtf_p2p.protocol.wire.receipts import MOST_BUSY_MS, Receipt, digest_of


@dataclass(frozen=True, slots=True)
class Unfit:
    """`what` is wrong, in words."""

    what: str
    breach: bool = True


_PREPARES = Remembered[Unfit | None](64)


def unfit(ctx: Context, known: Acquaintances, sender: PeerId, message: msg.Message) -> Unfit | None:
    """What is wrong with a message whose sender may send such ones; None when nothing is."""
    match message:
        case msg.Forward():
            return _forward(ctx, known, message)
        case msg.Backward():
            return _backward(ctx, known, sender, message)
        case msg.Done(microbatch, stage, done_by):
            return _stage(ctx, stage) or _own(ctx, (microbatch,)) or _credits(ctx, known, stage, (sender, *done_by))
        case msg.Missing(_, stage, microbatches):
            return _stage(ctx, stage) or _own(ctx, microbatches)
        case msg.Redo():
            return _stage(ctx, message.stage) or (Unfit("ahead: too long") if len(message.ahead) > ctx.stages else None)
        case msg.Finished():
            return _finished(ctx, known, message) or _receipt_of(ctx, sender, message)
        case msg.Prepare():
            return _prepare(ctx, message)
        case msg.Prepared():
            return _stage_or_data(ctx, message.stage) or _prepared(known, sender, message)
        case msg.NotPrepared():
            return _stage_or_data(ctx, message.stage)
        case msg.Standing():
            return _standing(ctx, sender, message)
        case audit.Testify(hop, proof):
            return _drawn(ctx, hop, proof)
        case audit.AuditOrder(hop, proof, testimony):
            return _drawn(ctx, hop, proof) or _testified(ctx, hop, testimony)
        case audit.Testimony(hop=hop) | audit.AuditResult(hop=hop):
            return _own(ctx, (hop.microbatch,))
        case audit.Conviction():
            return _conviction(ctx, message)
        case msg.Lost(peer):
            return None if known.is_known(peer) else Unfit("nobody knows that peer", breach=False)
        case _:
            return None


def _forward(ctx: Context, known: Acquaintances, message: msg.Forward) -> Unfit | None:
    if not 1 <= message.stage <= ctx.stages + 1:
        return Unfit(f"stage: expected one of 1 to {ctx.stages + 1}")
    if len(message.attempt) != message.stage + 1:
        return Unfit(f"attempt: expected {message.stage + 1} numbers, got {len(message.attempt)}")
    if len(message.ahead) > ctx.stages:
        return Unfit("ahead: too long")
    if 0 < ctx.microbatches <= message.microbatch.index:
        return Unfit(f"microbatch: this run has {ctx.microbatches} of each data peer")
    owner = message.microbatch.data_peer
    return None if known.holds(owner, {0}) else Unfit("its data peer is not known", breach=False)


def _backward(ctx: Context, known: Acquaintances, sender: PeerId, message: msg.Backward) -> Unfit | None:
    """The gradient of what a peer of `message.stage` has put out."""
    if message.stage > ctx.stages:
        return Unfit(f"stage: expected at most {ctx.stages}")
    due = ctx.stages - message.stage
    if len(message.done_by) != due or (due and message.done_by[0] != sender):
        return Unfit(f"done_by: expected {due} peers, the sender first")
    return _credits(ctx, known, message.stage + 1, message.done_by)


def _credits(ctx: Context, known: Acquaintances, first: int, peers: Iterable[PeerId]) -> Unfit | None:
    """Nobody is credited with a stage that it is not known to hold; who is not known yet will be."""
    for stage, peer in enumerate(peers, start=first):
        if stage > ctx.stages:
            return Unfit("done_by: more peers than stages")
        if peer and not known.has_held(peer, stage):
            return Unfit(f"{peer[-8:]} is not known to hold stage {stage}", breach=False)
    return None


def _finished(ctx: Context, known: Acquaintances, message: msg.Finished) -> Unfit | None:
    if len({credit.index for credit in message.ledger}) < len(message.ledger):
        return Unfit("ledger: a microbatch is told of twice")
    for credit in message.ledger:
        if len(credit.peers) != ctx.stages:
            return Unfit(f"ledger: expected {ctx.stages} peers for each microbatch")
        wrong = _credits(ctx, known, 1, credit.peers)
        if wrong is not None:
            return wrong
    return None


def _prepared(known: Acquaintances, sender: PeerId, message: msg.Prepared) -> Unfit | None:
    """What this participant has not signed, for its own stage and as it was asked, would be missing in the certificate."""
    participant, asked = known.participant, known.participant.preparing
    if not participant.certifier.is_on:
        return None
    if participant.certifier.is_forged(sender, message):
        return Unfit("signature: another key's")
    is_meant = asked is not None and (asked.iteration, asked.attempt) == (message.iteration, message.attempt)
    if asked is not None and is_meant and asked.coordinator == known.ctx.me and message.terms != asked.terms:
        return Unfit("terms: not those of this attempt")
    return None if known.has_held(sender, message.stage) else Unfit("stage: not its own")


def _receipt_of(ctx: Context, sender: PeerId, message: msg.Finished) -> Unfit | None:
    """A data peer signs for what its own ledger says, no more and no less."""
    receipt = message.receipt
    if receipt is None:
        return Unfit("receipt: none for this ledger") if message.ledger else None
    if (receipt.data_peer, receipt.epoch, receipt.iteration) != (sender, message.epoch, message.iteration):
        return Unfit("receipt: of another data peer or iteration")
    if {(line.stage, line.peer): line.microbatches for line in receipt.lines} != credited(sender, message.ledger):
        return Unfit("receipt: it differs from the ledger")
    return _receipt(ctx, receipt, len(message.ledger))


def _receipt(ctx: Context, receipt: Receipt, microbatches: int) -> Unfit | None:
    """Every stage has done as many as the data peer; in fast recovery, some may be missing."""
    places = [(line.stage, line.peer) for line in receipt.lines]
    if places != sorted(set(places)):
        return Unfit("receipt: expected one line for each stage and peer, in order")
    done = [0] * (ctx.stages + 1)
    for line in receipt.lines:
        if line.stage > ctx.stages or line.microbatches == 0:
            return Unfit("receipt: a line for nothing, or of a stage that is not there")
        if line.busy_ms > line.microbatches * MOST_BUSY_MS:
            return Unfit(f"receipt: expected at most {MOST_BUSY_MS} ms for a microbatch")
        done[line.stage] += line.microbatches
    if max(done) > microbatches or (ctx.exact and min(done) < microbatches):
        return Unfit(f"receipt: not every stage has done {microbatches} microbatches")
    return None


def _receipts(ctx: Context, message: msg.Prepare) -> Unfit | None:
    """Data peers alone get them: one for each that the group averages anything of, and their own stage's lines are what they
    are asked to average."""
    if message.receipts and message.stage != DATA_STAGE:
        return Unfit("receipts: they are for data peers")
    by = [receipt.data_peer for receipt in message.receipts]
    if by != sorted(set(by)):
        return Unfit("receipts: expected one of each data peer, in order")
    if message.stage != DATA_STAGE:
        return None
    if message.receipts_digest != digest_of(message.receipts):
        return Unfit("receipts: they are not those of the digest")
    shares = {share.participant: len(share.microbatches) for share in message.shares}
    if not {peer for peer, share in shares.items() if share} <= set(by):
        return Unfit("receipts: one is missing")
    for receipt in message.receipts:
        if (receipt.epoch, receipt.iteration) != (message.epoch, message.iteration):
            return Unfit("receipts: of another iteration")
        own = [(line.peer, line.microbatches) for line in receipt.lines if line.stage == DATA_STAGE]
        share = shares.get(receipt.data_peer, 0)
        if own != ([(receipt.data_peer, share)] if share else []):
            return Unfit("receipts: they differ from the shares")
        wrong = _receipt(ctx, receipt, share)
        if wrong is not None:
            return wrong
    return None


def _prepare(ctx: Context, message: msg.Prepare) -> Unfit | None:
    """Found once for all peers of one process that are told the very same."""
    return _PREPARES.of((message, ctx.stages, ctx.exact), lambda: _prepare_of(ctx, message))


def _prepare_of(ctx: Context, message: msg.Prepare) -> Unfit | None:
    participants = message.participants
    if len(set(participants)) < len(participants):
        return Unfit("shares: a participant is named twice")
    microbatches = [m for share in message.shares for m in share.microbatches]
    if any(m.iteration != message.iteration for m in microbatches) or len(set(microbatches)) < len(microbatches):
        return Unfit("shares: expected each microbatch of this iteration once")
    if message.total and not any(message.weights):
        return Unfit("left_out: nobody is left")
    return _receipts(ctx, message)


def _standing(ctx: Context, sender: PeerId, message: msg.Standing) -> Unfit | None:
    prepare, promised = message.prepare, message.promised
    wrong = _stage_or_data(ctx, message.stage)
    record = ctx.view.records.get(sender) if ctx.view is not None else None
    if wrong is None and record is not None and record.is_routable and record.stage != message.stage:
        return Unfit("stage: not the one that its record says it serves", breach=False)  # one that moves stops serving first
    if wrong is None and prepare is not None:
        wrong = _stage_or_data(ctx, prepare.stage)
        if prepare.stage != message.stage:
            wrong = Unfit("prepare: of another stage")
        elif prepare.receipts:
            wrong = Unfit("prepare: its receipts are told to nobody else")
    if wrong is None and promised is not None and promised.attempt >= (message.epoch + 0.5) * ATTEMPTS_PER_EPOCH:
        wrong = Unfit("promised: no iteration is tried so often")  # above it no coordinator could name a higher number
    return wrong


def _drawn(ctx: Context, hop: audit.Hop, proof: str) -> Unfit | None:
    wrong = _stage(ctx, hop.stage)
    if wrong is None and hop.epoch != ctx.epoch:
        return Unfit("of another epoch", breach=False)
    return wrong if wrong is not None or draws(ctx, hop, proof) else Unfit("the hop is not drawn")


def _testified(ctx: Context, hop: audit.Hop, testimony: audit.Testimony) -> Unfit | None:
    return (
        None if testimony.hop == hop and is_testified(ctx, testimony) else Unfit("testimony: not the worker's about this hop")
    )


def _conviction(ctx: Context, message: audit.Conviction) -> Unfit | None:
    wrong = why_unproven(ctx, message)
    return Unfit(wrong) if wrong else None


def _own(ctx: Context, microbatches: Iterable[MicrobatchId]) -> Unfit | None:
    if all(m.data_peer == ctx.me for m in microbatches):
        return None
    return Unfit("microbatches of another data peer")


def _stage(ctx: Context, stage: int) -> Unfit | None:
    return None if 1 <= stage <= ctx.stages else Unfit(f"stage: expected one of 1 to {ctx.stages}")


def _stage_or_data(ctx: Context, stage: int) -> Unfit | None:
    return None if 0 <= stage <= ctx.stages else Unfit(f"stage: expected one of 0 to {ctx.stages}")
